/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include "encap.h"
#include "flow.h"
#include "sweep.h"

/*
 * How many connections a backend of this host takes: as many at once as its
 * service's limit says. Those whose handshake is under way do not count yet, so a
 * flood of SYNs shuts nobody out, and a burst can go beyond the limit by what is on
 * its way at one moment.
 */

static __always_inline __u64 live_connections(const struct conn_stat *s)
{
	return READ_ONCE(s->opened) - READ_ONCE(s->closed);
}

/* What has expired is no connection any more, also on the day the agent is gone.
 * Global, so that the verifier reads it once. */
__noinline bool is_still_full(const struct conn_stat *s, __u32 port, __u32 limit)
{
	void *est = flows_of(port);

	if (est && s)
		make_room(est, port, bpf_ktime_get_ns());
	return s && live_connections(s) >= limit;
}

static __always_inline bool is_full(const struct trip *t)
{
	__u32 backend = t->backend, limit = t->svc->limit;
	struct conn_stat *s = limit ? bpf_map_lookup_elem(&backend_conn, &backend) : NULL;

	if (!s || live_connections(s) < limit)
		return false;
	return is_still_full(s, t->port, limit);
}

/* The backend has not taken a new connection. */
static __always_inline void count_refused(const struct trip *t)
{
	struct conn_stat *s = t->probe ? NULL : conn_stat_of(t->backend);

	if (s)
		__sync_fetch_and_add(&s->refused, 1);
}
