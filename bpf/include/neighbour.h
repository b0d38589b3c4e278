/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include "punt.h"
#include "vm.h"

/*
 * What stays on the link of a public port: ARP, ND and DHCP. The gateway is
 * whatever address is asked for: there is no L2 between VMs.
 */

/* ARP */

/* Turn the question under the cursor into its answer. */
static __always_inline enum reason answer_arp(struct cursor *c, struct ethhdr *eth, const struct port_cfg *pc,
					      __u32 port)
{
	struct arphdr *arp = take(c, sizeof(*arp));
	struct ip16 sender, target;
	__be32 asked;

	if (!arp)
		return REASON_MALFORMED;
	if (arp->hardware != bpf_htons(1) || arp->protocol != bpf_htons(ETH_P_IP) || arp->op != bpf_htons(1))
		return REASON_ARP_IGNORED;
	if (!same_mac(arp->sender_mac, pc->mac))
		return REASON_SPOOFED_ARP;
	sender = ip16_of(arp->sender_ip);
	target = ip16_of(arp->target_ip);
	if (arp->sender_ip && !owns(port, &sender))
		return REASON_SPOOFED_ARP;
	/* A VM that asks for its own address looks for a duplicate. */
	if (owns(port, &target))
		return REASON_ARP_IGNORED;

	asked = arp->target_ip;
	arp->op = bpf_htons(2);
	__builtin_memcpy(arp->target_mac, arp->sender_mac, ETH_ALEN);
	arp->target_ip = arp->sender_ip;
	__builtin_memcpy(arp->sender_mac, pc->gateway_mac, ETH_ALEN);
	arp->sender_ip = asked;
	__builtin_memcpy(eth->h_dest, pc->mac, ETH_ALEN);
	__builtin_memcpy(eth->h_source, pc->gateway_mac, ETH_ALEN);
	return REASON_NONE;
}

static __always_inline int from_arp(struct __sk_buff *skb, const struct frame *f, const struct port_cfg *pc, __u32 port)
{
	struct cursor c = skb_cursor(skb);
	struct ethhdr *eth = take(&c, sizeof(*eth));
	enum reason reason = REASON_MALFORMED;

	if (eth)
		reason = answer_arp(&c, eth, pc, port);
	if (reason)
		return drop(f, reason);
	skb->mark = GUARD_MARK;
	return redirected(f, bpf_redirect(pc->ifindex, 0), REASON_ARP_ANSWERED);
}

/* ND (RFC 4861): the same for IPv6. */

#define ND_SOURCE_LINK_ADDRESS 1
#define ND_TARGET_LINK_ADDRESS 2

#define ND_HOP_LIMIT 255 /* a router would have taken one off */

/* R, S and O: a router's answer to a question, to replace what was known. */
#define ND_ANSWER_FLAGS 0xe0000000

struct ndhdr {
	__u8 type;
	__u8 code;
	__u16 checksum;
	__be32 flags;
	struct ip16 target;
};

struct ndopt {
	__u8 type;
	__u8 length; /* in units of 8 bytes */
	__u8 mac[ETH_ALEN];
};

/* A neighbour advertisement, padded so that all behind Ethernet is aligned. */
struct advertisement {
	__u8 pad[2];
	struct ethhdr eth;
	struct ipv6hdr ip;
	struct ndhdr nd;
	struct ndopt option;
};

#define ADVERTISEMENT_LEN (sizeof(struct advertisement) - 2)
#define ND_LEN		  (sizeof(struct ndhdr) + sizeof(struct ndopt))

/* May the port speak so on its link? It has any link-local address it likes. */
static __always_inline bool speaks_as(__u32 port, const struct ip16 *ip)
{
	return is_link_local(ip) || is_unspecified(ip) || owns(port, ip);
}

/* RFC 4861, 7.1, and RFC 6980: neither fragments nor extensions. */
static __always_inline enum reason check_nd(const struct frame *f, __u32 port)
{
	const struct inet *p = &f->ip;

	if (p->icmp_type == ND_ROUTER_ADVERTISEMENT)
		return REASON_ROGUE_RA;
	if (p->icmp_type == ND_REDIRECT || p->ttl != ND_HOP_LIMIT || p->icmp_code || p->fragment ||
	    p->l4 != p->l3 + sizeof(struct ipv6hdr))
		return REASON_SPOOFED_ND;
	return speaks_as(port, &p->src) ? REASON_NONE : REASON_SPOOFED_ND;
}

/* Read a solicitation or an advertisement, and whether the MAC in it is the port's. */
static __always_inline enum reason read_nd(struct __sk_buff *skb, const struct frame *f, const struct port_cfg *pc,
					   struct ip16 *target)
{
	struct cursor c = skb_cursor(skb);
	struct ndopt *option;
	struct ndhdr *nd;

	if (!take(&c, sizeof(struct ethhdr) + sizeof(struct ipv6hdr)))
		return REASON_MALFORMED;
	nd = take(&c, sizeof(*nd));
	if (!nd || f->ip.length < sizeof(struct ipv6hdr) + sizeof(*nd))
		return REASON_MALFORMED;
	*target = nd->target;
	option = take(&c, sizeof(*option));
	if (option && f->ip.length >= sizeof(struct ipv6hdr) + ND_LEN &&
	    (option->type == ND_SOURCE_LINK_ADDRESS || option->type == ND_TARGET_LINK_ADDRESS) &&
	    !same_mac(option->mac, pc->mac))
		return REASON_SPOOFED_ND;
	return REASON_NONE;
}

static __always_inline void fill_advertisement(struct advertisement *a, const struct frame *f,
					       const struct port_cfg *pc, const struct ip16 *target)
{
	__s64 sum;

	__builtin_memset(a, 0, sizeof(*a));
	__builtin_memcpy(a->eth.h_dest, pc->mac, ETH_ALEN);
	__builtin_memcpy(a->eth.h_source, pc->gateway_mac, ETH_ALEN);
	a->eth.h_proto = bpf_htons(ETH_P_IPV6);
	a->ip.version = 6;
	a->ip.payload_len = bpf_htons(ND_LEN);
	a->ip.nexthdr = IPPROTO_ICMPV6;
	a->ip.hop_limit = ND_HOP_LIMIT;
	__builtin_memcpy(&a->ip.saddr, target, sizeof(a->ip.saddr));
	__builtin_memcpy(&a->ip.daddr, &f->ip.src, sizeof(a->ip.daddr));
	a->nd.type = ND_NEIGHBOUR_ADVERTISEMENT;
	a->nd.flags = bpf_htonl(ND_ANSWER_FLAGS);
	a->nd.target = *target;
	a->option.type = ND_TARGET_LINK_ADDRESS;
	a->option.length = 1;
	__builtin_memcpy(a->option.mac, pc->gateway_mac, ETH_ALEN);
	/* Addresses and message lie together; length and protocol are the rest of it. */
	sum = bpf_csum_diff(NULL, 0, (__be32 *)&a->ip.saddr, 32 + ND_LEN,
			    bpf_htonl(ND_LEN) + bpf_htonl(IPPROTO_ICMPV6));
	a->nd.checksum = ~csum_fold(sum);
}

/* Every address is the gateway's; what asks without an own one looks for a duplicate. */
static __noinline enum reason answer_nd(struct __sk_buff *skb, const struct frame *f, const struct port_cfg *pc,
					__u32 port)
{
	struct advertisement a;
	struct ip16 target;
	enum reason reason;

	reason = read_nd(skb, f, pc, &target);
	if (reason)
		return reason;
	if (f->ip.icmp_type == ND_NEIGHBOUR_ADVERTISEMENT)
		return is_link_local(&target) || owns(port, &target) ? REASON_ND_IGNORED : REASON_SPOOFED_ND;
	if (is_multicast6(&target))
		return REASON_SPOOFED_ND;
	if (is_unspecified(&f->ip.src) || owns(port, &target))
		return REASON_ND_IGNORED;
	fill_advertisement(&a, f, pc, &target);
	if (skb->len != ADVERTISEMENT_LEN && bpf_skb_change_tail(skb, ADVERTISEMENT_LEN, 0))
		return REASON_MALFORMED;
	return bpf_skb_store_bytes(skb, 0, &a.eth, ADVERTISEMENT_LEN, 0) ? REASON_MALFORMED : REASON_NONE;
}

static __always_inline int from_nd(struct __sk_buff *skb, const struct frame *f, const struct port_cfg *pc, __u32 port)
{
	enum reason reason = check_nd(f, port);

	if (reason)
		return drop(f, reason);
	if (f->ip.icmp_type == ND_ROUTER_SOLICITATION)
		return punt(skb, f, port);
	reason = answer_nd(skb, f, pc, port);
	if (reason)
		return drop(f, reason);
	skb->mark = GUARD_MARK;
	return redirected(f, bpf_redirect(pc->ifindex, 0), REASON_ND_ANSWERED);
}

/* DHCP: a port is a client, and the agent its server. */

#define DHCP_SERVER  67
#define DHCP_CLIENT  68
#define DHCP6_SERVER 547

static __always_inline bool is_dhcp(const struct inet *p)
{
	__be16 server = p->family == 4 ? bpf_htons(DHCP_SERVER) : bpf_htons(DHCP6_SERVER);

	if (p->proto != IPPROTO_UDP)
		return false;
	if (p->sport == server)
		return true;
	return p->dport == server && (p->family == 6 || p->sport == bpf_htons(DHCP_CLIENT));
}

static __always_inline int from_dhcp(struct __sk_buff *skb, const struct frame *f, __u32 port)
{
	const struct inet *p = &f->ip;

	if (p->family == 4 && p->sport == bpf_htons(DHCP_SERVER))
		return drop(f, REASON_ROGUE_DHCP);
	if (p->family == 6 && p->sport == bpf_htons(DHCP6_SERVER))
		return drop(f, REASON_ROGUE_DHCP6);
	if (p->family == 6 ? !speaks_as(port, &p->src) : ip16_v4(&p->src) && !owns(port, &p->src))
		return drop(f, REASON_SPOOFED_IP);
	if (p->fragment)
		return drop(f, REASON_FRAGMENT);
	return punt(skb, f, port);
}
