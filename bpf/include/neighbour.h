/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include "vm.h"

/*
 * ARP of a public port. The gateway is whatever address is asked for: there is
 * no L2 between VMs.
 */

/* Turn the question under the cursor into its answer. */
static __always_inline enum reason answer_arp(struct cursor *c, struct ethhdr *eth, const struct port_cfg *pc,
					      __u32 port)
{
	struct arphdr *arp = take(c, sizeof(*arp));
	struct ip16 sender, target;
	__be32 asked;

	if (!arp)
		return REASON_MALFORMED;
	if (arp->hardware != bpf_htons(1) || arp->protocol != bpf_htons(ETH_P_IP) || arp->op != bpf_htons(1))
		return REASON_ARP_IGNORED;
	if (!same_mac(arp->sender_mac, pc->mac))
		return REASON_SPOOFED_ARP;
	sender = ip16_of(arp->sender_ip);
	target = ip16_of(arp->target_ip);
	if (arp->sender_ip && !owns(port, &sender))
		return REASON_SPOOFED_ARP;
	/* A VM that asks for its own address looks for a duplicate. */
	if (owns(port, &target))
		return REASON_ARP_IGNORED;

	asked = arp->target_ip;
	arp->op = bpf_htons(2);
	__builtin_memcpy(arp->target_mac, arp->sender_mac, ETH_ALEN);
	arp->target_ip = arp->sender_ip;
	__builtin_memcpy(arp->sender_mac, pc->gateway_mac, ETH_ALEN);
	arp->sender_ip = asked;
	__builtin_memcpy(eth->h_dest, pc->mac, ETH_ALEN);
	__builtin_memcpy(eth->h_source, pc->gateway_mac, ETH_ALEN);
	return REASON_NONE;
}

static __always_inline int from_arp(struct __sk_buff *skb, const struct frame *f, const struct port_cfg *pc, __u32 port)
{
	struct cursor c = skb_cursor(skb);
	struct ethhdr *eth = take(&c, sizeof(*eth));
	enum reason reason = REASON_MALFORMED;

	if (eth)
		reason = answer_arp(&c, eth, pc, port);
	if (reason)
		return drop(f, reason);
	skb->mark = GUARD_MARK;
	return redirected(f, bpf_redirect(pc->ifindex, 0), REASON_ARP_ANSWERED);
}
