/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include "fragment.h"
#include "quote.h"

/*
 * May the packet enter or leave the port? The visit has begun; what the caller
 * knows of it (host, answer_only, service) is in it. REASON_NONE admits, and
 * leaves in the visit what the packet is rewritten by.
 */
static __always_inline enum reason examine(struct __sk_buff *skb, struct work *w, const struct port_cfg *pc)
{
	enum reason reason;

	w->error = false;
	if (w->f.ip.fragment == FRAGMENT_LATER) {
		reason = follow_first(&w->f.ip, &w->v);
	} else if (is_icmp_error(&w->f.ip)) {
		w->error = true;
		reason = match_error(skb, &w->f.ip, &w->quoted, &w->v, pc);
	} else {
		reason = track(&w->v, pc);
		if (!reason && w->f.ip.fragment)
			reason = begin_fragments(&w->f.ip, &w->v);
	}
	w->f.rule = w->v.rule;
	w->f.service = w->v.service;
	return reason;
}
