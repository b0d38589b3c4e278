/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include "leave.h"
#include "nlb.h"

/* A ping to a VIP is answered here, back to where it came from: a VIP is on no
 * machine that could. */

/* Swap the ends of the packet under the cursor, and give it all its hops again. */
static __always_inline bool turn_ip(struct cursor c, const struct packet *pkt)
{
	if (pkt->family == 6) {
		struct ipv6hdr *ip = take(&c, sizeof(*ip));

		if (!ip)
			return false;
		__builtin_memcpy(&ip->saddr, &pkt->daddr, sizeof(ip->saddr));
		__builtin_memcpy(&ip->daddr, &pkt->saddr, sizeof(ip->daddr));
		ip->hop_limit = OUTER_TTL;
	} else {
		struct iphdr *ip = take(&c, sizeof(*ip));

		if (!ip)
			return false;
		ip->saddr = ip16_v4(&pkt->daddr);
		ip->daddr = ip16_v4(&pkt->saddr);
		ip->check = csum_swap(ip->check, ip->ttl, OUTER_TTL);
		ip->ttl = OUTER_TTL;
	}
	return true;
}

/* Both checksums cover the sum of the addresses or none: swapped, it is the same. */
static __noinline int echo(struct xdp_md *ctx, const struct packet *pkt)
{
	struct cursor c = xdp_cursor(ctx), l4 = c;
	struct ethhdr *eth = take(&c, sizeof(*eth));
	struct icmphdr *icmp = take_at_l4(&l4, pkt, sizeof(*icmp));
	__u8 answer = pkt->family == 6 ? ICMP6_ECHOREPLY : ICMP_ECHOREPLY;
	__u8 mac[ETH_ALEN];

	if (!eth || !icmp || !turn_ip(c, pkt))
		return leave(XDP_DROP, REASON_MALFORMED);
	__builtin_memcpy(mac, eth->h_source, ETH_ALEN);
	__builtin_memcpy(eth->h_source, eth->h_dest, ETH_ALEN);
	__builtin_memcpy(eth->h_dest, mac, ETH_ALEN);
	icmp->checksum = csum_swap(icmp->checksum, icmp->type, answer);
	icmp->type = answer;
	return leave(XDP_TX, REASON_ECHOED);
}
