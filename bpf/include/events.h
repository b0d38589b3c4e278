/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include "flow.h"
#include "visit.h"

/*
 * What a port's counters and the events say. Nobody waits for an event: without
 * room in the ring it is lost, beyond its port's rate it is muted, and both are
 * counted. When nobody has asked, an event costs one test.
 */

#define EVENTS_PER_SECOND 1000 /* of a port and CPU; a second's worth at once */

/* What packets may use of a second's worth: whoever sends a port what it refuses
 * must not keep its flows from being told. */
#define EVENTS_OF_PACKETS (SECOND / 2)

/* The record of an event, if there is room and the port has not used up its
 * rate, which is worth so much at once. With it comes the duty to submit it. */
static __always_inline struct event *begin_event(__u32 port, __u64 worth)
{
	__u64 now = bpf_ktime_get_ns(), from, *due;
	struct event_stat *all;
	struct port_stat *s;
	struct event *e;
	__u32 zero = 0;

	if (trace)
		return NULL;
	s = bpf_map_lookup_elem(&port_stat, &port);
	all = bpf_map_lookup_elem(&event_stat, &zero);
	if (!all)
		return NULL;
	due = s ? &s->due : &all->due;
	from = *due > now ? *due : now;
	if (from - now >= worth) {
		all->muted++;
		return NULL;
	}
	e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);
	if (!e) {
		all->lost++;
		return NULL;
	}
	*due = from + SECOND / EVENTS_PER_SECOND;
	all->told++;
	__builtin_memset(e, 0, sizeof(*e));
	e->at = now;
	e->port = port;
	return e;
}

/* Events that nobody could tell. */
static __always_inline void lose_events(__u64 events)
{
	__u32 zero = 0;
	struct event_stat *all = bpf_map_lookup_elem(&event_stat, &zero);

	if (all)
		all->lost += events;
}

/* Flows */

static __always_inline bool is_logged(const struct port_cfg *pc, const struct ct *f)
{
	return pc->flags & PORT_FLOW_LOG && !(f->flags & (CT_HOST | CT_ALIAS));
}

/* Say that a flow of a port, which is_logged, has opened or closed. */
static __noinline int tell_flow(const struct ct_key *key, const struct ct *f, __u32 port, __u8 kind, __u32 reason)
{
	bool in = f->direction == DIRECTION_IN;
	struct event *e = begin_event(port, SECOND);

	if (!e)
		return 0;
	e->opened = f->created;
	e->packets = f->packets;
	e->bytes = f->bytes;
	e->src = in ? key->peer : key->own;
	e->dst = in ? key->own : key->peer;
	e->sport = in ? f->peer_port : key->own_port;
	e->dport = in ? key->own_port : f->peer_port;
	e->reason = reason;
	e->rule = f->rule;
	e->service = f->service;
	e->proto = key->proto;
	e->kind = kind;
	e->direction = f->direction;
	e->state = f->state;
	e->audience = EVENT_FOR_LOG;
	bpf_ringbuf_submit(e, 0);
	return 0;
}

/* The flows that v's new one takes the place of are gone. */
static __noinline int tell_replaced(void *est, void *fresh, const struct visit *v)
{
	struct ct *f = v->stale ? bpf_map_lookup_elem(est, &v->key) : NULL;

	if (f && !(f->flags & (CT_HOST | CT_ALIAS)))
		tell_flow(&v->key, f, v->port, EVENT_CLOSED, REASON_NONE);
	f = bpf_map_lookup_elem(fresh, &v->key);
	if (f && !(f->flags & (CT_HOST | CT_ALIAS)))
		tell_flow(&v->key, f, v->port, EVENT_CLOSED, REASON_NONE);
	return 0;
}

/* Packets */

static __always_inline bool is_denial(__u32 reason)
{
	return reason == REASON_POLICY_IN || reason == REASON_POLICY_OUT || reason == REASON_NO_POLICY ||
	       reason == REASON_SMTP;
}

static __always_inline bool is_watched(__u32 port, __u32 reason)
{
	__u32 zero = 0;
	struct watch *w = bpf_map_lookup_elem(&watch, &zero);

	if (!w || !w->drops_until)
		return false;
	if ((w->drops_port && w->drops_port != port) || (w->drops_reason && w->drops_reason != reason))
		return false;
	return bpf_ktime_get_ns() < w->drops_until;
}

/* Who wants to know that a packet was dropped at a port: enum event_audience. */
static __always_inline __u8 audience_of(__u32 port, __u32 reason)
{
	struct port_cfg *pc = is_denial(reason) ? bpf_map_lookup_elem(&port_cfg, &port) : NULL;

	return (pc && pc->flags & PORT_FLOW_LOG ? EVENT_FOR_LOG : 0) | (is_watched(port, reason) ? EVENT_FOR_WATCH : 0);
}

/* Where a frame that drops is: whoever it goes to judges last. */
static __always_inline __u8 place_of(const struct frame *f)
{
	return f->port[DIRECTION_IN] ? DIRECTION_IN : DIRECTION_OUT;
}

/* Say that a frame was dropped, if anybody wants to know. */
static __noinline int tell_drop(const struct frame *f, __u32 reason)
{
	__u8 direction = f ? place_of(f) : DIRECTION_IN;
	__u32 port = f ? f->port[direction] : 0;
	__u8 audience = audience_of(port, reason);
	struct event *e = audience ? begin_event(port, EVENTS_OF_PACKETS) : NULL;

	if (!e)
		return 0;
	e->reason = reason;
	e->kind = is_denial(reason) ? EVENT_DENIED : EVENT_DROPPED;
	e->audience = audience;
	e->direction = direction;
	e->packets = 1;
	if (f) {
		e->packets = f->packets ?: 1;
		e->bytes = f->bytes ?: f->ip.length;
		e->src = f->ip.src;
		e->dst = f->ip.dst;
		e->sport = f->ip.sport;
		e->dport = f->ip.dport;
		e->proto = f->ip.proto;
		e->tcp_flags = f->ip.tcp_flags;
		e->type = f->proto;
		e->rule = f->rule;
		e->service = f->service;
		e->from = direction == DIRECTION_IN ? f->port[DIRECTION_OUT] : 0;
	}
	bpf_ringbuf_submit(e, 0);
	return 0;
}

/* Frames */

static __always_inline bool is_captured(__u32 port)
{
	__u32 zero = 0;
	struct watch *w = bpf_map_lookup_elem(&watch, &zero);

	return w && w->frames_port == port && w->frames_until;
}

/* Keep the frame as it came to the port, until it is known what becomes of it. */
static __noinline int take_frame(struct __sk_buff *skb, struct frame *f, __u32 port, __u8 direction)
{
	__u64 now = bpf_ktime_get_ns();
	__u32 zero = 0, size = skb->len;
	struct watch *w = bpf_map_lookup_elem(&watch, &zero);
	struct capture *c = bpf_map_lookup_elem(&captured, &zero);

	if (!w || !c || trace || now >= w->frames_until)
		return 0;
	if (size > w->frames_bytes)
		size = w->frames_bytes;
	if (size > CAPTURE_MAX)
		size = CAPTURE_MAX;
	if (size < sizeof(struct ethhdr) || bpf_skb_load_bytes(skb, 0, c->frame, size))
		return 0;
	c->at = now;
	c->port = port;
	c->direction = direction;
	c->length = skb->len;
	c->size = size;
	f->captured = true;
	return 0;
}

/* Hand over the frame that was kept. */
static __noinline int give_frame(const struct frame *f, __u32 reason)
{
	__u32 zero = 0, size;
	struct event_stat *all = bpf_map_lookup_elem(&event_stat, &zero);
	struct capture *c = bpf_map_lookup_elem(&captured, &zero);

	if (!c || !all)
		return 0;
	c->reason = reason;
	c->rule = f->rule;
	c->service = f->service;
	size = c->size;
	if (size > CAPTURE_MAX)
		size = CAPTURE_MAX;
	if (bpf_ringbuf_output(&captures, c, offsetof(struct capture, frame) + size, 0))
		all->frames_lost++;
	return 0;
}

/* The frame stands before a port, to enter it or come out of it. */
static __always_inline void stand_at(struct __sk_buff *skb, struct frame *f, __u32 port, __u8 direction)
{
	f->port[direction & 1] = port;
	if (trace)
		trace_place(TRACE_PORT, port, direction, 0, 0);
	if (is_captured(port))
		take_frame(skb, f, port, direction);
}

/* Counters */

static __always_inline void count_port(__u32 port, __u8 direction, const struct frame *f, bool dropped)
{
	struct port_stat *s = port && !trace ? bpf_map_lookup_elem(&port_stat, &port) : NULL;
	__u64 packets = f->packets ?: 1;

	if (!s)
		return;
	if (dropped) {
		s->packets_dropped += packets;
	} else if (direction == DIRECTION_IN) {
		s->packets_in += packets;
		s->bytes_in += f->bytes;
	} else {
		s->packets_out += packets;
		s->bytes_out += f->bytes;
	}
}

/* Is it over with the packet? */
static __always_inline bool is_drop(__u32 reason)
{
	return reason >= REASON_MALFORMED || reason == REASON_TOO_BIG_ANSWERED;
}

/*
 * Account for a frame that leaves a program, at the ports it stood at. Global, so
 * that the verifier reads it once. f is NULL when nothing is known of the packet.
 */
__noinline int settle(const struct frame *f, __u32 reason)
{
	bool dropped = is_drop(reason);

	if (trace)
		return trace_reason(TRACE_EXIT, reason, f ? f->port[place_of(f)] : 0);
	if (f && f->captured)
		give_frame(f, reason);
	if (f) {
		count(reason, f->packets ?: 1);
		count_port(f->port[DIRECTION_IN], DIRECTION_IN, f, dropped);
		count_port(f->port[DIRECTION_OUT], DIRECTION_OUT, f, dropped && !f->port[DIRECTION_IN]);
	} else {
		count(reason, 1);
	}
	return dropped ? tell_drop(f, reason) : 0;
}
