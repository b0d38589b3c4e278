/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include "packet.h"

/*
 * May this packet open a flow? Two axes cut into classes: the peer (by group
 * membership and by CIDR) and the port. Each class has a bitmap of rules; what
 * is set in both admits, and the first bit set is the rule.
 */

struct question {
	__u32 policy;
	__u32 direction;
	__u32 proto;
	__u32 match;   /* destination port, ICMP type << 8 | code, 0 in other protocols */
	__u32 scope;   /* whose members peer may be one of: the port's network */
	bool fragment; /* nothing of L4 is known: only rules for all of it match */
	struct ip16 peer;
};

enum verdict_flag {
	VERDICT_KEEP = 1, /* flows it admitted go on when it is gone */
};

struct verdict {
	__u32 rule;  /* its id in the zone */
	__u32 flags; /* enum verdict_flag */
};

static __always_inline __u64 peer_rules(const struct question *q)
{
	struct member_key member = { .scope = q->scope, .ip = q->peer };
	struct bm_key key = { .policy = q->policy, .direction = q->direction };
	struct cidr_key prefix = { .bits = 32 + 128, .policy = q->policy, .ip = q->peer };
	__u64 rules = 0, *bm;
	__u32 *class;

	class = bpf_map_lookup_elem(&members, &member);
	if (class) {
		key.class = *class;
		bm = bpf_map_lookup_elem(&peer_bm, &key);
		if (bm)
			rules |= *bm;
	}
	class = bpf_map_lookup_elem(&cidr, &prefix);
	if (class) {
		key.class = *class;
		bm = bpf_map_lookup_elem(&cidr_bm, &key);
		if (bm)
			rules |= *bm;
	}
	return rules;
}

/* Number of bounds <= match, by halving steps: 8 comparisons for 128. */
static __noinline __u32 interval_of(const struct bounds *b, __u32 match)
{
	__u32 at = 0;

	if (!b)
		return 0;
#pragma unroll
	for (__u32 step = BOUNDS_MAX; step; step >>= 1) {
		__u32 next = at + step;

		if (next <= b->n && b->bound[(next - 1) & (BOUNDS_MAX - 1)] <= match)
			at = next;
	}
	return at;
}

static __always_inline __u64 port_rules(const struct question *q)
{
	struct bounds_key bounds_key = { .policy = q->policy, .direction = q->direction, .proto = q->proto };
	struct port_bm_key key = { .policy = q->policy, .direction = q->direction, .proto = q->proto };
	struct bounds *b = bpf_map_lookup_elem(&port_bounds, &bounds_key);
	__u64 *bm;

	if (!b)
		return 0;
	key.interval = interval_of(b, q->match);
	bm = bpf_map_lookup_elem(&port_bm, &key);
	return bm ? *bm : 0;
}

/* The index of the lowest bit set; bits is not 0. */
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

/* True when a rule admits; *rule is its id in the zone. */
static __noinline bool classify(const struct question *q, __u32 *rule)
{
	struct rules_key key = { .policy = q->policy, .direction = q->direction };
	__u64 allowed = peer_rules(q);
	struct rules *ids;

	if (allowed)
		allowed &= port_rules(q);
	if (!allowed)
		return false;
	*rule = 0;
	ids = bpf_map_lookup_elem(&rule_ids, &key);
	if (ids)
		*rule = ids->id[first_bit(allowed) & 63];
	return true;
}

/* Judge the first packet of a flow at a port. Global, as track is, so that the
 * verifier reads it once; no caller passes NULL. */
__noinline enum reason judge(const struct port_cfg *pc, struct question *q, struct verdict *v)
{
	if (!pc || !q || !v)
		return REASON_NO_PORT;
	v->rule = 0;
	v->flags = 0;
	if (q->direction == DIRECTION_OUT && pc->flags & PORT_EGRESS_OPEN)
		return REASON_NONE;
	q->policy = q->direction == DIRECTION_IN ? READ_ONCE(pc->policy_in) : READ_ONCE(pc->policy_out);
	if (!q->policy)
		return REASON_NO_POLICY;
	if (classify(q, &v->rule))
		return REASON_NONE;
	return q->direction == DIRECTION_IN ? REASON_POLICY_IN : REASON_POLICY_OUT;
}
