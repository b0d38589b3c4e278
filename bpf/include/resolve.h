/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include "multicast.h"
#include "neighbour.h"

/*
 * ARP and ND in a private network. Who has an address stands in the table: such
 * a question is answered here and reaches nobody. What the table does not know
 * (addresses that guests gave themselves, or that several may have) is asked of
 * all. Nobody says of an address that it is his while it is another one's.
 */

/* Answers, and what to do with a message that has none. */
enum resolution {
	RESOLVED,  /* the frame is the answer */
	FLOOD,	   /* all are asked, or told */
	FORWARD,   /* to one station, that is known to be there */
	UNRESOLVED /* dropped: *why says for what reason */
};

/* May the port say that it has this address? Link-local ones are whoever's says
 * so first, but for those that are made of a MAC. */
static __noinline bool may_claim(const struct port_cfg *pc, __u32 port, const struct ip16 *ip)
{
	struct neigh *owner = owner_of(pc->vni, ip);

	if (owner)
		return owner->port == port;
	return pc->flags & PORT_UNMANAGED || is_link_local(ip) || owns(port, ip);
}

static __always_inline bool is_unicast_to_station(const struct frame *f, const struct port_cfg *pc)
{
	return !is_group_mac(f->dst) && !same_mac(f->dst, pc->gateway_mac);
}

static __always_inline void turn_arp(struct arphdr *arp, struct ethhdr *eth, const __u8 *mac)
{
	__be32 asked = arp->target_ip;

	__builtin_memcpy(eth->h_dest, arp->sender_mac, ETH_ALEN);
	__builtin_memcpy(eth->h_source, mac, ETH_ALEN);
	__builtin_memcpy(arp->target_mac, arp->sender_mac, ETH_ALEN);
	arp->target_ip = arp->sender_ip;
	__builtin_memcpy(arp->sender_mac, mac, ETH_ALEN);
	arp->sender_ip = asked;
	arp->op = bpf_htons(2);
}

static __always_inline enum resolution unresolved(enum reason *why, enum reason reason)
{
	*why = reason;
	return UNRESOLVED;
}

static __noinline enum resolution resolve_arp(struct __sk_buff *skb, const struct frame *f, const struct port_cfg *pc,
					      __u32 port, enum reason *why)
{
	struct cursor c = skb_cursor(skb);
	struct ethhdr *eth = take(&c, sizeof(*eth));
	struct arphdr *arp = take(&c, sizeof(*arp));
	struct ip16 sender, target;
	struct neigh *owner;

	if (!eth || !arp)
		return unresolved(why, REASON_MALFORMED);
	if (arp->hardware != bpf_htons(1) || arp->protocol != bpf_htons(ETH_P_IP) || arp->hardware_len != ETH_ALEN ||
	    arp->protocol_len != 4 || (arp->op != bpf_htons(1) && arp->op != bpf_htons(2)))
		return unresolved(why, REASON_ARP_IGNORED);
	sender = ip16_of(arp->sender_ip);
	target = ip16_of(arp->target_ip);
	if (!same_mac(arp->sender_mac, pc->mac) || (arp->sender_ip && !may_claim(pc, port, &sender)))
		return unresolved(why, REASON_SPOOFED_ARP);
	if (is_unicast_to_station(f, pc))
		return FORWARD;
	owner = owner_of(pc->vni, arp->op == bpf_htons(2) ? &sender : &target);
	if (!owner)
		return FLOOD;
	/* An announcement of what all know, or a search for its own duplicate. */
	if (arp->op == bpf_htons(2) || owner->port == port)
		return unresolved(why, REASON_ARP_IGNORED);
	turn_arp(arp, eth, owner->mac);
	return RESOLVED;
}

/* ND */

#define ND_OPTIONS_MAX 4
#define ND_SOLICITED   0x40000000
#define ND_OVERRIDE    0x20000000

/* Every link-layer address in the options is the port's. */
static __noinline enum reason check_options(struct __sk_buff *skb, const struct inet *p, const struct port_cfg *pc)
{
	__u32 at = p->l4 + sizeof(struct ndhdr), end = p->l3 + p->length;
	struct ndopt option;

	for (int i = 0; i < ND_OPTIONS_MAX && at < end; i++) {
		if (bpf_skb_load_bytes(skb, at, &option, sizeof(option)) || !option.length)
			return REASON_MALFORMED;
		if ((option.type == ND_SOURCE_LINK_ADDRESS || option.type == ND_TARGET_LINK_ADDRESS) &&
		    !same_mac(option.mac, pc->mac))
			return REASON_SPOOFED_ND;
		at += option.length * 8;
	}
	return at == end ? REASON_NONE : REASON_MALFORMED;
}

/* RFC 4861, 7.1: what a station may send. RFC 6980: in one piece. */
static __noinline enum reason check_nd_private(struct __sk_buff *skb, const struct frame *f, const struct port_cfg *pc,
					       __u32 port)
{
	const struct inet *p = &f->ip;

	if (p->ttl != ND_HOP_LIMIT || p->icmp_code || p->fragment || p->l4 != p->l3 + sizeof(struct ipv6hdr))
		return REASON_SPOOFED_ND;
	if (is_unspecified(&p->src) && p->icmp_type == ND_NEIGHBOUR_ADVERTISEMENT)
		return REASON_SPOOFED_ND;
	if (!is_unspecified(&p->src) && !may_claim(pc, port, &p->src))
		return REASON_SPOOFED_ND;
	return p->length < sizeof(struct ipv6hdr) + sizeof(struct ndhdr) ? REASON_MALFORMED : check_options(skb, p, pc);
}

static __always_inline void seal(struct advertisement *a)
{
	__s64 sum;

	a->nd.checksum = 0;
	sum = bpf_csum_diff(NULL, 0, (__be32 *)&a->ip.saddr, 32 + ND_LEN,
			    bpf_htonl(ND_LEN) + bpf_htonl(IPPROTO_ICMPV6));
	a->nd.checksum = ~csum_fold(sum);
}

/* The answer that the owner would give. Who asks without an address of its own
 * is told by way of all nodes, which here means itself. */
static __noinline enum resolution answer_for(struct __sk_buff *skb, const struct frame *f, const struct port_cfg *pc,
					     const struct neigh *owner, const struct ip16 *target)
{
	struct advertisement a;
	bool duplicate = is_unspecified(&f->ip.src);

	if (!owner)
		return UNRESOLVED;
	fill_advertisement(&a, f, pc, target);
	__builtin_memcpy(a.eth.h_source, owner->mac, ETH_ALEN);
	__builtin_memcpy(a.option.mac, owner->mac, ETH_ALEN);
	a.nd.flags = bpf_htonl(duplicate ? ND_OVERRIDE : ND_SOLICITED | ND_OVERRIDE);
	if (duplicate) {
		__u8 all_nodes[ETH_ALEN] = { 0x33, 0x33, 0, 0, 0, 1 };

		__builtin_memcpy(a.eth.h_dest, all_nodes, ETH_ALEN);
		a.ip.daddr.in6_u.u6_addr8[0] = 0xff;
		a.ip.daddr.in6_u.u6_addr8[1] = 0x02;
		a.ip.daddr.in6_u.u6_addr8[15] = 0x01;
	}
	seal(&a);
	if (skb->len != ADVERTISEMENT_LEN && bpf_skb_change_tail(skb, ADVERTISEMENT_LEN, 0))
		return UNRESOLVED;
	return bpf_skb_store_bytes(skb, 0, &a.eth, ADVERTISEMENT_LEN, 0) ? UNRESOLVED : RESOLVED;
}

static __noinline enum resolution resolve_nd(struct __sk_buff *skb, const struct frame *f, const struct port_cfg *pc,
					     __u32 port, enum reason *why)
{
	bool advertised = f->ip.icmp_type == ND_NEIGHBOUR_ADVERTISEMENT;
	struct neigh *owner;
	struct ip16 target;

	*why = check_nd_private(skb, f, pc, port);
	if (*why)
		return UNRESOLVED;
	if (bpf_skb_load_bytes(skb, f->ip.l4 + offsetof(struct ndhdr, target), &target, sizeof(target)))
		return unresolved(why, REASON_MALFORMED);
	if (is_multicast6(&target) || (advertised && !may_claim(pc, port, &target)))
		return unresolved(why, REASON_SPOOFED_ND);
	if (is_unicast_to_station(f, pc))
		return FORWARD;
	owner = owner_of(pc->vni, &target);
	if (!owner)
		return FLOOD;
	if (advertised || owner->port == port)
		return unresolved(why, REASON_ND_IGNORED);
	*why = REASON_MALFORMED;
	return answer_for(skb, f, pc, owner, &target);
}
