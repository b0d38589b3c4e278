/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include "events.h"
#include "flow.h"
#include "hairpin.h"
#include "measure.h"
#include "packet.h"
#include "policy.h"
#include "sweep.h"
#include "tcp.h"
#include "trace_flow.h"
#include "visit.h"

/*
 * Accounting a packet to its flow. uplink_in, vm_in and svc_in create an entry
 * in ct_new once the policy has admitted its first packet. The third packet, the
 * initiator's first after an answer, moves it to ct_est: who forges a source
 * never sends one, whatever the VM answers.
 */

#define SMTP_PORT 25

static __always_inline void advance(struct ct *f, const struct visit *v)
{
	bool reply = v->direction != f->direction, tcp = v->key.proto == IPPROTO_TCP;

	if (tcp && ends(f, v))
		return;
	if (reply && f->state == CT_NEW)
		f->state = CT_REPLIED;
	else if (!reply && f->state == CT_REPLIED && (!tcp || confirms(f, v)))
		f->state = CT_ESTABLISHED;
}

static __always_inline void count_rule(const struct visit *v)
{
	__u32 rule = v->rule;
	struct rule_stat *s = trace ? NULL : bpf_map_lookup_elem(&rule_stats, &rule);

	if (!s)
		return;
	s->packets += v->packets;
	s->bytes += v->bytes;
}

/* May a flow with v's tuple, whose first packet went in this direction, be? */
static __always_inline enum reason permit(const struct port_cfg *pc, struct visit *v, __u8 direction, __u16 match)
{
	struct question *q = &v->question;

	if (direction == DIRECTION_OUT && v->key.proto == IPPROTO_TCP && match == SMTP_PORT && !pc->vni &&
	    !(pc->flags & PORT_SMTP_OPEN))
		return REASON_SMTP;
	q->direction = direction;
	q->proto = v->key.proto;
	q->match = match;
	q->scope = pc->vni;
	q->fragment = false;
	q->peer = !pc->vni && is_hairpin(&v->key.peer) ? v->key.own : v->key.peer;
	return judge(pc, q, &v->verdict);
}

/* The port's policy is another one since the flow was judged. */
static __always_inline enum reason judge_again(struct ct *f, const struct port_cfg *pc, struct visit *v,
					       __u32 generation)
{
	enum reason reason = permit(pc, v, f->direction, f->match);

	if (reason && !(f->flags & CT_KEEP))
		return reason;
	if (!reason) {
		f->rule = v->verdict.rule;
		f->flags &= ~CT_KEEP;
		if (v->verdict.flags & VERDICT_KEEP)
			f->flags |= CT_KEEP;
	}
	f->generation = generation;
	return REASON_NONE;
}

/* Another packet of a flow that is there. */
static __always_inline enum reason renew(struct ct *f, const struct port_cfg *pc, struct visit *v, __u64 now)
{
	__u32 generation = READ_ONCE(pc->generation);
	bool tcp = v->key.proto == IPPROTO_TCP;
	enum reason reason;

	if (f->generation != generation && !(f->flags & CT_HOST)) {
		reason = judge_again(f, pc, v, generation);
		if (reason)
			return reason;
	}
	if (tcp && v->tcp_flags & TCP_RST && !may_reset(f, v))
		return REASON_CT_INVALID_RST;
	if (!tcp) {
		advance(f, v);
	} else if (v->tcp_flags & TCP_RST || fits(f, v)) {
		observe(f, v, says_again(f, v), now);
		advance(f, v);
		hear(f, v);
	}
	if (f->state >= CT_CLOSED)
		count_closed(f);
	else if (v->confirmed && !f->counted)
		count_opened(f);
	f->seen = now;
	f->idle = pc->established;
	f->packets += v->packets;
	f->bytes += v->bytes;
	return REASON_NONE;
}

/* Put v's record under key among the confirmed ones, where there is none of it. */
static __always_inline bool confirm(void *est, const struct ct_key *key, struct visit *v, __u64 now)
{
	if (trace || !bpf_map_update_elem(est, key, &v->flow, BPF_NOEXIST) || bpf_map_lookup_elem(est, key))
		return true;
	return make_room(est, v->port, now) && !bpf_map_update_elem(est, key, &v->flow, BPF_NOEXIST);
}

/* Two services, or a service and the instance's own address, can give one
 * client the same tuple at the port. */
static __always_inline bool is_same_service(const struct ct *f, const struct visit *v)
{
	return f->service == v->service && f->vip_port == v->vip_port;
}

/* May the packet take over an entry that is another service's? */
static __always_inline bool is_replaceable(const struct ct *f, const struct visit *v)
{
	return v->opening && (is_ending(f) || f->state == CT_NEW);
}

/* The key of the alias of a flow that came as v did. */
static __always_inline struct ct_key alias_of(const struct visit *v)
{
	struct ct_key alias = v->key;

	alias.alias = 1;
	alias.peer_port = v->wire_port;
	if (v->service) {
		alias.own = v->vip;
		alias.own_port = v->vip_port;
	}
	return alias;
}

#define TRANSLATION_TRIES 4

/*
 * Another live flow has the packet's tuple: give the VM another port of the
 * client's, the one it saw before or a free one. The address the group sees
 * stays.
 */
static __noinline enum reason translate(void *est, void *fresh, struct visit *v, __u64 now)
{
	struct ct_key alias = alias_of(v);
	struct ct *f = live_flow(est, fresh, &alias, now);

	v->translated = true;
	if (f) {
		if (!trace)
			f->seen = now;
		v->key.peer_port = f->peer_port;
		return REASON_NONE;
	}
	for (int i = 0; i < TRANSLATION_TRIES; i++) {
		v->key.peer_port = bpf_htons(32768 | (bpf_get_prandom_u32() & 0x7fff));
		if (live_flow(est, fresh, &v->key, now))
			continue;
		v->new_alias = true;
		return REASON_NONE;
	}
	return REASON_CT_COLLISION;
}

/* Have the next packet find the flow that v's record begins: the record again,
 * as an alias, under the tuple of the wire. It is in the table of its flow, and
 * says which address of the instance's the flow is of. */
static __noinline enum reason remember_alias(void *table, struct visit *v)
{
	struct ct_key alias = alias_of(v);
	__u8 flags = v->flow.flags, state = v->flow.state;
	long full;

	v->flow.flags = CT_ALIAS;
	v->flow.state = CT_ESTABLISHED;
	v->flow.peer_port = v->key.peer_port;
	v->flow.vip = v->key.own;
	full = bpf_map_update_elem(table, &alias, &v->flow, BPF_ANY);
	v->flow.flags = flags;
	v->flow.state = state;
	v->flow.peer_port = v->wire_port;
	v->flow.vip = v->vip;
	return full ? REASON_CT_FULL : REASON_NONE;
}

/* The same of a flow that nobody has confirmed: one that was before it under that
 * tuple is over. */
static __noinline enum reason renew_alias(void *est, void *fresh, struct visit *v)
{
	struct ct_key alias = alias_of(v);

	bpf_map_delete_elem(est, &alias);
	return remember_alias(fresh, v);
}

/* The record of a flow that begins with v's packet. */
static __always_inline void fill_flow(struct visit *v, const struct port_cfg *pc, __u32 generation, __u64 now)
{
	struct ct *f = &v->flow;

	__builtin_memset(f, 0, sizeof(*f));
	f->seen = f->created = now;
	f->packets = v->packets;
	f->bytes = v->bytes;
	f->vip = v->vip;
	f->vip_port = v->vip_port;
	f->service = v->service;
	f->backend = v->backend;
	f->hash = v->hash;
	f->generation = generation;
	f->rule = v->rule = v->verdict.rule;
	f->idle = pc->established;
	f->peer_port = v->wire_port;
	f->match = v->match;
	f->direction = v->direction;
	f->state = CT_NEW;
	if (v->host)
		f->flags = CT_HOST;
	else if (v->verdict.flags & VERDICT_KEEP)
		f->flags = CT_KEEP;
	if (v->key.proto != IPPROTO_TCP)
		return;
	hear_first(f, v);
	ends(f, v);
}

/* RFC 9293 opens with a SYN; what goes on elsewhere comes without one. */
static __always_inline bool is_out_of_place(const struct port_cfg *pc, const struct visit *v, __u64 now)
{
	return !v->opening && !v->host && pc->flags & PORT_STRICT && now >= READ_ONCE(pc->loose_until);
}

/* The first packet of a flow: ask the policy, then remember. */
static __always_inline enum reason begin(void *est, void *fresh, const struct port_cfg *pc, struct visit *v, __u64 now)
{
	__u32 generation = READ_ONCE(pc->generation);
	enum reason reason;

	if (v->answer_only)
		return REASON_NO_DOOR_FLOW;
	if (is_out_of_place(pc, v, now))
		return REASON_CT_NO_SYN;
	v->verdict.rule = 0;
	v->verdict.flags = 0;
	if (!v->host) {
		reason = permit(pc, v, v->direction, v->match);
		if (reason)
			return reason;
	}
	fill_flow(v, pc, generation, now);
	if (trace)
		return trace_opens(v);
	if (pc->flags & PORT_FLOW_LOG)
		tell_replaced(est, fresh, v);
	if (v->stale)
		forget(est, &v->key);
	if (v->host && v->direction == DIRECTION_IN && confirm(est, &v->key, v, now))
		return REASON_NONE;
	if (bpf_map_update_elem(fresh, &v->key, &v->flow, BPF_ANY))
		return REASON_CT_FULL;
	if (is_logged(pc, &v->flow))
		tell_flow(&v->key, &v->flow, v->port, EVENT_OPENED, REASON_NONE);
	return v->new_alias ? renew_alias(est, fresh, v) : REASON_NONE;
}

/*
 * The initiator has spoken after an answer. A full table leaves the flow where
 * it is: it goes on there until newer ones push it out.
 */
static __noinline void promote(void *est, void *fresh, struct visit *v, struct ct *f, __u64 now)
{
	if (trace)
		return;
	v->flow = *f;
	if (v->stale)
		forget(est, &v->key);
	if (!confirm(est, &v->key, v, now)) {
		count(REASON_CT_QUOTA, 1);
		return;
	}
	bpf_map_delete_elem(fresh, &v->key);
	f = bpf_map_lookup_elem(est, &v->key);
	if (f)
		count_opened(f);
	if (v->translated && !remember_alias(est, v)) {
		struct ct_key alias = alias_of(v);

		bpf_map_delete_elem(fresh, &alias);
	}
}

static __always_inline bool is_over(const struct ct *f, const struct visit *v, __u64 now)
{
	return is_expired(f, v->key.proto, now) || (v->tcp_flags & TCP_SYN && v->opening && is_ending(f));
}

/* The flow under v's key, unless it is over or the packet begins it anew. */
static __always_inline struct ct *find(void *est, void *fresh, struct visit *v, __u64 now)
{
	struct ct *f = bpf_map_lookup_elem(est, &v->key);

	v->confirmed = f && !is_over(f, v, now);
	v->stale = f && !v->confirmed;
	if (v->confirmed)
		return f;
	f = bpf_map_lookup_elem(fresh, &v->key);
	return f && !is_over(f, v, now) ? f : NULL;
}

/* The flow's, not the packet's, from here on. */
static __always_inline void take_over(struct visit *v, const struct ct *f)
{
	v->vip = f->vip;
	v->vip_port = f->vip_port;
	v->service = f->service;
	v->peer_port = f->peer_port;
	v->rule = f->rule;
}

/*
 * Account the packet to its flow at the port and judge it. REASON_NONE admits
 * it and leaves the flow in *v; anything else is why it drops. No caller passes
 * NULL.
 */
__noinline enum reason track(struct visit *v, const struct port_cfg *pc)
{
	__u64 now = bpf_ktime_get_ns();
	void *est, *fresh;
	enum reason reason;
	struct ct *f;

	if (!v || !pc)
		return REASON_NO_PORT;
	est = flows_of(v->port);
	if (!est)
		return REASON_NO_CT;
	fresh = new_flows_of(v->port);
	if (!fresh)
		return REASON_NO_CT;
	f = find(est, fresh, v, now);
	if (f && v->direction == DIRECTION_IN && !is_same_service(f, v)) {
		bool replaced = is_replaceable(f, v);

		v->stale = replaced && v->confirmed;
		reason = replaced ? REASON_NONE : translate(est, fresh, v, now);
		if (reason)
			return reason;
		f = replaced ? NULL : find(est, fresh, v, now);
	}
	if (trace)
		f = trace_flow(v, pc, f);
	if (!f) {
		reason = begin(est, fresh, pc, v, now);
		if (!reason)
			count_rule(v);
		return reason;
	}
	reason = renew(f, pc, v, now);
	if (reason) {
		v->rule = f->rule;
		if (reason == REASON_CT_INVALID_RST)
			return reason;
		if (trace)
			return reason;
		if (is_logged(pc, f))
			tell_flow(&v->key, f, v->port, EVENT_CLOSED, reason);
		count_closed(f);
		bpf_map_delete_elem(v->confirmed ? est : fresh, &v->key);
		return reason;
	}
	take_over(v, f);
	if (!v->confirmed && v->direction == f->direction && f->state == CT_ESTABLISHED)
		promote(est, fresh, v, f, now);
	count_rule(v);
	return REASON_NONE;
}
