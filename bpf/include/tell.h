/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include "encap.h"
#include "toobig.h"

/*
 * What a client is told about a packet that cannot go on to a backend: it is larger
 * than the way takes and must not be cut in two (RFC 1191), or its hops are spent.
 * The answer comes from the VIP, so that nothing of the network behind it shows, and
 * goes back the way the packet came.
 */

#define TOLD_PER_SECOND 1000 /* of a VIP, each node */
#define QUOTE_LEAST	((__u32)sizeof(struct iphdr) + 8)
#define QUOTE_LEAST6	((__u32)sizeof(struct ipv6hdr) + 8)

#define ICMP6_TIME_EXCEEDED 3

/* What a VIP's rates have left; NULL: nobody can tell. */
static __noinline struct vip_pace *pace_of_vip(const struct ip16 *vip)
{
	struct vip_pace *p = bpf_map_lookup_elem(&vip_pace, vip), fresh = {};

	if (p || trace)
		return p;
	bpf_map_update_elem(&vip_pace, vip, &fresh, BPF_NOEXIST);
	return bpf_map_lookup_elem(&vip_pace, vip);
}

/* May this VIP's clients be told of one more? Global, as track is; so are all here
 * that need no pointer out of a trip. */
__noinline bool may_tell_client(const struct ip16 *vip)
{
	struct vip_pace *p = vip ? pace_of_vip(vip) : NULL;

	return p ? keeps_pace(&p->told, TOLD_PER_SECOND) : trace;
}

static __always_inline bool must_not_be_cut(struct xdp_md *ctx, const struct packet *pkt)
{
	struct cursor c = xdp_cursor(ctx);
	struct iphdr *ip;

	if (pkt->family == 6)
		return true;
	if (!take(&c, sizeof(struct ethhdr)))
		return false;
	ip = take(&c, sizeof(*ip));
	return ip && ip->frag_off & bpf_htons(IP_DF);
}

/* Room for size bytes of headers in front of the packet, behind Ethernet's, which
 * turns around. The cursor is left there. */
static __always_inline enum reason turn(struct xdp_md *ctx, const struct cfg *c, struct cursor *cur, __u32 size)
{
	struct ethhdr *eth, was;

	*cur = xdp_cursor(ctx);
	eth = take(cur, sizeof(*eth));
	if (!eth)
		return REASON_MALFORMED;
	was = *eth;
	if (bpf_xdp_adjust_head(ctx, -(int)size))
		return REASON_NO_HEADROOM;
	*cur = xdp_cursor(ctx);
	eth = take(cur, sizeof(*eth));
	if (!eth)
		return REASON_MALFORMED;
	__builtin_memcpy(eth->h_dest, was.h_source, ETH_ALEN);
	__builtin_memcpy(eth->h_source, c->uplink_mac, ETH_ALEN);
	eth->h_proto = was.h_proto;
	return REASON_NONE;
}

/* Put the answer in front of the first quote bytes of the packet, which it quotes. */
static __always_inline enum reason write_told4(struct xdp_md *ctx, const struct cfg *c, const struct packet *to,
					       const struct too_big *say, const __u32 quote)
{
	enum reason reason;
	struct too_big *icmp;
	struct cursor cur;
	struct iphdr *ip;

	reason = turn(ctx, c, &cur, sizeof(*ip) + sizeof(*icmp));
	if (reason)
		return reason;
	ip = take(&cur, sizeof(*ip));
	if (!ip)
		return REASON_MALFORMED;
	icmp = take(&cur, sizeof(*icmp) + quote);
	if (!icmp)
		return REASON_MALFORMED;
	__builtin_memset(ip, 0, sizeof(*ip));
	ip->version = 4;
	ip->ihl = sizeof(*ip) / 4;
	ip->tot_len = bpf_htons(sizeof(*ip) + sizeof(*icmp) + quote);
	ip->ttl = OUTER_TTL;
	ip->protocol = IPPROTO_ICMP;
	ip->saddr = ip16_v4(&to->daddr);
	ip->daddr = ip16_v4(&to->saddr);
	ip->check = ip_csum(ip);
	*icmp = *say;
	icmp->checksum = ~csum_fold(bpf_csum_diff(NULL, 0, (__be32 *)icmp, sizeof(*icmp) + quote, 0));
	return cut(ctx, sizeof(struct ethhdr) + sizeof(*ip) + sizeof(*icmp) + quote) ? REASON_MALFORMED : REASON_NONE;
}

/* Headers of an answer over IPv6; its checksum covers all from saddr on. */
struct told6 {
	struct ipv6hdr ip;
	struct too_big icmp;
};

static __always_inline enum reason write_told6(struct xdp_md *ctx, const struct cfg *c, const struct packet *to,
					       const struct too_big *say, const __u32 quote)
{
	const __u32 message = sizeof(struct too_big) + quote;
	enum reason reason;
	struct cursor cur;
	struct told6 *t;

	reason = turn(ctx, c, &cur, sizeof(*t));
	if (reason)
		return reason;
	t = take(&cur, sizeof(*t) + quote);
	if (!t)
		return REASON_MALFORMED;
	__builtin_memset(&t->ip, 0, sizeof(t->ip));
	t->ip.version = 6;
	t->ip.payload_len = bpf_htons(message);
	t->ip.nexthdr = IPPROTO_ICMPV6;
	t->ip.hop_limit = OUTER_TTL;
	__builtin_memcpy(&t->ip.saddr, &to->daddr, sizeof(t->ip.saddr));
	__builtin_memcpy(&t->ip.daddr, &to->saddr, sizeof(t->ip.daddr));
	t->icmp = *say;
	t->icmp.checksum = ~csum_fold(bpf_csum_diff(NULL, 0, (__be32 *)&t->ip.saddr, 32 + message,
						    bpf_htonl(message) + bpf_htonl(IPPROTO_ICMPV6)));
	return cut(ctx, sizeof(struct ethhdr) + sizeof(*t) + quote) ? REASON_MALFORMED : REASON_NONE;
}

static __always_inline enum reason tell4(struct xdp_md *ctx, const struct cfg *c, const struct packet *to, __u32 mtu)
{
	struct too_big say = { .type = ICMP_TIME_EXCEEDED };

	if (mtu)
		say = (struct too_big){ .type = ICMP_UNREACHABLE, .code = ICMP_FRAG_NEEDED, .mtu = bpf_htons(mtu) };
	if (to->length >= QUOTE_V4)
		return write_told4(ctx, c, to, &say, QUOTE_V4);
	if (to->l4 == sizeof(struct ethhdr) + sizeof(struct iphdr))
		return write_told4(ctx, c, to, &say, QUOTE_LEAST);
	return mtu ? REASON_OVERSIZE : REASON_TTL;
}

static __always_inline enum reason tell6(struct xdp_md *ctx, const struct cfg *c, const struct packet *to, __u32 mtu)
{
	struct too_big say = { .type = ICMP6_TIME_EXCEEDED };

	if (mtu)
		say = (struct too_big){ .type = ICMP6_TOO_BIG, .mtu = bpf_htons(mtu) };
	if (to->length >= QUOTE_V6)
		return write_told6(ctx, c, to, &say, QUOTE_V6);
	return write_told6(ctx, c, to, &say, QUOTE_LEAST6); /* the shortest one has that much */
}

/* Write over the packet what its sender is told: of mtu, or 0: of its hops. */
__noinline enum reason write_told(struct xdp_md *ctx, const struct cfg *c, const struct packet *pkt, __u32 mtu)
{
	if (!c || !pkt)
		return REASON_NO_CONFIG;
	if (mtu && !must_not_be_cut(ctx, pkt))
		return REASON_OVERSIZE;
	if (!may_tell_client(&pkt->daddr))
		return mtu ? REASON_OVERSIZE : REASON_TTL;
	return pkt->family == 6 ? tell6(ctx, c, pkt, mtu) : tell4(ctx, c, pkt, mtu);
}

/*
 * Tell the client that its packet is larger than mtu; 0: that its hops are spent. Else,
 * and of what nobody is to be told (errors, fragments but the first), it drops as one.
 */
static __always_inline int tell_client(struct xdp_md *ctx, const struct cfg *c, const struct trip *t, __u32 mtu)
{
	enum reason reason = mtu ? REASON_OVERSIZE : REASON_TTL;

	if (!t->probe && !t->error && t->piece.kind != FRAGMENT_LATER)
		reason = write_told(ctx, c, &t->pkt, mtu);
	if (reason)
		return end_trip(t, XDP_DROP, reason);
	return end_trip(t, XDP_TX, mtu ? REASON_TOO_BIG_ANSWERED : REASON_TTL_ANSWERED);
}
