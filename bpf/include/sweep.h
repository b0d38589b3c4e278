/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include "events.h"

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
	if (!is_swept(key, flow, s))
		s->live++;
	else if (!bpf_map_delete_elem(flows, key))
		s->expired++;
	return 0;
}
