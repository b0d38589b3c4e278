/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include "packet.h"
#include "question.h"

/*
 * May this packet open a flow? Two axes cut into classes: the peer (by group
 * membership and by CIDR) and the port. Each class has a bitmap of rules; what
 * is set in both admits, and the first bit set is the rule. The cost does not
 * grow with the number of rules.
 */

static __always_inline struct bitmap *rules_for_member(const struct question *q)
{
	struct member_key member = { .scope = q->scope, .ip = q->peer };
	struct bm_key key = { .policy = q->policy, .direction = q->direction };
	__u32 *class = bpf_map_lookup_elem(&members, &member);

	if (!class)
		return NULL;
	key.class = *class;
	return bpf_map_lookup_elem(&peer_bm, &key);
}

static __always_inline struct bitmap *rules_for_prefix(const struct question *q)
{
	struct cidr_key prefix = { .bits = 32 + 128, .policy = q->policy, .ip = q->peer };
	struct bm_key key = { .policy = q->policy, .direction = q->direction };
	__u32 *class = bpf_map_lookup_elem(&cidr, &prefix);

	if (!class)
		return NULL;
	key.class = *class;
	return bpf_map_lookup_elem(&cidr_bm, &key);
}

/* The class of the last cut at or before match, by halving steps. Global, so
 * that the verifier reads it once. */
__noinline __u32 class_at(const struct bounds *b, __u32 match)
{
	__u32 at = 0;

	if (!b)
		return 0;
#pragma unroll
	for (__u32 step = CUTS_MAX / 2; step; step >>= 1) {
		if (b->cut[(at + step) & (CUTS_MAX - 1)].from <= match)
			at += step;
	}
	return b->cut[at & (CUTS_MAX - 1)].class;
}

static __always_inline struct bitmap *rules_for_port(const struct question *q)
{
	struct bounds_key bounds_key = { .policy = q->policy, .direction = q->direction, .proto = q->proto };
	struct bm_key key = { .policy = q->policy, .direction = q->direction };
	struct bounds *b = bpf_map_lookup_elem(&port_bounds, &bounds_key);

	if (!b) {
		bounds_key.proto = ANY_PROTOCOL;
		b = bpf_map_lookup_elem(&port_bounds, &bounds_key);
	}
	if (!b)
		return NULL;
	if (q->fragment) {
		key.class = b->whole;
	} else {
		key.class = class_at(b, q->match);
		if (b->leaves) {
			bounds_key.leaf = key.class;
			b = bpf_map_lookup_elem(&port_bounds, &bounds_key);
			key.class = class_at(b, q->match);
		}
	}
	return key.class ? bpf_map_lookup_elem(&port_bm, &key) : NULL;
}

/* The index of the lowest bit set; bits is not 0. There is no table for it. */
static __always_inline __u32 first_bit(__u64 bits)
{
	__u32 at = 0;

#pragma unroll
	for (int width = 32; width; width >>= 1) {
		if (!(bits & ((1ULL << width) - 1))) {
			bits >>= width;
			at += width;
		}
	}
	return at;
}

/* The first rule that admits both the port and the peer, as a member of groups
 * or by its prefix; RULES_MAX if there is none. Global, as class_at is. */
__noinline __u32 first_rule(const struct bitmap *port, const struct bitmap *member, const struct bitmap *prefix)
{
	if (!member)
		member = prefix;
	if (!prefix)
		prefix = member;
	if (!port || !member || !prefix)
		return RULES_MAX;
	for (__u32 i = 0; i < RULES_MAX / 64; i++) {
		__u64 both = port->word[i] & (member->word[i] | prefix->word[i]);

		if (both)
			return i * 64 + first_bit(both);
	}
	return RULES_MAX;
}

/* True when a rule admits; v says which. */
static __noinline bool classify(const struct question *q, struct verdict *v)
{
	struct rules_key key = { .policy = q->policy, .direction = q->direction };
	struct bitmap *port = rules_for_port(q);
	struct rules *rules;
	__u32 first;

	if (!port)
		return false;
	first = first_rule(port, rules_for_member(q), rules_for_prefix(q));
	if (first >= RULES_MAX)
		return false;
	key.word = first / 64;
	rules = bpf_map_lookup_elem(&rule_ids, &key);
	if (!rules)
		return false;
	v->rule = rules->id[first % 64];
	if (rules->keep >> (first % 64) & 1)
		v->flags |= VERDICT_KEEP;
	return true;
}

static __noinline int trace_policy(const struct question *q, const struct verdict *v, __u32 reason)
{
	struct trace_step *s = trace_next(TRACE_POLICY);

	if (s) {
		s->reason = reason;
		s->rule = v->rule;
		s->a = q->policy;
		s->b = q->proto;
		s->c = q->match;
		s->d = q->direction;
		s->ip = q->peer;
	}
	return 0;
}

/* Judge the first packet of a flow at a port. Global, as class_at is; no caller
 * passes NULL. */
__noinline enum reason judge(const struct port_cfg *pc, struct question *q, struct verdict *v)
{
	enum reason reason;

	if (!pc || !q || !v)
		return REASON_NO_PORT;
	v->rule = 0;
	v->flags = 0;
	if (q->direction == DIRECTION_OUT && pc->flags & PORT_EGRESS_OPEN)
		return REASON_NONE;
	q->policy = q->direction == DIRECTION_IN ? READ_ONCE(pc->policy_in) : READ_ONCE(pc->policy_out);
	if (!q->policy)
		return REASON_NO_POLICY;
	if (classify(q, v))
		reason = REASON_NONE;
	else
		reason = q->direction == DIRECTION_IN ? REASON_POLICY_IN : REASON_POLICY_OUT;
	if (trace)
		trace_policy(q, v, reason);
	return reason;
}

/* A question from user space, and its answer. It comes as a frame, behind room
 * for an Ethernet header, since no other kind of program may use all maps. */
struct inquiry {
	__u8 head[16];
	__u32 port;
	__u32 reason; /* enum reason; REASON_NONE admits */
	struct verdict verdict;
	struct question question;
};
