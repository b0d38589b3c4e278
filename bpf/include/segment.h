/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include "examine.h"
#include "punt.h"

/*
 * A private network as one Ethernet segment: frames go by MAC, to a port of this
 * host or to the host that has it. Who sends what, private.h says; what comes
 * from other hosts, overlay_in.
 */

#define IGMP_QUERY   0x11
#define IGMP1_REPORT 0x12
#define IGMP2_REPORT 0x16
#define IGMP2_LEAVE  0x17
#define IGMP3_REPORT 0x22
#define MLD_QUERY    130
#define MLD1_REPORT  131
#define MLD1_DONE    132
#define MLD2_REPORT  143

static __always_inline bool is_igmp(const struct inet *p)
{
	return p->family == 4 && p->proto == IPPROTO_IGMP && p->fragment != FRAGMENT_LATER;
}

static __always_inline bool is_mld(const struct inet *p)
{
	return p->family == 6 && p->proto == IPPROTO_ICMPV6 && p->fragment != FRAGMENT_LATER &&
	       ((p->icmp_type >= MLD_QUERY && p->icmp_type <= MLD1_DONE) || p->icmp_type == MLD2_REPORT);
}

/* What only arranges the link: no policy has a word for it. */
static __always_inline bool is_on_link(const struct inet *p)
{
	return is_igmp(p) || is_mld(p) || (p->family == 6 && !p->fragment && is_nd(p));
}

static __always_inline bool is_group_mac(const __u8 *mac)
{
	return mac[0] & 1;
}

static __noinline struct station *station_of(__u32 vni, const __u8 *mac)
{
	struct fdb_key key = { .vni = vni };

	struct station *s;

	__builtin_memcpy(key.mac, mac, sizeof(key.mac));
	s = bpf_map_lookup_elem(&fdb, &key);
	if (trace)
		trace_place(TRACE_STATION, s ? s->port : 0, vni, s ? s->endpoint : 0, 0);
	return s;
}

static __noinline struct neigh *owner_of(__u32 vni, const struct ip16 *ip)
{
	struct neigh_key key = { .vni = vni, .ip = *ip };

	return bpf_map_lookup_elem(&neigh, &key);
}

/* Does the port's policy have a word in this? If so, *reason may be one already. */
static __always_inline bool is_judged(const struct frame *f, const struct port_cfg *pc, enum reason *reason)
{
	*reason = REASON_NONE;
	if (!(pc->flags & PORT_FIREWALL))
		return false;
	if (!is_ip(f)) {
		*reason = f->proto == bpf_htons(ETH_P_ARP) ? REASON_NONE : REASON_NOT_IP;
		return false;
	}
	return !is_on_link(&f->ip);
}

/* Into a port of the network: with a firewall at it, its policy is asked. */
static __always_inline enum reason admit(struct __sk_buff *skb, struct work *w, const struct port_cfg *pc, __u32 port)
{
	enum reason reason;

	if (!is_judged(&w->f, pc, &reason))
		return reason;
	begin_visit(&w->v, &w->f, port, DIRECTION_IN);
	return examine(skb, w, pc);
}

/* The same for one copy of many: those are never errors, and not worth putting
 * fragments together. */
static __always_inline enum reason admit_copy(struct work *w, const struct port_cfg *pc, __u32 port)
{
	enum reason reason;

	if (!is_judged(&w->f, pc, &reason))
		return reason;
	if (w->f.ip.fragment)
		return REASON_FRAGMENT;
	begin_visit(&w->v, &w->f, port, DIRECTION_IN);
	return track(&w->v, pc);
}

static __always_inline int to_station(struct __sk_buff *skb, struct work *w, __u32 vni, __u32 port)
{
	struct port_cfg *pc = port_by_id(port);
	enum reason reason;

	if (!pc || pc->vni != vni)
		return drop(&w->f, REASON_NO_PORT);
	stand_at(skb, &w->f, port, DIRECTION_IN);
	reason = admit(skb, w, pc, port);
	if (reason)
		return drop(&w->f, reason);
	skb->mark = GUARD_MARK;
	return redirected(&w->f, bpf_redirect(pc->ifindex, 0), REASON_TO_PORT);
}

/* Address the frame to a host. It is not cut in two on its way: the uplink has
 * room for it, or the port would not be here. */
static __always_inline long address_to(struct __sk_buff *skb, const struct cfg *c, __u32 vni, __be32 endpoint)
{
	struct bpf_tunnel_key key = {
		.tunnel_id = vni,
		.remote_ipv4 = bpf_ntohl(endpoint),
		.local_ipv4 = bpf_ntohl(c->endpoint),
		.tunnel_ttl = OUTER_TTL,
	};

	skb->mark = 0;
	return bpf_skb_set_tunnel_key(skb, &key, sizeof(key), BPF_F_ZERO_CSUM_TX | BPF_F_DONT_FRAGMENT);
}

static __noinline int to_host(struct __sk_buff *skb, const struct frame *f, const struct cfg *c, __u32 vni,
			      __be32 endpoint)
{
	if (!c->overlay || address_to(skb, c, vni, endpoint))
		return drop(f, REASON_NO_NETWORK);
	return redirected(f, bpf_redirect(c->overlay, 0), REASON_TO_TUNNEL);
}
