// SPDX-License-Identifier: Apache-2.0
//go:build ignore

#include <linux/pkt_cls.h>

#include "decap.h"
#include "deliver.h"
#include "echo.h"
#include "export.h"
#include "nlb.h"
#include "options.h"
#include "port.h"
#include "underlay.h"

/* The uplink: what comes from the network, first in XDP, then at tcx. */

/* Source of the self-test's packets; that of IPv6 is fe80:: with the same last four
 * bytes. Only a test run can use it: such a packet does not come from the uplink. */
const volatile __be32 probe_source = 0;

/* A test run cannot give metadata to tcx: there the note lies in skb->cb. */
const volatile bool note_in_cb = false;

static __noinline int trace_choice(const struct trip *t, __u32 service)
{
	struct trace_step *s = trace_next(TRACE_SERVICE);

	if (s) {
		s->a = service;
		s->b = t->hash;
		s->c = t->backend;
		s->d = t->other;
	}
	return 0;
}

static __always_inline void count_choice(struct trip *t)
{
	__u32 id = t->svc->id;

	count_stat(bpf_map_lookup_elem(&svc_stat, &id), &t->pkt);
	count_stat(stat_of_backend(t->backend), &t->pkt);
}

/* Choose among a service's backends. */
static __always_inline enum reason choose(struct xdp_md *ctx, struct trip *t)
{
	__u32 id = t->svc->id;
	enum reason reason;

	t->hash = flow_hash(t->svc, &t->pkt);
	reason = slot_of(t->svc, t->hash, &t->backend, &t->other);
	if (!reason && t->svc->flags & SVC_OPTIONS)
		reason = apply_options(ctx, t);
	if (reason)
		return reason;
	if (trace)
		trace_choice(t, id);
	if (!t->backend)
		return REASON_NO_BACKEND;
	if (!t->probe && !t->error)
		count_choice(t);
	return REASON_NONE;
}

/* Nobody serves this tuple: the host's own packet, unless to a VIP. */
static __always_inline int unserved(struct xdp_md *ctx, const struct trip *t, enum reason reason)
{
	if (!is_vip(&t->pkt))
		return leave(XDP_PASS, REASON_PASS_HOST);
	if (reason != REASON_NO_SERVICE || !is_icmp(&t->pkt))
		return end_trip(t, XDP_DROP, reason);
	if (is_ping(&t->pkt))
		return echo(ctx, &t->pkt);
	return leave(XDP_DROP, REASON_VIP_ICMP);
}

/* A made-up packet of the self-test? */
static __always_inline bool is_probe(const struct packet *pkt)
{
	if (!probe_source || word_of(&pkt->saddr, 3) != probe_source)
		return false;
	return pkt->family == 4 || is_twin(&pkt->saddr, probe_source);
}

/* A later fragment has its choice behind it. */
static __always_inline enum reason follow(struct trip *t)
{
	enum reason reason = follow_piece(t);

	if (!reason)
		count_choice(t);
	return reason;
}

static __always_inline enum reason choose_for(struct xdp_md *ctx, struct trip *t)
{
	enum reason reason;

	if (t->piece.kind == FRAGMENT_LATER)
		return follow(t);
	reason = find_service(ctx, t);
	if (reason)
		return reason;
	if (is_bad_client(&t->pkt) && !t->probe)
		return REASON_BAD_SOURCE;
	return choose(ctx, t);
}

/* A packet whose destination may be a VIP. */
static __always_inline int from_client(struct xdp_md *ctx, const struct cfg *c, struct trip *t, enum reason reason)
{
	t->probe = is_probe(&t->pkt) && ctx->ingress_ifindex != c->uplink;
	if (reason == REASON_FRAGMENT && is_vip(&t->pkt))
		reason = take_piece(ctx, c, t, false);
	if (reason == REASON_TO_OWNER)
		return end_trip(t, XDP_TX, reason);
	if (!reason)
		reason = choose_for(ctx, t);
	if (reason)
		return unserved(ctx, t, reason);
	return travel(ctx, c, t);
}

/* For this host's tunnel endpoint. */
static __always_inline bool is_own(const struct packet *pkt, const struct cfg *c)
{
	return pkt->family == 4 && ip16_v4(&pkt->daddr) == c->endpoint;
}

static __always_inline bool is_tunnelled(const struct packet *pkt)
{
	return pkt->proto == IPPROTO_UDP && pkt->dport == bpf_htons(VXLAN_PORT);
}

SEC("xdp")
int uplink(struct xdp_md *ctx)
{
	struct cursor cur = xdp_cursor(ctx);
	struct ethhdr *eth = take(&cur, sizeof(*eth));
	struct cfg *c = config();
	struct trip trip = {};
	struct packet *pkt = &trip.pkt;
	enum reason reason;

	if (!c)
		return leave(XDP_PASS, REASON_NO_CONFIG);
	if (!eth || !is_inet(eth->h_proto))
		return leave(XDP_PASS, REASON_PASS_NOT_INET);
	if (!same_mac(eth->h_dest, c->uplink_mac))
		return leave(XDP_PASS, REASON_PASS_OTHER_MAC);
	if (eth->h_proto == bpf_htons(ETH_P_IPV6) && !may_be_vip6(cur))
		return leave(XDP_PASS, REASON_PASS_HOST);
	reason = parse(ctx, &cur, eth->h_proto, pkt);
	if (reason == REASON_MALFORMED)
		return leave(XDP_DROP, REASON_MALFORMED);
	if (is_own(pkt, c) && is_tunnelled(pkt))
		return from_tunnel(ctx, c, cur, &trip);
	if (is_own(pkt, c) && !reason && is_underlay_error(ctx, pkt))
		return leave(XDP_PASS, REASON_PASS_UNDERLAY);
	if (pkt->family == 4 && !vip_bit(vip_hash4(ip16_v4(&pkt->daddr))))
		return leave(XDP_PASS, REASON_PASS_HOST);
	return from_client(ctx, c, &trip, reason);
}

/* What uplink left with the packet, if it did. The only reader of the note. */
static __always_inline bool note_read(struct __sk_buff *skb, struct note *note)
{
	struct cursor meta;
	struct note *left;

	if (note_in_cb) {
		note->flags = skb->cb[0];
		note->svc = skb->cb[1];
		note->backend = skb->cb[2];
		note->hash = skb->cb[3];
		return note->flags & NOTE_PRESENT;
	}
	meta = skb_meta(skb);
	left = take(&meta, sizeof(*left));
	if (!left || !(left->flags & NOTE_PRESENT))
		return false;
	*note = *left;
	return true;
}

/* The note names the service the packet came through. */
static __always_inline enum reason heed(const struct note *note, struct visit *v)
{
	__u32 index = note->svc;
	struct svc *s = bpf_map_lookup_elem(&svc, &index);

	if (!s)
		return REASON_STALE_SERVICE;
	v->service = s->id;
	v->vip = s->vip;
	v->vip_port = s->port;
	v->backend = note->backend;
	v->hash = note->hash;
	return REASON_NONE;
}

/* An address without a port: the host's own, or nobody's. */
static __always_inline int no_port(const struct frame *f, bool noted)
{
	if (noted || prefix_flags(&f->ip.dst) & PREFIX_INSTANCES)
		return drop(f, REASON_NO_PORT);
	return pass(f, REASON_PASS_HOST);
}

/* To a port of this host: ask its policy, deliver. */
static __always_inline int to_instance(struct __sk_buff *skb, struct work *w, const struct note *note,
				       const struct port_cfg *pc, __u32 port)
{
	enum reason reason = w->f.reason;

	stand_at(skb, &w->f, port, DIRECTION_IN);
	if (reason)
		return drop(&w->f, reason);
	if (is_bad_source(&w->f.ip))
		return drop(&w->f, REASON_BAD_SOURCE);
	if (is_nd(&w->f.ip))
		return drop(&w->f, REASON_ND_IGNORED);
	begin_visit(&w->v, &w->f, port, DIRECTION_IN);
	if (note->flags & NOTE_PRESENT) {
		reason = heed(note, &w->v);
		if (same_ip(&w->f.ip.src, &w->f.ip.dst)) {
			reason = reason ?: w->f.ip.fragment ? REASON_FRAGMENT : REASON_NONE;
			w->v.key.peer = hairpin_of(&w->f.ip.dst);
		}
	}
	if (reason)
		return drop(&w->f, reason);
	return deliver_to(skb, w, pc, 0);
}

/* The port whose backend the note names. */
static __noinline struct port_cfg *noted_port(const struct note *note, const struct cfg *c, __u32 *port)
{
	struct fdb_key key = { .vni = c->lb_vni };
	struct backend *b = backend_of(note->backend);
	struct station *station;

	if (!b)
		return NULL;
	__builtin_memcpy(key.mac, b->mac, sizeof(key.mac));
	station = bpf_map_lookup_elem(&fdb, &key);
	if (!station)
		return NULL;
	*port = station->port;
	return port_by_id(*port);
}

SEC("tcx/ingress")
int uplink_in(struct __sk_buff *skb)
{
	struct note note = {};
	bool noted = note_read(skb, &note);
	struct work *w = begin_work();
	struct cfg *c = config();
	struct port_cfg *pc;
	__u32 port = 0;

	if (!c || !w)
		return pass_blind(REASON_NO_CONFIG);
	if (!read_frame(skb, &w->f))
		return pass_blind(REASON_MALFORMED);
	if (skb->vlan_present || (w->f.proto != bpf_htons(ETH_P_IP) && w->f.proto != bpf_htons(ETH_P_IPV6)))
		return pass(&w->f, REASON_PASS_NOT_IP);
	if (!same_mac(w->f.dst, c->uplink_mac))
		return pass(&w->f, REASON_PASS_OTHER_MAC);
	if (w->f.reason == REASON_MALFORMED)
		return drop(&w->f, REASON_MALFORMED);
	if (w->f.ip.family == 4 && is_host_source(ip16_v4(&w->f.ip.src)))
		return drop(&w->f, REASON_BAD_SOURCE);
	if (noted && is_icmp_error(&w->f.ip))
		pc = noted_port(&note, c, &port); /* it is for the VIP still */
	else
		pc = port_at(&w->f.ip.dst, &port);
	if (!pc)
		return no_port(&w->f, noted);
	return to_instance(skb, w, &note, pc, port);
}

char _license[] SEC("license") = "Apache-2.0";
