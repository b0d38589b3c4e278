/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include "about.h"
#include "encap.h"
#include "flow.h"
#include "hairpin.h"
#include "limit.h"
#include "options.h"
#include "piece.h"
#include "reach.h"
#include "refuse.h"
#include "rewrite.h"
#include "tell.h"

/* A balanced packet at a host that has backends: where it belongs, whether its
 * owner takes it, and the way into a port of this host. */

/* Where a backend is: another host (t->to), or a port of this one (t->at). */
static __always_inline enum reason locate(struct trip *t, const struct cfg *c)
{
	struct fdb_key key = { .vni = c->lb_vni };
	struct local_key here = { .service = t->svc->id };
	struct backend *b = backend_of(t->backend);
	struct station *station;

	if (!b)
		return REASON_NO_BACKEND;
	if (b->endpoint && b->endpoint != c->endpoint) {
		t->to = b;
		return REASON_NONE;
	}
	__builtin_memcpy(key.mac, b->mac, sizeof(key.mac));
	station = bpf_map_lookup_elem(&fdb, &key);
	if (!station)
		return REASON_NO_LOCAL;
	t->port = station->port;
	here.port = t->port;
	t->at = bpf_map_lookup_elem(&local, &here);
	return t->at ? REASON_NONE : REASON_NO_LOCAL;
}

/* The other owner of the slot: the one the encapsulation names, else the one
 * this host's own record of the slot names; 0 in the steady state. */
static __always_inline __u32 next_owner(struct xdp_md *ctx, const struct trip *t)
{
	__u32 cur = 0, prev = 0;

	if (t->other && t->other != t->backend)
		return t->other;
	if (t->hop)
		return 0;
	if (t->svc->flags & SVC_OPTIONS)
		return optional_next(ctx, t);
	if (slot_of(t->svc, t->hash, &cur, &prev))
		return 0;
	if (cur != t->backend)
		return cur;
	return prev != t->backend ? prev : 0;
}

/* Off to another host. */
static __always_inline int send(struct xdp_md *ctx, const struct cfg *c, struct trip *t)
{
	struct nexthop nexthop = nexthop_of(t->to->nexthop);
	struct outside o = {
		.endpoint = t->to->endpoint,
		.hash = t->hash,
		.generation = t->svc->generation,
		.other = t->other,
		.hop = t->hop,
	};
	enum reason reason;

	if (!(nexthop.flags & NEXTHOP_VALID))
		return end_trip(t, XDP_DROP, REASON_NO_NEXTHOP);
	if (t->svc->mtu && t->pkt.length > t->svc->mtu)
		return tell_client(ctx, c, t, t->svc->mtu);
	if (t->pkt.ttl <= 1)
		return tell_client(ctx, c, t, 0);
	if (t->piece.kind == FRAGMENT_FIRST)
		remember_piece(t);
	__builtin_memcpy(o.mac, t->to->mac, sizeof(o.mac));
	reason = encapsulate(ctx, c, &t->pkt, &nexthop, &o);
	if (reason)
		return end_trip(t, XDP_DROP, reason);
	return end_trip(t, XDP_TX, t->hop ? REASON_FORWARDED : REASON_SENT);
}

enum fate {
	FATE_DELIVER,
	FATE_HAND_ON,
	FATE_REFUSE,
	FATE_DROP,
};

/* What a host does with a packet for a backend of its own whose flow it does not
 * know. One that it knows it delivers: what is delivered anyway, which is nearly
 * all, need not be looked for. */
static __always_inline enum fate weigh(const struct trip *t, __u32 next)
{
	if (t->piece.kind == FRAGMENT_LATER)
		return FATE_DELIVER;
	if (t->error)
		return next && t->hop == 0 ? FATE_HAND_ON : FATE_DROP;
	if (is_syn(&t->pkt)) {
		bool closed = t->at->flags & LOCAL_DRAINING || is_full(t);

		if ((t->at->flags & LOCAL_READY && !closed) || t->svc->flags & SVC_PANIC)
			return FATE_DELIVER;
		if (next && t->hop < HOPS_MAX)
			return FATE_HAND_ON;
		return closed ? FATE_REFUSE : FATE_DELIVER;
	}
	if (next && t->hop == 0)
		return FATE_HAND_ON;
	if (next && t->hop == 1 && t->pkt.proto == IPPROTO_UDP)
		return FATE_HAND_ON;
	return FATE_DELIVER;
}

/*
 * Does this port know the flow as one of this service? It may be there under a
 * translated port, when another flow has its tuple. A SYN on an ending flow
 * begins a new one, so for it that flow is not known.
 */
static __noinline bool is_known(struct ct_key *key, __u32 port, const struct svc *s, bool syn)
{
	__u64 now = bpf_ktime_get_ns();
	void *est = flows_of(port), *fresh;
	struct ct *f;

	if (!est || !s)
		return false;
	fresh = new_flows_of(port);
	if (!fresh)
		return false;
	f = live_flow(est, fresh, key, now);
	if (!f)
		return false;
	if (f->service == s->id && f->vip_port == s->port)
		return !(syn && is_ending(f));
	key->alias = 1;
	key->own = s->vip;
	key->own_port = s->port;
	return live_flow(est, fresh, key, now) != NULL;
}

static __always_inline bool is_known_here(const struct trip *t)
{
	struct ct_key key = {
		.peer = t->pkt.saddr,
		.own = t->at->ip,
		.peer_port = t->pkt.sport,
		.own_port = t->at->target_port,
		.proto = t->pkt.proto,
	};

	if (same_ip(&key.peer, &key.own))
		key.peer = hairpin_of(&key.own);
	return is_known(&key, t->port, t->svc, is_syn(&t->pkt));
}

/* Into a port of this host: rewrite, leave the note, let uplink_in judge. An error
 * is rewritten there, where its flow is found. */
static __always_inline int deliver(struct xdp_md *ctx, const struct cfg *c, struct trip *t)
{
	struct port_cfg *pc = bpf_map_lookup_elem(&port_cfg, &t->port);
	struct cursor meta;
	struct note *note;
	enum reason reason;

	if (pc && pc->mtu && t->pkt.length > pc->mtu)
		return tell_client(ctx, c, t, pc->mtu);
	reason = t->error ? REASON_NONE : rewrite_destination(xdp_cursor(ctx), t);
	if (reason)
		return end_trip(t, XDP_DROP, reason);
	if (bpf_xdp_adjust_meta(ctx, -(int)sizeof(*note)))
		return end_trip(t, XDP_DROP, REASON_NO_META);
	meta = xdp_meta(ctx);
	note = take(&meta, sizeof(*note));
	if (!note)
		return end_trip(t, XDP_DROP, REASON_NO_META);
	note->flags = NOTE_PRESENT;
	note->svc = t->svc_index;
	note->backend = t->at->backend;
	note->hash = t->hash;
	if (t->piece.kind == FRAGMENT_FIRST)
		remember_piece(t);
	return end_trip(t, XDP_PASS, REASON_DELIVERED);
}

/* No owner takes the SYN. */
static __always_inline int refuse(struct xdp_md *ctx, const struct cfg *c, const struct trip *t)
{
	enum reason reason = may_refuse() ? reset(ctx, c, &t->pkt) : REASON_DRAINING;

	if (reason && !(t->at->flags & LOCAL_DRAINING))
		reason = REASON_LIMIT;
	if (reason)
		return end_trip(t, XDP_DROP, reason);
	return end_trip(t, XDP_TX, REASON_REFUSED);
}

static __always_inline void count_handed_on(const struct trip *t)
{
	__u32 id = t->svc->id;
	struct stat *s;

	if (t->probe || trace)
		return;
	s = bpf_map_lookup_elem(&svc_stat, &id);
	if (s)
		s->forwarded++;
}

/*
 * Bring the packet to its backend. While that is a port of this host, weigh
 * whether it is the right one; a next owner here is tried in the same pass.
 */
static __always_inline int travel(struct xdp_md *ctx, const struct cfg *c, struct trip *t)
{
	for (int i = 0; i <= HOPS_MAX; i++) {
		enum fate fate;
		enum reason reason;
		__u32 next, here;

		if (!t->at) {
			reason = locate(t, c);
			if (trace)
				trace_place(TRACE_BACKEND, t->port, t->backend, t->to ? t->to->endpoint : 0, 0);
			if (reason)
				return end_trip(t, XDP_DROP, reason);
			if (t->to)
				return send(ctx, c, t);
		}
		next = next_owner(ctx, t);
		fate = weigh(t, next);
		if (fate != FATE_DELIVER && is_known_here(t))
			fate = FATE_DELIVER;
		if (trace)
			trace_place(TRACE_WEIGH, t->port, t->backend, is_known_here(t), fate);
		if (fate == FATE_DELIVER)
			return deliver(ctx, c, t);
		if (!t->error && is_syn(&t->pkt))
			count_refused(t);
		if (fate == FATE_REFUSE)
			return refuse(ctx, c, t);
		if (fate == FATE_DROP)
			return end_trip(t, XDP_DROP, REASON_ICMP_UNMATCHED);
		here = t->backend;
		t->backend = next;
		t->other = here;
		t->hop++;
		t->at = NULL;
		count_handed_on(t);
	}
	return end_trip(t, XDP_DROP, REASON_HOPS);
}

/* Take the tunnel's headers off: the outer Ethernet header stays, but for the
 * type of what is in it. */
static __always_inline enum reason strip(struct xdp_md *ctx, struct trip *t, __be16 type)
{
	struct cursor c = xdp_cursor(ctx);
	struct ethhdr *eth = take(&c, sizeof(*eth));
	struct ethhdr saved;

	if (!eth)
		return REASON_MALFORMED;
	saved = *eth;
	saved.h_proto = type;
	if (bpf_xdp_adjust_head(ctx, TUNNEL_OVERHEAD))
		return REASON_NO_HEADROOM;
	c = xdp_cursor(ctx);
	eth = take(&c, sizeof(*eth));
	if (!eth)
		return REASON_MALFORMED;
	*eth = saved;
	return parse(ctx, &c, type, &t->pkt);
}

/* The service that a packet is for, or an error about one of its packets. */
static __always_inline enum reason find_service(struct xdp_md *ctx, struct trip *t)
{
	enum reason reason = service_of(&t->pkt, &t->svc, &t->svc_index);

	if (reason != REASON_NO_SERVICE || !is_error(&t->pkt))
		return reason;
	return follow_quote(ctx, t) ?: service_of(&t->pkt, &t->svc, &t->svc_index);
}

/* What this node chooses for a packet, or part of one, of a client (uplink.bpf.c). */
static enum reason choose_for(struct xdp_md *ctx, struct trip *t);

/* The stripped packet's service, and the backend at t->port. */
static __always_inline enum reason arrive(struct xdp_md *ctx, struct trip *t)
{
	struct local_key here = { .port = t->port };
	enum reason reason;

	if (is_bad_client(&t->pkt))
		return REASON_BAD_SOURCE;
	reason = find_service(ctx, t);
	if (reason)
		return reason;
	here.service = t->svc->id;
	t->at = bpf_map_lookup_elem(&local, &here);
	if (!t->at)
		return REASON_NO_LOCAL;
	t->backend = t->at->backend;
	t->hash = flow_hash(t->svc, &t->pkt);
	return REASON_NONE;
}

/* The same of what the packet turned out to be: whole, or in fragments. */
static __always_inline enum reason arrive_as(struct xdp_md *ctx, struct trip *t, enum reason reason)
{
	if (reason == REASON_FRAGMENT)
		reason = read_piece(ctx, &t->pkt, &t->piece);
	if (reason)
		return reason;
	return t->piece.kind == FRAGMENT_LATER ? follow_piece(t) : arrive(ctx, t);
}

/* A fragment that another LB node handed over. */
static __always_inline enum reason arrive_handed(struct xdp_md *ctx, const struct cfg *c, struct trip *t,
						 enum reason reason)
{
	if (reason != REASON_FRAGMENT)
		return reason ?: REASON_MALFORMED;
	t->hop = 0;
	t->other = 0;
	return take_piece(ctx, c, t, true) ?: choose_for(ctx, t);
}

/*
 * A packet to the own endpoint; the cursor stands behind the outer UDP header.
 * A known sender is a filter, not authentication: the edge keeps strangers out
 * of the underlay.
 */
static __always_inline int from_tunnel(struct xdp_md *ctx, const struct cfg *c, struct cursor cur, struct trip *t)
{
	struct fdb_key key = { .vni = c->lb_vni };
	__be32 sender = ip16_v4(&t->pkt.saddr);
	struct vxlanhdr *vxlan;
	struct ethhdr *inner;
	enum reason reason;
	struct station *station;
	struct vtep *vtep;
	__be16 type;
	bool handed;

	vtep = bpf_map_lookup_elem(&vteps, &sender);
	if (!vtep)
		return leave(XDP_DROP, REASON_UNKNOWN_ENDPOINT);
	vxlan = take(&cur, sizeof(*vxlan));
	if (!vxlan || !(vxlan->flags & VXLAN_VNI_VALID))
		return leave(XDP_DROP, REASON_MALFORMED);
	if (bpf_ntohl(vxlan->vni) >> 8 != c->lb_vni)
		return leave(XDP_PASS, REASON_PASS_OTHER_VNI);
	inner = take(&cur, sizeof(*inner));
	if (!inner)
		return leave(XDP_DROP, REASON_MALFORMED);
	type = inner->h_proto;
	if (type == bpf_htons(ETH_P_REACH))
		return from_reach(ctx, c, cur, vtep->host);
	if (!is_inet(type) || read_tag(inner->h_source, t))
		return leave(XDP_DROP, REASON_MALFORMED);
	__builtin_memcpy(key.mac, inner->h_dest, sizeof(key.mac));
	station = bpf_map_lookup_elem(&fdb, &key);
	handed = !station && is_owner_mac(key.mac);
	if (!station && !handed)
		return leave(XDP_DROP, REASON_NO_LOCAL);
	if (station)
		t->port = station->port;
	reason = strip(ctx, t, type);
	if (handed)
		reason = arrive_handed(ctx, c, t, reason);
	else
		reason = arrive_as(ctx, t, reason);
	if (reason)
		return leave(XDP_DROP, reason);
	return travel(ctx, c, t);
}
