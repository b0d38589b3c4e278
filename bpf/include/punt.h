/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include "pace.h"

/* What goes to the agent. */

#define ANSWERS_PER_SECOND 20

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
	if (trace)
		return drop(f, REASON_PUNTED);
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
