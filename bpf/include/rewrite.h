/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include "encap.h"
#include "inet.h"

/* A balanced packet that has arrived: what it was sent to becomes its backend's. */

/* The destination in the IP header under the cursor. */
static __always_inline bool write_destination(struct cursor c, const struct trip *t)
{
	__be32 from = ip16_v4(&t->pkt.daddr), to = ip16_v4(&t->at->ip);

	if (t->pkt.family == 6) {
		struct ipv6hdr *ip = take(&c, sizeof(*ip));

		if (ip)
			__builtin_memcpy(&ip->daddr, &t->at->ip, sizeof(ip->daddr));
		return ip;
	} else {
		struct iphdr *ip = take(&c, sizeof(*ip));

		if (!ip)
			return false;
		ip->check = csum_swap(ip->check, from, to);
		ip->daddr = to;
		return true;
	}
}

/* A checksum of L4 that covered the VIP and a port. */
static __always_inline __u16 mend_checksum(__u16 sum, const struct trip *t, __be16 from, __be16 to)
{
	sum = csum_swap(sum, from, to);
	if (t->pkt.family == 6)
		return csum_swap16(sum, &t->pkt.daddr, &t->at->ip);
	return csum_swap(sum, ip16_v4(&t->pkt.daddr), ip16_v4(&t->at->ip));
}

/* VIP:port → instance:target-port, checksums following. */
static __always_inline enum reason rewrite_destination(struct cursor c, const struct trip *t)
{
	__be16 port = t->at->target_port;
	struct cursor ip = c;

	if (!take(&ip, sizeof(struct ethhdr)) || !write_destination(ip, t))
		return REASON_MALFORMED;
	if (t->piece.kind == FRAGMENT_LATER)
		return REASON_NONE;
	if (t->pkt.proto == IPPROTO_TCP) {
		struct tcphdr *tcp = take_at_l4(&c, &t->pkt, sizeof(*tcp));

		if (!tcp)
			return REASON_MALFORMED;
		tcp->check = mend_checksum(tcp->check, t, tcp->dest, port);
		tcp->dest = port;
	} else {
		struct udphdr *udp = take_at_l4(&c, &t->pkt, sizeof(*udp));

		if (!udp)
			return REASON_MALFORMED;
		if (udp->check)
			udp->check = mend_checksum(udp->check, t, udp->dest, port) ?: 0xffff;
		udp->dest = port;
	}
	return REASON_NONE;
}
