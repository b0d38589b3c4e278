/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include "visit.h"

/* How much a VM may send: a token bucket, kept as the time when it is full again. */

/* What may come at once: a tenth of a second's worth, but no less than a few
 * segments that the device has still to cut. */
#define RATE_BURST	 (SECOND / 10)
#define RATE_BURST_BYTES (256 * 1024)

/*
 * Take bytes out of the bucket of port, which fills with rate bytes a second.
 * What two CPUs take at the same moment is both accounted, so that nothing comes
 * of it in the long run.
 */
static __noinline bool within_rate(__u32 port, __u64 rate, __u64 bytes)
{
	struct pace *p = bpf_map_lookup_elem(&pace, &port);
	__u64 now = bpf_ktime_get_ns(), burst, full, cost;

	if (!p || !rate)
		return false;
	cost = bytes * SECOND / rate;
	burst = RATE_BURST_BYTES * SECOND / rate;
	if (burst < RATE_BURST)
		burst = RATE_BURST;
	full = READ_ONCE(p->sent);
	if (full > now && full - now >= burst) {
		/* No packet overdraws by so much: it was a lower rate's bucket. */
		if (full - now >= 2 * burst && !trace)
			__sync_val_compare_and_swap(&p->sent, full, now + burst);
		return false;
	}
	if (trace)
		return true;
	if (full > now || __sync_val_compare_and_swap(&p->sent, full, now + cost) != full)
		__sync_fetch_and_add(&p->sent, cost);
	return true;
}

static __always_inline bool may_send(const struct __sk_buff *skb, const struct frame *f, const struct port_cfg *pc,
				     __u32 port)
{
	return !pc->rate_from || within_rate(port, pc->rate_from, f->bytes ?: skb->len);
}
