/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include "packet.h"
#include "policy.h"

/*
 * What is known about a flow at a port. The key is what the VM sees; the value
 * says what the wire sees. uplink (XDP) only reads. uplink_in, vm_in and
 * svc_in create an entry once the policy has admitted its first packet.
 */

#define SECOND 1000000000ULL

/* One packet at one port. */
struct visit {
	struct ct_key key;
	__u32 port;
	__u8 direction; /* of this packet at the port */
	__u8 tcp_flags;
	bool opening;	  /* a SYN, or any packet of what is not TCP */
	bool host;	  /* it came through the door */
	bool answer_only; /* it may belong to a flow, never open one */
	bool translated;  /* key.peer_port is not the wire's */
	bool new_alias;
	__u16 match;
	__be16 wire_port; /* the peer's, as the packet has it */
	__u64 packets;
	__u64 bytes;

	/*
	 * Going in: the service the packet came through (service, backend, hash,
	 * vip, vip_port), if any. Coming out: the flow as the table has it, copied,
	 * because the entry may go while the packet is still here.
	 */
	struct ct flow;
};

static __always_inline __u64 lifetime(const struct ct *f, __u8 proto)
{
	if (proto == IPPROTO_ICMP || proto == IPPROTO_ICMPV6)
		return 5 * SECOND;
	if (proto == IPPROTO_UDP)
		return f->state == CT_ESTABLISHED ? 180 * SECOND : 60 * SECOND;
	if (proto != IPPROTO_TCP)
		return f->state == CT_ESTABLISHED ? 600 * SECOND : 60 * SECOND;
	switch (f->state) {
	case CT_NEW:
		return 30 * SECOND;
	case CT_REPLIED:
	case CT_CLOSED:
		return 60 * SECOND;
	case CT_RESET:
		return 10 * SECOND;
	default:
		return 3600 * SECOND;
	}
}

static __always_inline bool is_expired(const struct ct *f, __u8 proto, __u64 now)
{
	return f->seen + lifetime(f, proto) < now;
}

static __always_inline bool is_ending(const struct ct *f)
{
	return f->state >= CT_CLOSING;
}

static __always_inline void *flows_of(__u32 port)
{
	return bpf_map_lookup_elem(&ct_est, &port);
}

static __always_inline void advance(struct ct *f, const struct visit *v)
{
	bool reply = v->direction != f->direction;

	if (v->tcp_flags & TCP_RST)
		f->state = CT_RESET;
	if (f->state == CT_RESET)
		return;
	if (v->tcp_flags & TCP_FIN)
		f->flags |= v->direction == DIRECTION_IN ? CT_FIN_IN : CT_FIN_OUT;
	if ((f->flags & (CT_FIN_IN | CT_FIN_OUT)) == (CT_FIN_IN | CT_FIN_OUT))
		f->state = CT_CLOSED;
	else if (f->flags & (CT_FIN_IN | CT_FIN_OUT))
		f->state = CT_CLOSING;
	else if (reply && f->state == CT_NEW)
		f->state = CT_REPLIED;
	else if (!reply && f->state == CT_REPLIED)
		f->state = CT_ESTABLISHED;
}

static __always_inline void count_rule(__u32 rule, const struct visit *v)
{
	struct rule_stat *s = bpf_map_lookup_elem(&rule_stats, &rule);

	if (!s)
		return;
	s->packets += v->packets;
	s->bytes += v->bytes;
}

/* Another packet of a flow that is there. */
static __always_inline enum reason renew(struct ct *f, const struct port_cfg *pc, const struct visit *v, __u64 now)
{
	__u32 generation = READ_ONCE(pc->generation);

	if (f->generation != generation && !(f->flags & CT_HOST)) {
		struct question q = {
			.direction = f->direction,
			.proto = v->key.proto,
			.match = f->match,
			.peer = v->key.peer,
			.scope = pc->vni,
		};
		struct verdict verdict = {};
		enum reason reason = judge(pc, &q, &verdict);

		if (reason)
			return reason;
		f->rule = verdict.rule;
		f->generation = generation;
	}
	advance(f, v);
	f->seen = now;
	f->packets += v->packets;
	return REASON_NONE;
}

struct bpf_map;

/* What a pass over a port's flows is asked for and what it did. */
struct sweep {
	__u32 port;
	__u32 live;
	__u32 expired; /* and deleted */
	__u32 pad;
	__u64 now;
};

static long sweep_flow(struct bpf_map *flows, const struct ct_key *key, struct ct *flow, struct sweep *s)
{
	if (!is_expired(flow, key->proto, s->now)) {
		s->live++;
		return 0;
	}
	if (!bpf_map_delete_elem(flows, key))
		s->expired++;
	return 0;
}

/*
 * The quota is used up: make room of what has expired. The agent sweeps all the
 * time; this is for the day it is gone, because forwarding has no time limit
 * without it. At most once a second a port, since a pass over a table of live
 * flows takes milliseconds and frees nothing.
 */
static __noinline bool make_room(void *flows, __u32 port, __u64 now)
{
	struct sweep s = { .now = now };
	__u64 *last = bpf_map_lookup_elem(&ct_swept, &port);

	if (!last || now - *last < SECOND)
		return false;
	*last = now;
	bpf_for_each_map_elem(flows, sweep_flow, &s, 0);
	return true; /* not whether it freed any: the verifier would follow every count */
}

/* The first packet of a flow: ask the policy, then remember. */
static __always_inline enum reason begin(void *flows, const struct port_cfg *pc, struct visit *v, __u64 now)
{
	struct ct *f = &v->flow;
	enum reason reason;

	if (v->answer_only)
		return REASON_NO_DOOR_FLOW;
	f->generation = READ_ONCE(pc->generation);
	if (!v->host) {
		struct question q = {
			.direction = v->direction,
			.proto = v->key.proto,
			.match = v->match,
			.peer = v->key.peer,
			.scope = pc->vni,
		};
		struct verdict verdict = {};

		reason = judge(pc, &q, &verdict);
		if (reason)
			return reason;
		f->rule = verdict.rule;
	}
	f->seen = now;
	f->packets = v->packets;
	f->peer_port = v->wire_port;
	f->match = v->match;
	f->direction = v->direction;
	f->state = CT_NEW;
	f->flags = v->host ? CT_HOST : 0;
	advance(f, v);
	if (!bpf_map_update_elem(flows, &v->key, f, BPF_ANY))
		return REASON_NONE;
	if (make_room(flows, v->port, now) && !bpf_map_update_elem(flows, &v->key, f, BPF_ANY))
		return REASON_NONE;
	return REASON_CT_FULL;
}

/* Two services, or a service and the instance's own address, can give one
 * client the same tuple at the port. */
static __always_inline bool is_same_service(const struct ct *f, const struct visit *v)
{
	return f->service == v->flow.service && f->vip_port == v->flow.vip_port;
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
	if (v->flow.service) {
		alias.own = v->flow.vip;
		alias.own_port = v->flow.vip_port;
	}
	return alias;
}

#define TRANSLATION_TRIES 4

/*
 * Another live flow has the packet's tuple: give the VM another port of the
 * client's, the one it saw before or a free one. The address the group sees
 * stays.
 */
static __noinline enum reason translate(void *flows, struct visit *v, __u64 now)
{
	struct ct_key alias = alias_of(v);
	struct ct *f = bpf_map_lookup_elem(flows, &alias);

	v->translated = true;
	if (f && !is_expired(f, alias.proto, now)) {
		f->seen = now;
		v->key.peer_port = f->peer_port;
		return REASON_NONE;
	}
	for (int i = 0; i < TRANSLATION_TRIES; i++) {
		v->key.peer_port = bpf_htons(32768 | (bpf_get_prandom_u32() & 0x7fff));
		f = bpf_map_lookup_elem(flows, &v->key);
		if (f && !is_expired(f, alias.proto, now))
			continue;
		v->new_alias = true;
		return REASON_NONE;
	}
	return REASON_CT_COLLISION;
}

/* Have the next packet find the flow that v has just begun: its record again,
 * as an alias, under the tuple of the wire. There is no stack for a second. */
static __noinline enum reason remember_alias(void *flows, struct visit *v)
{
	struct ct_key alias = alias_of(v);
	__u8 flags = v->flow.flags, state = v->flow.state;
	bool full;

	v->flow.flags = CT_ALIAS;
	v->flow.state = CT_ESTABLISHED;
	v->flow.peer_port = v->key.peer_port;
	full = bpf_map_update_elem(flows, &alias, &v->flow, BPF_ANY);
	v->flow.flags = flags;
	v->flow.state = state;
	v->flow.peer_port = v->wire_port;
	return full ? REASON_CT_FULL : REASON_NONE;
}

/* The flow under v's key, unless it is over or the packet begins it anew. */
static __always_inline struct ct *find(void *flows, const struct visit *v, __u64 now)
{
	struct ct *f = bpf_map_lookup_elem(flows, &v->key);

	if (f && is_expired(f, v->key.proto, now))
		return NULL;
	if (f && v->tcp_flags & TCP_SYN && v->opening && is_ending(f))
		return NULL;
	return f;
}

/*
 * Account the packet to its flow at the port and judge it. REASON_NONE admits
 * it and leaves the flow in v->flow; anything else is why it drops. No caller
 * passes NULL.
 */
__noinline enum reason track(struct visit *v, const struct port_cfg *pc)
{
	__u64 now = bpf_ktime_get_ns();
	enum reason reason;
	void *flows;
	struct ct *f;

	if (!v || !pc)
		return REASON_NO_PORT;
	flows = flows_of(v->port);
	if (!flows)
		return REASON_NO_CT;
	f = find(flows, v, now);
	if (f && v->direction == DIRECTION_IN && !is_same_service(f, v)) {
		bool replaced = is_replaceable(f, v);

		reason = replaced ? REASON_NONE : translate(flows, v, now);
		if (reason)
			return reason;
		f = replaced ? NULL : find(flows, v, now);
	}
	if (!f) {
		reason = begin(flows, pc, v, now);
		if (!reason && v->new_alias)
			reason = remember_alias(flows, v);
		if (!reason)
			count_rule(v->flow.rule, v);
		return reason;
	}
	reason = renew(f, pc, v, now);
	if (reason) {
		bpf_map_delete_elem(flows, &v->key);
		return reason;
	}
	v->flow = *f;
	count_rule(v->flow.rule, v);
	return REASON_NONE;
}
