/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include "port.h"

/* What a VM may send, and how it is mended on its way. */

/* May the port speak for this address? */
static __noinline bool owns(__u32 port, const struct ip16 *ip)
{
	struct addr_key key = { .port = port, .ip = *ip };

	return bpf_map_lookup_elem(&addr_ok, &key) != NULL;
}

static __always_inline bool is_door(const struct frame *f, const struct cfg *c)
{
	return f->ip.family == 4 && ip16_v4(&f->ip.dst) == c->probe;
}

static __always_inline enum reason check_destination(const struct frame *f, const struct cfg *c)
{
	if (is_door(f, c))
		return REASON_NONE; /* the flow table decides */
	if (is_bad_destination(&f->ip))
		return REASON_BAD_DESTINATION;
	if (prefix_flags(&f->ip.dst) & PREFIX_HOST)
		return REASON_HOST_ADDRESS;
	return REASON_NONE;
}

static __always_inline enum reason check_size(struct __sk_buff *skb, const struct frame *f, const struct port_cfg *pc)
{
	if (pc->mtu && !skb->gso_size && f->ip.length > pc->mtu)
		return REASON_OVERSIZE;
	return f->ip.ttl > 1 ? REASON_NONE : REASON_TTL;
}

#define IP_OFFSET(field)  (sizeof(struct ethhdr) + offsetof(struct iphdr, field))
#define IP6_OFFSET(field) (sizeof(struct ethhdr) + offsetof(struct ipv6hdr, field))

/* TTL − 1. It shares a checksum word with the protocol, which behind IPv4 is
 * never an extension's. */
static __always_inline enum reason hop(struct __sk_buff *skb, const struct frame *f)
{
	__u16 from = (__u16)f->ip.proto << 8 | f->ip.ttl;
	__u8 ttl = f->ip.ttl - 1;
	__u16 to = (__u16)f->ip.proto << 8 | ttl;

	if (f->ip.family == 6)
		return bpf_skb_store_bytes(skb, IP6_OFFSET(hop_limit), &ttl, sizeof(ttl), 0) ? REASON_MALFORMED
											     : REASON_NONE;
	if (bpf_l3_csum_replace(skb, IP_OFFSET(check), from, to, 2) ||
	    bpf_skb_store_bytes(skb, IP_OFFSET(ttl), &ttl, sizeof(ttl), 0))
		return REASON_MALFORMED;
	return REASON_NONE;
}

/* instance:target-port → VIP:port, as the flow says. Services are IPv4's. */
static __always_inline enum reason rewrite_source(struct __sk_buff *skb, struct frame *f, const struct visit *v)
{
	bool tcp = f->ip.proto == IPPROTO_TCP;
	__u32 check = f->ip.l4 + (tcp ? offsetof(struct tcphdr, check) : offsetof(struct udphdr, check));
	__u64 mangled = tcp ? 0 : BPF_F_MARK_MANGLED_0;
	__be32 from = ip16_v4(&f->ip.src), to = ip16_v4(&v->vip);

	if (bpf_l4_csum_replace(skb, check, from, to, mangled | BPF_F_PSEUDO_HDR | 4) ||
	    write_port(skb, f, offsetof(struct tcphdr, source), f->ip.sport, v->vip_port) ||
	    bpf_l3_csum_replace(skb, IP_OFFSET(check), from, to, 4) ||
	    bpf_skb_store_bytes(skb, IP_OFFSET(saddr), &to, sizeof(to), 0))
		return REASON_MALFORMED;
	f->ip.src = v->vip;
	f->ip.sport = v->vip_port;
	return REASON_NONE;
}

/* The port that the VM knows the client by → the client's own. */
static __always_inline enum reason restore_port(struct __sk_buff *skb, struct frame *f, const struct visit *v)
{
	if (write_port(skb, f, offsetof(struct tcphdr, dest), f->ip.dport, v->peer_port))
		return REASON_MALFORMED;
	f->ip.dport = v->peer_port;
	return REASON_NONE;
}

static __always_inline enum reason check(struct __sk_buff *skb, const struct frame *f, const struct cfg *c,
					 const struct port_cfg *pc, __u32 port)
{
	enum reason reason = f->reason; /* of the headers */

	if (reason != REASON_MALFORMED && !owns(port, &f->ip.src))
		return REASON_SPOOFED_IP;
	if (!reason && f->ip.fragment)
		return REASON_FRAGMENT;
	if (!reason)
		reason = check_destination(f, c);
	if (!reason)
		reason = check_size(skb, f, pc);
	return reason;
}
