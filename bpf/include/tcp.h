/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include "flow.h"
#include "visit.h"

/*
 * What a TCP connection's two sides have said, so that nobody who sees nothing
 * of it can end it, or have a flow confirmed that nobody has answered. A segment
 * that does not fit in passes, for the VM to judge, and changes nothing.
 */

#define SCALE_MAX 14 /* RFC 7323, 2.3 */

static __always_inline __u8 other_way(__u8 direction)
{
	return direction ^ 1;
}

static __always_inline bool knows_end(const struct ct *f, __u8 direction)
{
	return f->heard & (direction == DIRECTION_IN ? CT_END_IN : CT_END_OUT);
}

static __always_inline bool knows_ack(const struct ct *f, __u8 direction)
{
	return f->heard & (direction == DIRECTION_IN ? CT_ACK_IN : CT_ACK_OUT);
}

/* How far apart two numbers can be that a side means at one time. */
static __always_inline __s32 span(const struct ct *f, __u8 direction)
{
	return 65535U << (f->scale[direction & 1] & 15);
}

/* Is a behind b? */
static __always_inline bool is_behind(__u32 a, __u32 b)
{
	return (__s32)(a - b) > 0;
}

/* RFC 9293, 3.10.7.4, with the leeway that a bystander needs: what was sent and
 * what was acknowledged lies within the windows that the two sides have given. */
static __always_inline bool fits(const struct ct *f, const struct visit *v)
{
	__u8 me = v->direction & 1, you = other_way(me);
	const struct ct_side *to = &f->side[you];

	if (knows_ack(f, you)) {
		if (is_behind(v->seq, to->edge))
			return false;
		if ((__s32)(to->ack - v->end) > span(f, you))
			return false;
	}
	if (!(v->tcp_flags & TCP_ACK) || !knows_end(f, you))
		return true;
	return !is_behind(v->ack, to->end) && (__s32)(to->end - v->ack) <= span(f, me);
}

/* May this RST end the flow? To who has said what it waits for, it comes within
 * its window; to who has only asked, it names the question (3.10.7.3). */
static __always_inline bool may_reset(const struct ct *f, const struct visit *v)
{
	__u8 me = v->direction & 1, you = other_way(me);
	const struct ct_side *to = &f->side[you];

	if (knows_ack(f, you))
		return v->seq - to->ack <= to->edge - to->ack;
	if (v->tcp_flags & TCP_ACK && knows_end(f, you))
		return v->ack == to->end;
	return !knows_end(f, me) || v->seq == f->side[me].end;
}

/* Does the segment acknowledge the answer? Only who has seen it can. */
static __always_inline bool confirms(const struct ct *f, const struct visit *v)
{
	__u8 you = other_way(v->direction & 1);

	if (!(v->tcp_flags & TCP_ACK) || v->tcp_flags & TCP_RST || !knows_end(f, you))
		return false;
	return f->flags & CT_LOOSE || v->ack == f->side[you].end;
}

/* RFC 7323, 2.2: windows are scaled when both SYNs have said so. */
static __always_inline void hear_scale(struct ct *f, const struct visit *v)
{
	__u8 me = v->direction & 1, you = other_way(me);

	f->scale[me] = v->scale;
	if (!(v->tcp_flags & TCP_ACK))
		return;
	if (v->scale == SCALE_NONE || f->scale[you] == SCALE_NONE)
		f->scale[me] = f->scale[you] = 0;
}

/* Has all of the segment been sent before? One that another has overtaken looks so. */
static __always_inline bool says_again(const struct ct *f, const struct visit *v)
{
	__u8 me = v->direction & 1;

	return v->end != v->seq && knows_end(f, me) && !is_behind(v->end, f->side[me].end);
}

/* Take over what a segment that fits says. */
static __always_inline void hear(struct ct *f, const struct visit *v)
{
	__u8 me = v->direction & 1;
	struct ct_side *from = &f->side[me];
	bool syn = v->tcp_flags & TCP_SYN;
	__u32 edge;

	if (v->tcp_flags & TCP_RST)
		return;
	if (syn && !(f->flags & CT_LOOSE))
		hear_scale(f, v);
	if (!knows_end(f, me) || is_behind(v->end, from->end) || (syn && f->state == CT_NEW))
		from->end = v->end;
	f->heard |= me == DIRECTION_IN ? CT_END_IN : CT_END_OUT;
	if (!(v->tcp_flags & TCP_ACK))
		return;
	edge = v->ack + ((__u32)v->window << (syn ? 0 : f->scale[me] & 15));
	if (!knows_ack(f, me) || is_behind(edge, from->edge))
		from->edge = edge;
	if (!knows_ack(f, me) || is_behind(v->ack, from->ack))
		from->ack = v->ack;
	f->heard |= me == DIRECTION_IN ? CT_ACK_IN : CT_ACK_OUT;
}

/* The first segment that is seen. If it is no SYN, the other side has sent what
 * it acknowledges. */
static __always_inline void hear_first(struct ct *f, const struct visit *v)
{
	__u8 me = v->direction & 1, you = other_way(me);

	if (!v->opening) {
		f->flags |= CT_LOOSE;
		f->scale[0] = f->scale[1] = SCALE_MAX;
		if (v->tcp_flags & TCP_ACK) {
			f->side[you].end = v->ack;
			f->heard |= you == DIRECTION_IN ? CT_END_IN : CT_END_OUT;
		}
	}
	hear(f, v);
}

/* RST and FINs, of a segment that fits. True: nothing else of it matters. */
static __always_inline bool ends(struct ct *f, const struct visit *v)
{
	if (v->tcp_flags & TCP_RST)
		f->state = CT_RESET;
	if (f->state == CT_RESET)
		return true;
	if (v->tcp_flags & TCP_FIN)
		f->flags |= v->direction == DIRECTION_IN ? CT_FIN_IN : CT_FIN_OUT;
	if ((f->flags & (CT_FIN_IN | CT_FIN_OUT)) == (CT_FIN_IN | CT_FIN_OUT))
		f->state = CT_CLOSED;
	else if (f->flags & (CT_FIN_IN | CT_FIN_OUT))
		f->state = CT_CLOSING;
	else
		return false;
	return true;
}
