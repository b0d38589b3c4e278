/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include "events.h"
#include "measure.h"

/* A pass over a port's flows that deletes what is over. */

struct bpf_map;

/* What a pass is asked for and what it did. */
struct sweep {
	__u32 port;
	__u32 live;
	__u32 expired; /* and deleted */
	__u32 flags;   /* the port's, enum port_flag */
	__u64 now;
	__u32 all; /* asked for: the port goes, and with it what is not over yet */
	__u32 pad;
};

static __always_inline bool is_swept(const struct ct_key *key, const struct ct *flow, const struct sweep *s)
{
	return s->all || is_expired(flow, key->proto, s->now);
}

static long sweep_flow(struct bpf_map *flows, const struct ct_key *key, struct ct *flow, struct sweep *s)
{
	if (!is_swept(key, flow, s)) {
		s->live++;
		return 0;
	}
	count_closed(flow);
	if (!bpf_map_delete_elem(flows, key))
		s->expired++;
	return 0;
}

/*
 * The quota is used up: make room of what has expired. The agent sweeps all the
 * time; this is for the day it is gone, because forwarding has no time limit
 * without it. At most once a second a port, since a pass over a table of live
 * flows takes milliseconds and frees nothing.
 */
static __noinline bool make_room(void *est, __u32 port, __u64 now)
{
	struct port_cfg *pc = bpf_map_lookup_elem(&port_cfg, &port);
	struct sweep s = { .now = now };
	__u64 *last = bpf_map_lookup_elem(&ct_swept, &port);

	if (trace || !last || now - *last < SECOND)
		return false;
	*last = now;
	bpf_for_each_map_elem(est, sweep_flow, &s, 0);
	if (pc && pc->flags & PORT_FLOW_LOG)
		lose_events(s.expired); /* too many calls deep to tell of each */
	return true;			/* not whether it freed any: the verifier would follow every count */
}
