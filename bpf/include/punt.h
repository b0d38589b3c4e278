/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include "port.h"

/* How often a port may ask for what costs others, and what goes to the agent. */

#define ANSWERS_PER_SECOND 20

/*
 * Take one of rate a second, saving up a second's worth. *due is when the saved
 * ones are back in full. Of two CPUs at the same moment one may go for free.
 */
static __noinline bool keeps_pace(__u64 *due, __u32 rate)
{
	__u64 now = bpf_ktime_get_ns(), was, from;

	if (!due || !rate)
		return false;
	was = READ_ONCE(*due);
	from = was > now ? was : now;
	if (from - now >= SECOND)
		return false;
	__sync_val_compare_and_swap(due, was, from + SECOND / rate);
	return true;
}

/* To the agent, which answers DHCP and router solicitations. */
static __noinline int punt(struct __sk_buff *skb, const struct frame *f, __u32 port)
{
	struct pace *p = bpf_map_lookup_elem(&pace, &port);
	__u32 length = skb->len;
	struct punt *punt;

	if (!p || !keeps_pace(&p->punt, ANSWERS_PER_SECOND))
		return drop(f, REASON_PUNT_RATE);
	if (length < sizeof(struct ethhdr) || length > PUNT_MAX)
		return drop(f, REASON_OVERSIZE);
	punt = bpf_ringbuf_reserve(&punts, sizeof(*punt), 0);
	if (!punt)
		return drop(f, REASON_PUNT_LOST);
	punt->at = bpf_ktime_get_ns();
	punt->port = port;
	punt->length = length;
	if (bpf_skb_load_bytes(skb, 0, punt->frame, length)) {
		bpf_ringbuf_discard(punt, 0);
		return drop(f, REASON_MALFORMED);
	}
	bpf_ringbuf_submit(punt, 0);
	return drop(f, REASON_PUNTED);
}
