/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include "maps.h"

/* What the host of a backend measures of its connections (measure.h). Conventions: maps.h. */

/*
 * Of one backend, since the host came up. opened − closed are live: confirmed by
 * their third packet, and not ended by both FINs, a RST, or time. TCP and UDP alike.
 */
struct conn_stat {
	__u64 opened;
	__u64 closed;
	__u64 refused;	      /* SYNs it did not take: draining, unhealthy, or at its limit */
	__u64 resets_in;      /* RSTs that ended a flow, from the client */
	__u64 resets_out;     /* and from the instance */
	__u64 retransmits_in; /* segments with what had been sent before */
	__u64 retransmits_out;
	__u64 reserved;
};

#define LATENCY_BUCKETS 25

/*
 * From a SYN to the answer's SYN, at the backend's host. A connection whose answer
 * took t µs is counted in bucket n where 2^(n−1) ≤ t < 2^n, less than 1 µs in bucket
 * 0, more than 8 s in the last one.
 */
struct latency {
	__u64 count[LATENCY_BUCKETS];
	__u64 sum; /* µs of all together */
};

/* Written by uplink, uplink_in, vm_in and ct_sweep with atomic additions, indexed by
 * the zone's backend id, as backends is. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, struct conn_stat);
} backend_conn SEC(".maps");

/* Written by vm_in at a service's first answer; the agent deletes what is of a
 * service that is gone. By the zone's service id. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, __u32);
	__type(value, struct latency);
} svc_latency SEC(".maps");
