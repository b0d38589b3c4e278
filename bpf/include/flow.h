/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include "packet.h"

/*
 * What is known about a flow at a port. The key is what the VM sees; the value
 * says what the wire sees. uplink (XDP) only reads; conntrack.h says who writes.
 */

#define SECOND 1000000000ULL

static __always_inline __u64 tcp_lifetime(const struct ct *f)
{
	switch (f->state) {
	case CT_NEW:
		return 30 * SECOND;
	case CT_REPLIED:
	case CT_CLOSED:
		return 60 * SECOND;
	case CT_RESET:
		return 10 * SECOND;
	}
	return (f->idle ?: 3600) * SECOND;
}

static __always_inline __u64 lifetime(const struct ct *f, __u8 proto)
{
	bool established = f->state == CT_ESTABLISHED;

	if (proto == IPPROTO_TCP)
		return tcp_lifetime(f);
	if (proto == IPPROTO_UDP)
		return established ? 180 * SECOND : 60 * SECOND;
	if (proto == IPPROTO_ICMP || proto == IPPROTO_ICMPV6)
		return 5 * SECOND;
	return established ? 600 * SECOND : 60 * SECOND;
}

/* More than span after then? Another CPU's then may be ahead of now; and one may
 * lie before the machine's start, if its flow comes from another host. */
static __always_inline bool is_past(__u64 then, __u64 span, __u64 now)
{
	return (__s64)(now - then) > (__s64)span;
}

static __always_inline bool is_expired(const struct ct *f, __u8 proto, __u64 now)
{
	return is_past(f->seen, lifetime(f, proto), now);
}

static __always_inline bool is_ending(const struct ct *f)
{
	return f->state >= CT_CLOSING;
}

/* A port's confirmed flows. */
static __always_inline void *flows_of(__u32 port)
{
	return bpf_map_lookup_elem(&ct_est, &port);
}

/* And the others. */
static __always_inline void *new_flows_of(__u32 port)
{
	return bpf_map_lookup_elem(&ct_new, &port);
}

/* The live flow under a key, in either. */
static __always_inline struct ct *live_flow(void *est, void *fresh, const struct ct_key *key, __u64 now)
{
	struct ct *f = bpf_map_lookup_elem(est, key);

	if (f && !is_expired(f, key->proto, now))
		return f;
	f = bpf_map_lookup_elem(fresh, key);
	return f && !is_expired(f, key->proto, now) ? f : NULL;
}
