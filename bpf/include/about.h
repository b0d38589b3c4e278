/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include "encap.h"
#include "inet.h"

/*
 * An ICMP error for a VIP. It quotes a packet that a backend has sent, and takes
 * the way of those that the flow's client sends: which slot those have is in the
 * quote, read backwards. So it comes to the backend whichever LB node gets it.
 */

/* RFC 792 has 8 bytes of L4 in a quote: the ports. */
struct quoted_l4 {
	__be16 sport;
	__be16 dport;
	__u8 rest[4];
};

/* Errors that tell of a flow. Redirects are the routers' affair. */
static __always_inline bool is_error(const struct packet *pkt)
{
	return pkt->proto == IPPROTO_ICMP && (pkt->icmp_type == ICMP_UNREACHABLE ||
					      pkt->icmp_type == ICMP_TIME_EXCEEDED || pkt->icmp_type == ICMP_PARAMETER);
}

/* The ports that an ICMP error quotes, and the header before them; NULL when it
 * quotes none. */
static __always_inline struct quoted_l4 *take_quote(struct cursor *c, struct iphdr **quoted)
{
	struct iphdr *ip, *q;

	if (!take(c, sizeof(struct ethhdr)))
		return NULL;
	ip = take(c, sizeof(*ip));
	if (!ip || !take_l4(c, ip, sizeof(struct icmphdr)))
		return NULL;
	q = take(c, sizeof(*q));
	if (!q || q->version != 4 || q->frag_off & bpf_htons(IP_OFFSET_MASK))
		return NULL;
	*quoted = q;
	return take_l4(c, q, sizeof(struct quoted_l4));
}

/* The MTU that a "fragmentation needed" names (RFC 1191). */
static __always_inline __u16 next_mtu(struct cursor c)
{
	struct iphdr *ip;
	struct icmphdr *icmp;

	if (!take(&c, sizeof(struct ethhdr)))
		return 0;
	ip = take(&c, sizeof(*ip));
	if (!ip)
		return 0;
	icmp = take_l4(&c, ip, sizeof(*icmp));
	return icmp ? bpf_ntohs(icmp->sequence) : 0;
}

/*
 * Make of an ICMP error's packet one that the client of its flow has sent, but for
 * the size and the hops left. A reason leaves it as it was. Global, as track is.
 */
__noinline enum reason read_quote(struct xdp_md *ctx, struct packet *pkt)
{
	struct cursor c = xdp_cursor(ctx);
	struct quoted_l4 *l4;
	struct iphdr *q;

	if (!pkt)
		return REASON_MALFORMED;
	l4 = take_quote(&c, &q);
	if (!l4 || q->saddr != ip16_v4(&pkt->daddr) || (q->protocol != IPPROTO_TCP && q->protocol != IPPROTO_UDP))
		return REASON_NO_SERVICE;
	if (is_bad_client(pkt))
		return REASON_BAD_SOURCE;
	pkt->saddr = ip16_of(q->daddr);
	pkt->sport = l4->dport;
	pkt->dport = l4->sport;
	pkt->proto = q->protocol;
	return REASON_NONE;
}

/* Have the trip of an ICMP error go where its flow's packets go. */
static __always_inline enum reason follow_quote(struct xdp_md *ctx, struct trip *t)
{
	enum reason reason = read_quote(ctx, &t->pkt);

	t->error = !reason;
	return reason;
}
