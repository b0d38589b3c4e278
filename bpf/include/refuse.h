/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include "address.h"
#include "leave.h"

/* Answer a SYN that nobody takes with a RST from where it went, so that the
 * client knows at once and need not wait for its timeout. */

#define REFUSALS_PER_SECOND 1000 /* of one CPU; a flood is dropped */

static __always_inline bool may_refuse(void)
{
	__u64 now = bpf_ktime_get_ns();
	__u32 key = 0;
	struct refusals *r = bpf_map_lookup_elem(&refusals, &key);

	if (!r)
		return false;
	if (!trace && now - r->since >= 1000000000ULL) {
		r->since = now;
		r->sent = 0;
	}
	if (trace)
		return r->sent < REFUSALS_PER_SECOND;
	return r->sent++ < REFUSALS_PER_SECOND;
}

/* What TCP's checksum covers beside TCP (RFC 9293, 3.1). */
static __always_inline __u32 pseudo_sum(const struct packet *pkt)
{
	__u32 sum = bpf_htons(IPPROTO_TCP) + bpf_htons(sizeof(struct tcphdr));
	int first = pkt->family == 6 ? 0 : 3;

	for (int i = first; i < 4; i++) {
		sum += (word_of(&pkt->saddr, i) & 0xffff) + (word_of(&pkt->saddr, i) >> 16);
		sum += (word_of(&pkt->daddr, i) & 0xffff) + (word_of(&pkt->daddr, i) >> 16);
	}
	return sum;
}

static __always_inline __u16 tcp_csum(const struct packet *pkt, const struct tcphdr *tcp)
{
	const __u16 *word = (const __u16 *)tcp;
	__u32 sum = pseudo_sum(pkt);

#pragma unroll
	for (int i = 0; i < (int)sizeof(*tcp) / 2; i++)
		sum += word[i];
	return ~csum_fold(sum);
}

static __always_inline bool write_reset_ip(struct cursor *c, const struct packet *to)
{
	if (to->family == 6) {
		struct ipv6hdr *ip = take(c, sizeof(*ip));

		if (!ip)
			return false;
		__builtin_memset(ip, 0, sizeof(*ip));
		ip->version = 6;
		ip->payload_len = bpf_htons(sizeof(struct tcphdr));
		ip->nexthdr = IPPROTO_TCP;
		ip->hop_limit = OUTER_TTL;
		__builtin_memcpy(&ip->saddr, &to->daddr, sizeof(ip->saddr));
		__builtin_memcpy(&ip->daddr, &to->saddr, sizeof(ip->daddr));
	} else {
		struct iphdr *ip = take(c, sizeof(*ip));

		if (!ip)
			return false;
		__builtin_memset(ip, 0, sizeof(*ip));
		ip->version = 4;
		ip->ihl = sizeof(*ip) / 4;
		ip->tot_len = bpf_htons(sizeof(*ip) + sizeof(struct tcphdr));
		ip->ttl = OUTER_TTL;
		ip->protocol = IPPROTO_TCP;
		ip->saddr = ip16_v4(&to->daddr);
		ip->daddr = ip16_v4(&to->saddr);
		ip->check = ip_csum(ip);
	}
	return true;
}

/* RFC 9293, 3.10.7.1: the RST that answers a SYN acknowledges it. */
static __always_inline void write_reset_tcp(struct tcphdr *tcp, const struct packet *to)
{
	__be32 seq = tcp->seq;

	__builtin_memset(tcp, 0, sizeof(*tcp));
	tcp->source = to->dport;
	tcp->dest = to->sport;
	tcp->ack_seq = bpf_htonl(bpf_ntohl(seq) + 1);
	tcp->doff = sizeof(*tcp) / 4;
	tcp->rst = 1;
	tcp->ack = 1;
	tcp->check = tcp_csum(to, tcp);
}

/* Turn the SYN into the RST. IP options and extension headers would have to be
 * moved out of the way: such a SYN is dropped. */
static __noinline enum reason reset(struct xdp_md *ctx, const struct cfg *c, const struct packet *syn)
{
	struct cursor cur = xdp_cursor(ctx);
	struct ethhdr *eth = take(&cur, sizeof(*eth));
	__u32 l3 = syn->family == 6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr);
	struct tcphdr *tcp;

	if (!eth || syn->l4 != sizeof(*eth) + l3 || !write_reset_ip(&cur, syn))
		return REASON_DRAINING;
	tcp = take(&cur, sizeof(*tcp));
	if (!tcp)
		return REASON_DRAINING;
	__builtin_memcpy(eth->h_dest, eth->h_source, ETH_ALEN);
	__builtin_memcpy(eth->h_source, c->uplink_mac, ETH_ALEN);
	write_reset_tcp(tcp, syn);
	return cut(ctx, sizeof(*eth) + l3 + sizeof(*tcp)) ? REASON_DRAINING : REASON_NONE;
}
