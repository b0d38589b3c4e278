/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include "leave.h"

/* Answer a SYN that nobody takes with a RST from where it went, so that the
 * client knows at once and need not wait for its timeout. */

#define REFUSALS_PER_SECOND 1000 /* of one CPU; a flood is dropped */

static __always_inline bool may_refuse(void)
{
	__u64 now = bpf_ktime_get_ns();
	__u32 key = 0;
	struct refusals *r = bpf_map_lookup_elem(&refusals, &key);

	if (!r)
		return false;
	if (!trace && now - r->since >= 1000000000ULL) {
		r->since = now;
		r->sent = 0;
	}
	if (trace)
		return r->sent < REFUSALS_PER_SECOND;
	return r->sent++ < REFUSALS_PER_SECOND;
}

static __always_inline __u16 tcp_csum(const struct iphdr *ip, const struct tcphdr *tcp)
{
	const __u16 *word = (const __u16 *)tcp;
	__u32 sum = bpf_htons(IPPROTO_TCP) + bpf_htons(sizeof(*tcp));

	sum += (ip->saddr & 0xffff) + (ip->saddr >> 16) + (ip->daddr & 0xffff) + (ip->daddr >> 16);
#pragma unroll
	for (int i = 0; i < (int)sizeof(*tcp) / 2; i++)
		sum += word[i];
	return ~csum_fold(sum);
}

/* RFC 9293, 3.10.7.1: the RST that answers a SYN acknowledges it. */
static __always_inline void write_reset(struct iphdr *ip, struct tcphdr *tcp, const struct packet *to)
{
	__be32 seq = tcp->seq;

	__builtin_memset(ip, 0, sizeof(*ip));
	ip->version = 4;
	ip->ihl = sizeof(*ip) / 4;
	ip->tot_len = bpf_htons(sizeof(*ip) + sizeof(*tcp));
	ip->ttl = OUTER_TTL;
	ip->protocol = IPPROTO_TCP;
	ip->saddr = to->daddr;
	ip->daddr = to->saddr;
	ip->check = ip_csum(ip);
	__builtin_memset(tcp, 0, sizeof(*tcp));
	tcp->source = to->dport;
	tcp->dest = to->sport;
	tcp->ack_seq = bpf_htonl(bpf_ntohl(seq) + 1);
	tcp->doff = sizeof(*tcp) / 4;
	tcp->rst = 1;
	tcp->ack = 1;
	tcp->check = tcp_csum(ip, tcp);
}

/* Turn the SYN into the RST. IP options would have to be moved out of the way:
 * such a SYN is dropped. */
static __always_inline enum reason reset(struct xdp_md *ctx, const struct cfg *c, const struct packet *syn)
{
	struct cursor cur = xdp_cursor(ctx);
	struct ethhdr *eth = take(&cur, sizeof(*eth));
	struct iphdr *ip;
	struct tcphdr *tcp;

	if (!eth || syn->l4 != sizeof(*eth) + sizeof(*ip))
		return REASON_DRAINING;
	ip = take(&cur, sizeof(*ip));
	if (!ip)
		return REASON_DRAINING;
	tcp = take(&cur, sizeof(*tcp));
	if (!tcp)
		return REASON_DRAINING;
	__builtin_memcpy(eth->h_dest, eth->h_source, ETH_ALEN);
	__builtin_memcpy(eth->h_source, c->uplink_mac, ETH_ALEN);
	write_reset(ip, tcp, syn);
	return cut(ctx, sizeof(*eth) + sizeof(*ip) + sizeof(*tcp)) ? REASON_DRAINING : REASON_NONE;
}
