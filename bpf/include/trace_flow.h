/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include "visit.h"

/* What a twin says of flows. */

/* A flow would begin. */
static __noinline enum reason trace_opens(const struct visit *v)
{
	struct trace_step *s = trace_next(TRACE_OPENS);

	if (s) {
		s->port = v->port;
		s->rule = v->rule;
	}
	return REASON_NONE;
}

/* What a twin finds: the live record it must not touch, and in its place a copy. */
static __noinline struct ct *trace_flow(struct visit *v, const struct port_cfg *pc, const struct ct *f)
{
	struct trace_step *s = trace_next(TRACE_FLOW);

	if (s) {
		s->port = v->port;
		s->rule = f ? f->rule : 0;
		s->a = f ? f->state : 0;
		s->b = v->confirmed;
		s->c = f ? f->generation : 0;
		s->d = pc->generation;
	}
	if (!f)
		return NULL;
	v->flow = *f;
	return &v->flow;
}
