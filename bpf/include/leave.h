/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include "events.h"

/* The way out of XDP: counted, and told of when it is a drop that somebody
 * watches. No port is known there. */

/* Say that a packet was dropped; pkt is NULL when nothing is known of it. */
static __noinline int tell_packet(const struct packet *pkt, __u32 reason)
{
	struct event *e = is_watched(0, reason) ? begin_event(0, EVENTS_OF_PACKETS) : NULL;

	if (!e)
		return 0;
	e->kind = EVENT_DROPPED;
	e->audience = EVENT_FOR_WATCH;
	e->reason = reason;
	e->packets = 1;
	if (pkt) {
		e->type = pkt->family == 6 ? bpf_htons(ETH_P_IPV6) : bpf_htons(ETH_P_IP);
		e->bytes = pkt->length;
		e->src = pkt->saddr;
		e->dst = pkt->daddr;
		e->sport = pkt->sport;
		e->dport = pkt->dport;
		e->proto = pkt->proto;
		e->tcp_flags = pkt->tcp_flags;
	}
	bpf_ringbuf_submit(e, 0);
	return 0;
}

/* The only ways out of an XDP program. */
static __always_inline int leave_as(const struct packet *pkt, int action, enum reason reason)
{
	if (trace)
		trace_reason(TRACE_EXIT, reason, 0);
	count(reason, 1);
	if (action == XDP_DROP)
		tell_packet(pkt, reason);
	return action;
}

static __always_inline int leave(int action, enum reason reason)
{
	return leave_as(NULL, action, reason);
}
