/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include "flow.h"
#include "visit.h"

/*
 * Only the host of a backend sees both directions of its connections: it counts
 * them, how long their answers take, and what goes wrong. Nothing here is on the
 * way of a packet that is neither first nor last nor sent twice.
 */

static __always_inline struct conn_stat *conn_stat_of(__u32 backend)
{
	return trace || !backend ? NULL : bpf_map_lookup_elem(&backend_conn, &backend);
}

/* A confirmed flow is live. Whoever sets the flow's mark counts it, once. */
static __always_inline void count_opened(struct ct *f)
{
	struct conn_stat *s = conn_stat_of(f->backend);

	if (s && !__sync_val_compare_and_swap(&f->counted, 0, 1))
		__sync_fetch_and_add(&s->opened, 1);
}

/* It is over, or its record goes. An alias is no flow. */
static __always_inline void count_closed(struct ct *f)
{
	struct conn_stat *s;

	if (!f->counted || f->flags & CT_ALIAS)
		return;
	s = conn_stat_of(f->backend);
	if (s && __sync_val_compare_and_swap(&f->counted, 1, 0))
		__sync_fetch_and_add(&s->closed, 1);
}

/* Delete a flow that may be counted as live. */
static __always_inline void forget(void *flows, const struct ct_key *key)
{
	struct ct *f = bpf_map_lookup_elem(flows, key);

	if (!f)
		return;
	count_closed(f);
	bpf_map_delete_elem(flows, key);
}

static const struct latency no_latency = {};

static __noinline struct latency *latency_of(__u32 service)
{
	struct latency *l = bpf_map_lookup_elem(&svc_latency, &service);

	if (l)
		return l;
	bpf_map_update_elem(&svc_latency, &service, &no_latency, BPF_NOEXIST);
	return bpf_map_lookup_elem(&svc_latency, &service);
}

#define LATENCY_MOST ((1ULL << (LATENCY_BUCKETS - 1)) - 1) /* us, in the last bucket */

/* How many bits v < 2^32 has, without a branch, since the verifier follows each. */
static __always_inline __u32 bits_of(__u64 v)
{
	__u32 bits = 0, step;

	for (int half = 16; half; half /= 2) {
		step = ((1ULL << half) - 1 - v) >> 63 << __builtin_ctz(half);
		v >>= step;
		bits += step;
	}
	return bits + (__u32)v;
}

/* The answer to the first SYN has come after ns. Global, so that the verifier reads it
 * once. */
__noinline int count_latency(__u32 service, __u64 ns)
{
	struct latency *l = latency_of(service);
	__u64 us = ns / 1000;
	__u32 bucket;

	if (!l)
		return 0;
	bucket = bits_of(us < LATENCY_MOST ? us : LATENCY_MOST);
	if (bucket < LATENCY_BUCKETS)
		l->count[bucket]++;
	l->sum += us;
	return 0;
}

/* A segment that fits the flow, before the flow's record takes it over; is_old: its
 * sender has sent all of it before. */
static __always_inline void observe(const struct ct *f, const struct visit *v, bool is_old, __u64 now)
{
	bool in = v->direction == DIRECTION_IN, reply = v->direction != f->direction;
	struct conn_stat *s;

	if (trace || !f->backend)
		return;
	if (reply && f->state == CT_NEW && (v->tcp_flags & (TCP_SYN | TCP_ACK)) == (TCP_SYN | TCP_ACK) &&
	    !(f->flags & CT_LOOSE))
		count_latency(f->service, now - f->created);
	if (!is_old && !(v->tcp_flags & TCP_RST))
		return;
	s = conn_stat_of(f->backend);
	if (!s)
		return;
	if (v->tcp_flags & TCP_RST)
		__sync_fetch_and_add(in ? &s->resets_in : &s->resets_out, 1);
	else
		__sync_fetch_and_add(in ? &s->retransmits_in : &s->retransmits_out, v->packets);
}
