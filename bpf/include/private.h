/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include "vm.h"

/*
 * Private networks: what a port of one sends. The frame's source MAC is the
 * port's; nothing else of it was looked at, so f->reason may be anything.
 */
static __always_inline int from_private(struct __sk_buff *skb, struct work *w, const struct cfg *c,
					const struct port_cfg *pc, __u32 port)
{
	(void)skb, (void)c, (void)pc, (void)port;
	return drop(&w->f, REASON_NO_NETWORK);
}

/* To the agent, which answers DHCP and router solicitations. */
static __always_inline int punt(struct __sk_buff *skb, const struct frame *f, __u32 port)
{
	(void)skb, (void)port;
	return drop(f, REASON_PUNT_LOST);
}
