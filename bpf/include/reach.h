/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include "leave.h"

/*
 * Does this host reach that one? An agent asks through the tunnel, as its load-
 * balanced packets go; the other host answers here, in XDP, whatever its agent
 * does; the answer's time is written down here too. The question may be of any
 * size, so that it tests the path's MTU as well.
 */

#define ETH_P_REACH 0x88b5 /* IEEE 802: for local experiments */

enum reach_op {
	REACH_ASK = 1,
	REACH_ANSWER = 2,
};

/* Behind the inner Ethernet header. */
struct reachhdr {
	__u8 op; /* enum reach_op */
	__u8 reserved[7];
	__u64 sent; /* the asker's own clock; comes back as it was */
};

/* Send the question back as the answer. */
static __always_inline int answer_reach(struct xdp_md *ctx, const struct cfg *c)
{
	struct cursor cur = xdp_cursor(ctx);
	struct ethhdr *eth = take(&cur, sizeof(*eth));
	struct iphdr *ip;
	struct udphdr *udp;

	if (!eth)
		return leave(XDP_DROP, REASON_MALFORMED);
	ip = take(&cur, sizeof(*ip));
	if (!ip)
		return leave(XDP_DROP, REASON_MALFORMED);
	udp = take_l4(&cur, ip, sizeof(*udp));
	if (!udp)
		return leave(XDP_DROP, REASON_MALFORMED);
	__builtin_memcpy(eth->h_dest, eth->h_source, ETH_ALEN);
	__builtin_memcpy(eth->h_source, c->uplink_mac, ETH_ALEN);
	ip->daddr = ip->saddr;
	ip->saddr = c->endpoint;
	ip->check = csum_swap(ip->check, ip->ttl, OUTER_TTL);
	ip->ttl = OUTER_TTL;
	udp->check = 0;
	return leave(XDP_TX, REASON_REACH_ANSWERED);
}

/* The cursor stands behind the inner Ethernet header. */
static __always_inline int from_reach(struct xdp_md *ctx, const struct cfg *c, struct cursor cur, __u32 host)
{
	struct reachhdr *reach = take(&cur, sizeof(*reach));
	struct reach *seen;

	if (!reach)
		return leave(XDP_DROP, REASON_MALFORMED);
	if (reach->op == REACH_ASK) {
		reach->op = REACH_ANSWER;
		return answer_reach(ctx, c);
	}
	if (reach->op != REACH_ANSWER)
		return leave(XDP_DROP, REASON_MALFORMED);
	seen = bpf_map_lookup_elem(&vtep_seen, &host);
	if (seen && !trace) {
		seen->sent = reach->sent;
		seen->seen = bpf_ktime_get_ns();
	}
	return leave(XDP_DROP, REASON_REACHED);
}
