/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include "extension.h"

/* Reading an IPv6 packet in XDP, into the same struct packet as an IPv4 one. */

/* One extension header at pkt->l4, of protocol pkt->proto; both move on. */
static __always_inline enum reason pass_header(struct xdp_md *ctx, struct packet *pkt, bool first)
{
	struct cursor c = xdp_cursor(ctx);
	struct fraghdr *h = take_at_l4(&c, pkt, sizeof(*h));
	__u8 proto = pkt->proto;

	if (!h)
		return REASON_MALFORMED;
	if (is_odd_extension(h, proto, first))
		return REASON_EXTENSIONS;
	pkt->proto = h->next;
	pkt->l4 += sizeof(*h);
	if (proto != IPPROTO_FRAGMENT)
		pkt->l4 += h->reserved * 8;
	if (pkt->l4 > sizeof(struct ethhdr) + pkt->length)
		return REASON_MALFORMED;
	if (pkt->l4 > sizeof(struct ethhdr) + sizeof(struct ipv6hdr) + EXTENSIONS_BYTES_MAX)
		return REASON_EXTENSIONS;
	/* RFC 6946: offset 0 and no more is no fragment. */
	return proto == IPPROTO_FRAGMENT && h->offset & ~bpf_htons(6) ? REASON_FRAGMENT : REASON_NONE;
}

/* To the L4 header. */
static __noinline enum reason pass_headers(struct xdp_md *ctx, struct packet *pkt)
{
	enum reason reason;

	for (int i = 0; i < EXTENSIONS_MAX; i++) {
		reason = pass_header(ctx, pkt, i == 0);
		if (reason || !is_extension(pkt->proto))
			return reason;
	}
	return REASON_EXTENSIONS;
}

/* How long the L4 header is at least. */
static __always_inline __u32 least_l4(const struct packet *pkt)
{
	return pkt->proto == IPPROTO_TCP ? sizeof(struct tcphdr) : sizeof(struct udphdr);
}

/*
 * Read the IPv6 header under the cursor and what follows it. Addresses are valid
 * unless the reason is MALFORMED, the protocol only without a reason.
 */
static __always_inline enum reason parse_ipv6(struct xdp_md *ctx, struct cursor *c, struct packet *pkt)
{
	struct ipv6hdr *ip = take(c, sizeof(*ip));
	struct cursor rest = *c;
	enum reason reason;

	if (!ip || ip->version != 6 || !take(&rest, bpf_ntohs(ip->payload_len)))
		return REASON_MALFORMED;
	pkt->family = 6;
	__builtin_memcpy(&pkt->saddr, &ip->saddr, sizeof(pkt->saddr));
	__builtin_memcpy(&pkt->daddr, &ip->daddr, sizeof(pkt->daddr));
	pkt->proto = ip->nexthdr;
	pkt->ttl = ip->hop_limit;
	pkt->length = sizeof(*ip) + bpf_ntohs(ip->payload_len);
	pkt->l4 = sizeof(struct ethhdr) + sizeof(*ip);
	if (is_extension(pkt->proto)) {
		reason = pass_headers(ctx, pkt);
		if (reason)
			return reason;
		*c = xdp_cursor(ctx);
		if (!to_l4(c, pkt))
			return REASON_MALFORMED;
	}
	reason = parse_l4(c, pkt);
	if (!reason && pkt->l4 + least_l4(pkt) > sizeof(struct ethhdr) + pkt->length)
		return REASON_MALFORMED;
	return reason;
}

static __always_inline bool is_inet(__be16 type)
{
	return type == bpf_htons(ETH_P_IP) || type == bpf_htons(ETH_P_IPV6);
}

/* Read the packet of either family under the cursor, which stands behind Ethernet. */
static __always_inline enum reason parse(struct xdp_md *ctx, struct cursor *c, __be16 type, struct packet *pkt)
{
	return type == bpf_htons(ETH_P_IPV6) ? parse_ipv6(ctx, c, pkt) : parse_ipv4(c, pkt);
}

/* May a packet from the network have this source? The host's own services have
 * link-local ones, and an IPv4 address is never right in an IPv6 header. */
static __always_inline bool is_bad_client(const struct packet *pkt)
{
	if (pkt->family == 4)
		return is_host_source(ip16_v4(&pkt->saddr));
	return is_link_local(&pkt->saddr) || is_multicast6(&pkt->saddr) || is_low6(&pkt->saddr) || is_v4(&pkt->saddr);
}
