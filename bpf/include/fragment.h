/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include "pace.h"

/*
 * A datagram in fragments at a port. The first one, which has the ports, is
 * judged as any packet; the others follow it. None may cover what another one
 * has, because then the stack behind us might read another datagram than we did.
 */

#define FRAGMENTED_PER_SECOND 1000	   /* datagrams of a port */
#define FRAGMENTS_LIFETIME    (2 * SECOND) /* of one that misses a piece; numbers come again */

static __always_inline struct frag_key frag_key_of(const struct inet *p, const struct visit *v)
{
	return (struct frag_key){
		.port = v->port,
		.id = p->frag_id,
		.src = p->src,
		.dst = p->dst,
		/* RFC 8200, 4.5: IPv6's fragments need not name the same protocol. */
		.proto = p->family == 4 ? p->proto : IPPROTO_FRAGMENT,
		.direction = v->direction,
	};
}

/* Does it cover another piece, or end before one although it is the last? */
static __always_inline bool overlaps(const struct frag *d, __u16 from, __u16 to, bool more)
{
	bool any = d->total && (to > d->total || !more);

#pragma unroll
	for (int i = 0; i < FRAG_PIECES; i++) {
		any |= from < d->piece[i].to && to > d->piece[i].from;
		any |= !more && to < d->piece[i].to;
	}
	return any;
}

/* Put a piece beside one that it continues, or where there is room. */
static __always_inline bool add_piece(struct frag *d, __u16 from, __u16 to)
{
#pragma unroll
	for (int i = 0; i < FRAG_PIECES; i++) {
		struct frag_piece *piece = &d->piece[i];

		if (piece->to == from && piece->to) {
			piece->to = to;
			return true;
		}
		if (piece->from == to && piece->to) {
			piece->from = from;
			return true;
		}
	}
#pragma unroll
	for (int i = 0; i < FRAG_PIECES; i++) {
		struct frag_piece *piece = &d->piece[i];

		if (!piece->to) {
			*piece = (struct frag_piece){ .from = from, .to = to };
			return true;
		}
	}
	return false;
}

/* Let the first piece grow over those that it has reached. */
static __always_inline void join_pieces(struct frag *d)
{
#pragma unroll
	for (int round = 1; round < FRAG_PIECES; round++) {
#pragma unroll
		for (int i = 1; i < FRAG_PIECES; i++) {
			if (d->piece[i].to && d->piece[i].from == d->piece[0].to) {
				d->piece[0].to = d->piece[i].to;
				d->piece[i] = (struct frag_piece){};
			}
		}
	}
}

/* Once two pieces have overlapped, none of the datagram is right (RFC 5722). */
static __always_inline enum reason place(struct frag *d, const struct inet *p)
{
	__u16 from = p->frag_offset, to = p->frag_offset + p->frag_length;

	if (d->spoilt || overlaps(d, from, to, p->more)) {
		d->spoilt = 1;
		return REASON_FRAGMENT_OVERLAP;
	}
	if (!add_piece(d, from, to))
		return REASON_FRAGMENT_HOLES;
	if (!p->more)
		d->total = to;
	join_pieces(d);
	return REASON_NONE;
}

/* Remember the first fragment, which was admitted, for the others. */
static __noinline enum reason begin_fragments(const struct inet *p, const struct visit *v)
{
	struct frag_key key = frag_key_of(p, v);
	__u64 now = bpf_ktime_get_ns();
	struct frag *there = bpf_map_lookup_elem(&frag, &key);
	struct pace *pace_of = bpf_map_lookup_elem(&pace, &v->port);
	struct frag d = {
		.seen = now,
		.vip = v->vip,
		.service = v->service,
		.rule = v->rule,
		.piece = { { .to = p->frag_length } },
	};

	if (there && !is_past(there->seen, FRAGMENTS_LIFETIME, now)) {
		if (!trace)
			there->spoilt = 1;
		return REASON_FRAGMENT_OVERLAP;
	}
	if (!pace_of || !keeps_pace(&pace_of->fragments, FRAGMENTED_PER_SECOND))
		return REASON_FRAGMENT_RATE;
	if (trace)
		return REASON_NONE;
	return bpf_map_update_elem(&frag, &key, &d, BPF_ANY) ? REASON_FRAGMENT_RATE : REASON_NONE;
}

/* A later fragment goes the way of its first one. */
static __noinline enum reason follow_first(const struct inet *p, struct visit *v)
{
	struct frag_key key = frag_key_of(p, v);
	struct frag *d = bpf_map_lookup_elem(&frag, &key);
	enum reason reason;

	if (!d || is_past(d->seen, FRAGMENTS_LIFETIME, bpf_ktime_get_ns()))
		return REASON_FRAGMENT_EARLY;
	reason = trace ? REASON_NONE : place(d, p); /* no twin asks for fragments */
	if (reason)
		return reason;
	v->vip = d->vip;
	v->service = d->service;
	v->rule = d->rule;
	if (trace)
		return REASON_NONE;
	if (d->total && d->piece[0].to == d->total)
		bpf_map_delete_elem(&frag, &key); /* all of it is through: its number is free */
	count_rule(v);
	return REASON_NONE;
}
