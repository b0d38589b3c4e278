/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include <stdbool.h>

#include "maps.h"

/*
 * A twin of the programs that says what they would do with a packet and changes
 * nothing: it reads the live maps, writes none, and leaves its steps here. In the
 * live programs the constant is false, and the verifier takes all of this out.
 */
const volatile bool trace = false;

#define TRACE_STEPS 48

enum trace_stage {
	TRACE_PORT = 1,	    /* it stands at a port; a: enum direction */
	TRACE_OWNER = 2,    /* may port speak for ip? a: 1 if so */
	TRACE_PREFIX = 3,   /* what ip's range is; a: enum prefix_flag, 0: nothing special */
	TRACE_ADDRESS = 4,  /* the port here that has ip; 0: none */
	TRACE_STATION = 5,  /* where a MAC of network a is: port, or the host whose endpoint is b */
	TRACE_FLOW = 6,	    /* a flow: rule; a: enum ct_state, 0: none there; b: it is confirmed;
			     * c: its generation, d: the port's */
	TRACE_POLICY = 7,   /* the policy, asked whether a flow may begin: reason, rule; ip: the peer;
			     * a: policy, b: protocol, c: port of the question, d: enum direction */
	TRACE_OPENS = 8,    /* a flow would begin: rule */
	TRACE_SERVICE = 9,  /* a VIP's service: a: service, b: hash, c: the slot's owner, d: the other one */
	TRACE_BACKEND = 10, /* where backend a is: port, or the host whose endpoint is b */
	TRACE_WEIGH = 11,   /* backend a at port: b: it knows the flow, c: enum fate */
	TRACE_EXIT = 12,    /* it leaves, or is dropped: reason */
	TRACE_COPY = 13,    /* a copy of it to a port: reason, 0: it goes there; b: or to that endpoint */
};

struct trace_step {
	__u32 stage;  /* enum trace_stage */
	__u32 reason; /* enum reason; 0: it goes on */
	__u32 port;
	__u32 rule;
	__u32 a;
	__u32 b;
	__u32 c;
	__u32 d;
	struct ip16 ip;
};

struct trace_log {
	__u32 steps; /* that were made; more than TRACE_STEPS are not kept */
	__u32 pad;
	struct trace_step step[TRACE_STEPS];
};

/* Written by a twin, read by who runs it; each object has its own. One record. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct trace_log);
} trace_steps SEC(".maps");

/* The next step, to be filled. Only a twin makes any. */
static __noinline struct trace_step *trace_next(__u32 stage)
{
	__u32 zero = 0, at;
	struct trace_log *log = bpf_map_lookup_elem(&trace_steps, &zero);

	if (!log)
		return NULL;
	at = log->steps++;
	if (at >= TRACE_STEPS)
		return NULL;
	log->step[at].stage = stage;
	return &log->step[at];
}

static __noinline int trace_reason(__u32 stage, __u32 reason, __u32 port)
{
	struct trace_step *s = trace_next(stage);

	if (s) {
		s->reason = reason;
		s->port = port;
	}
	return 0;
}

static __noinline int trace_ip(__u32 stage, __u32 port, const struct ip16 *ip, __u32 a)
{
	struct trace_step *s = trace_next(stage);

	if (s) {
		s->port = port;
		s->ip = *ip;
		s->a = a;
	}
	return 0;
}

static __noinline int trace_place(__u32 stage, __u32 port, __u32 a, __u32 b, __u32 c)
{
	struct trace_step *s = trace_next(stage);

	if (s) {
		s->port = port;
		s->a = a;
		s->b = b;
		s->c = c;
	}
	return 0;
}
