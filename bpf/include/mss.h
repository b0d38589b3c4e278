/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include "nlb.h"
#include "port.h"

/*
 * What a client sends to a balanced connection goes through the tunnel: the largest
 * segment that the two sides agree on (RFC 9293, 3.7.1) must fit, with the headers
 * that go around it. Where nothing is said, 536 bytes are meant, and those fit.
 */

#define TCP_OPTION_MSS 2

/* Where a SYN's MSS lies in the frame, and what it is; 0: it names none. */
static __noinline __u32 find_mss(struct __sk_buff *skb, __u32 at, __u32 length, __u16 *mss)
{
	struct tcp_options o = { .length = length, .wanted = TCP_OPTION_MSS };
	__u32 pos;

	if (!mss || !length || length > TCP_OPTIONS_MAX || bpf_skb_load_bytes(skb, at, o.b, length))
		return 0;
	bpf_loop(TCP_OPTIONS_MAX, walk_option, &o, 0);
	pos = o.found - 1;
	if (!o.found || pos + 4 > length || o.b[(pos + 1) & 63] != 4)
		return 0;
	*mss = o.b[(pos + 2) & 63] << 8 | o.b[(pos + 3) & 63];
	return at + pos + 2;
}

/* Let a SYN ask for no larger segments than fit into an IP packet of mtu. An option
 * at an odd place lies across two words of the checksum: both are changed. Global, so
 * that the verifier reads it once; no caller passes NULL. */
__noinline enum reason clamp_mss(struct __sk_buff *skb, const struct frame *f, __u32 mtu)
{
	__u32 headers, from, at;
	__be16 is, becomes;
	__u16 mss = 0, most;
	bool odd;

	if (!f)
		return REASON_MALFORMED;
	headers = (f->ip.family == 4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr)) + sizeof(struct tcphdr);
	from = f->ip.l4 + sizeof(struct tcphdr);
	most = mtu - headers;
	if (mtu <= headers || mtu > 65535 || f->ip.payload <= from)
		return REASON_NONE;
	at = find_mss(skb, from, f->ip.payload - from, &mss);
	if (!at || mss <= most)
		return REASON_NONE;
	odd = (at - from) & 1;
	is = odd ? mss : bpf_htons(mss);
	becomes = odd ? most : bpf_htons(most);
	if (bpf_l4_csum_replace(skb, f->ip.l4 + offsetof(struct tcphdr, check), is, becomes, 2))
		return REASON_MALFORMED;
	becomes = bpf_htons(most);
	return bpf_skb_store_bytes(skb, at, &becomes, sizeof(becomes), 0) ? REASON_MALFORMED : REASON_NONE;
}

/* The largest IP packet that the hosts of a service hand to one of its backends; 0:
 * any. */
static __noinline __u32 mtu_of(const struct ip16 *vip, __be16 port, __u8 proto)
{
	struct packet to = { .daddr = *vip, .dport = port, .proto = proto, .family = is_v4(vip) ? 4 : 6 };
	__u32 *at = served_at(&to), index;
	struct svc *s;

	if (!at)
		return 0;
	index = READ_ONCE(*at);
	s = bpf_map_lookup_elem(&svc, &index);
	return s ? s->mtu : 0;
}

/* A SYN of a balanced connection, either way. */
static __always_inline enum reason fit_mss(struct __sk_buff *skb, const struct frame *f, const struct visit *v)
{
	if (!v->service || v->host || !(v->tcp_flags & TCP_SYN))
		return REASON_NONE;
	return clamp_mss(skb, f, mtu_of(&v->vip, v->vip_port, IPPROTO_TCP));
}
