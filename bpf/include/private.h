/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include "door.h"
#include "multicast.h"
#include "resolve.h"
#include "toobig.h"

/*
 * What a port of a private network sends. The network is one Ethernet segment.
 * Managed, it leases addresses: a port speaks for those it was given, and neither
 * leases any itself nor is a router to others. Unmanaged, addresses are the
 * guests' own, any protocol goes from MAC to MAC, and only what the table knows
 * to be another one's is refused. A port's MAC is its own in both.
 */

static __always_inline bool is_managed(const struct port_cfg *pc)
{
	return !(pc->flags & PORT_UNMANAGED);
}

/* A source that no packet has, or only the host's own services. */
static __always_inline bool is_impossible_source(const struct inet *p)
{
	if (p->family == 6)
		return is_multicast6(&p->src) || (is_low6(&p->src) && !is_unspecified(&p->src));
	return ip16_v4(&p->src) && is_special(ip16_v4(&p->src));
}

/* Without an address a guest may only look for one, or for groups. */
static __always_inline bool may_be_unspecified(const struct inet *p)
{
	if (p->family == 6)
		return is_mld(p);
	return is_igmp(p) || is_dhcp(p);
}

static __noinline enum reason check_source(const struct inet *p, const struct port_cfg *pc, __u32 port)
{
	if (is_impossible_source(p))
		return REASON_BAD_SOURCE;
	if (p->family == 6 ? is_unspecified(&p->src) : !ip16_v4(&p->src))
		return may_be_unspecified(p) ? REASON_NONE : REASON_SPOOFED_IP;
	return may_claim(pc, port, &p->src) ? REASON_NONE : REASON_SPOOFED_IP;
}

/* Out of the port: with a firewall at it, its policy is asked. */
static __always_inline enum reason dismiss(struct __sk_buff *skb, struct work *w, const struct port_cfg *pc, __u32 port)
{
	if (!(pc->flags & PORT_FIREWALL))
		return REASON_NONE;
	if (!is_ip(&w->f))
		return REASON_NOT_IP;
	if (is_on_link(&w->f.ip))
		return REASON_NONE;
	begin_visit(&w->v, &w->f, port, DIRECTION_OUT);
	return examine(skb, w, pc);
}

/* To all, or to a group. */
static __noinline int flood(struct __sk_buff *skb, struct work *w, const struct cfg *c, const struct port_cfg *pc,
			    __u32 port)
{
	struct speaker from = { .vni = pc->vni, .port = port };
	struct bum *list = bpf_map_lookup_elem(&bum, &from.vni);
	struct pace *p = bpf_map_lookup_elem(&pace, &port);

	if (!list || !p)
		return drop(&w->f, REASON_NO_NETWORK);
	if (!keeps_pace(&p->bum, list->rate))
		return drop(&w->f, REASON_BUM_RATE);
	return replicate(skb, w, c, list, from);
}

/* To one station. */
static __noinline int forward(struct __sk_buff *skb, struct work *w, const struct cfg *c, const struct port_cfg *pc,
			      __u32 port)
{
	struct station *to = station_of(pc->vni, w->f.dst);

	if (same_mac(w->f.dst, pc->gateway_mac))
		return drop(&w->f, REASON_TO_SERVER);
	if (!to || to->port == port)
		return drop(&w->f, REASON_UNKNOWN_MAC);
	if (to->port)
		return to_station(skb, w, pc->vni, to->port);
	return to_host(skb, &w->f, c, pc->vni, to->endpoint);
}

static __always_inline int carry(struct __sk_buff *skb, struct work *w, const struct cfg *c, const struct port_cfg *pc,
				 __u32 port)
{
	return is_group_mac(w->f.dst) ? flood(skb, w, c, pc, port) : forward(skb, w, c, pc, port);
}

static __always_inline int resolve(struct __sk_buff *skb, struct work *w, const struct cfg *c,
				   const struct port_cfg *pc, __u32 port)
{
	bool arp = w->f.proto == bpf_htons(ETH_P_ARP);
	enum reason why = REASON_NONE;
	enum resolution r;

	r = arp ? resolve_arp(skb, &w->f, pc, port, &why) : resolve_nd(skb, &w->f, pc, port, &why);
	if (r == UNRESOLVED)
		return drop(&w->f, why);
	if (r != RESOLVED)
		return carry(skb, w, c, pc, port);
	skb->mark = GUARD_MARK;
	return redirected(&w->f, bpf_redirect(pc->ifindex, 0), arp ? REASON_ARP_ANSWERED : REASON_ND_ANSWERED);
}

/* Neither IP nor ARP: between guests who have agreed on it. */
static __always_inline int from_other(struct __sk_buff *skb, struct work *w, const struct cfg *c,
				      const struct port_cfg *pc, __u32 port)
{
	if (w->f.proto == bpf_htons(ETH_P_8021Q) || w->f.proto == bpf_htons(ETH_P_8021AD))
		return drop(&w->f, REASON_VLAN);
	if (is_managed(pc) || pc->flags & PORT_FIREWALL)
		return drop(&w->f, w->f.reason ?: REASON_NOT_IP);
	if (w->f.reason)
		return drop(&w->f, w->f.reason);
	return carry(skb, w, c, pc, port);
}

/* ND of all kinds. */
static __always_inline int from_nd_private(struct __sk_buff *skb, struct work *w, const struct cfg *c,
					   const struct port_cfg *pc, __u32 port)
{
	__u8 type = w->f.ip.icmp_type;

	if (type == ND_NEIGHBOUR_SOLICITATION || type == ND_NEIGHBOUR_ADVERTISEMENT)
		return resolve(skb, w, c, pc, port);
	if (!is_managed(pc))
		return check_source(&w->f.ip, pc, port) && !is_unspecified(&w->f.ip.src)
			       ? drop(&w->f, REASON_SPOOFED_ND)
			       : carry(skb, w, c, pc, port);
	if (type == ND_ROUTER_ADVERTISEMENT)
		return drop(&w->f, REASON_ROGUE_RA);
	if (type == ND_REDIRECT || w->f.ip.fragment || w->f.ip.ttl != ND_HOP_LIMIT ||
	    (!is_unspecified(&w->f.ip.src) && !may_claim(pc, port, &w->f.ip.src)))
		return drop(&w->f, REASON_SPOOFED_ND);
	return punt(skb, &w->f, port);
}

/* DHCP in a network that leases addresses itself. */
static __always_inline int from_dhcp_private(struct __sk_buff *skb, const struct frame *f, const struct port_cfg *pc,
					     __u32 port)
{
	const struct inet *p = &f->ip;
	enum reason reason;

	if (p->family == 4 && p->sport == bpf_htons(DHCP_SERVER))
		return drop(f, REASON_ROGUE_DHCP);
	if (p->family == 6 && p->sport == bpf_htons(DHCP6_SERVER))
		return drop(f, REASON_ROGUE_DHCP6);
	reason = check_source(p, pc, port);
	if (reason || p->fragment)
		return drop(f, reason ?: REASON_FRAGMENT);
	return punt(skb, f, port);
}

/*
 * The frame's source MAC is the port's; nothing else of it was looked at, so
 * f->reason may be anything. Global, so that the verifier reads it once; no
 * caller passes NULL.
 */
__noinline int from_private(struct __sk_buff *skb, struct work *w, const struct cfg *c, const struct port_cfg *pc,
			    __u32 port)
{
	enum reason reason;

	if (!w || !c || !pc)
		return drop_blind(REASON_NO_NETWORK);
	if (w->f.proto == bpf_htons(ETH_P_ARP))
		return resolve(skb, w, c, pc, port);
	if (!is_ip(&w->f))
		return from_other(skb, w, c, pc, port);
	if (w->f.reason)
		return drop(&w->f, w->f.reason);
	if (is_nd(&w->f.ip))
		return from_nd_private(skb, w, c, pc, port);
	if (is_managed(pc) && is_dhcp(&w->f.ip))
		return from_dhcp_private(skb, &w->f, pc, port);
	reason = check_source(&w->f.ip, pc, port);
	if (reason)
		return drop(&w->f, reason);
	if (is_too_big(skb, &w->f, pc))
		return too_big_out(skb, &w->f, pc, port);
	if (is_metadata(&w->f) && same_mac(w->f.dst, pc->gateway_mac))
		return to_metadata(skb, w, c, pc, port);
	reason = dismiss(skb, w, pc, port);
	if (reason)
		return drop(&w->f, reason);
	return carry(skb, w, c, pc, port);
}
