/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "maps_flow.h"
#include "maps_lb.h"
#include "maps_measure.h"
#include "maps_policy.h"
#include "maps_port.h"
#include "maps_private.h"
#include "maps_vip.h"
#include "maps_watch.h"
#include "trace.h"

/*
 * Reading and mending packets. Only the cursor compares against the end of the
 * data; a step that needs bytes takes them from a cursor and gets NULL when
 * the packet is shorter.
 */

#define READ_ONCE(x) (*(volatile typeof(x) *)&(x))

#define IP_FRAGMENTED 0x3fff /* MF and the offset */
#define TCP_FIN	      0x01
#define TCP_SYN	      0x02
#define TCP_RST	      0x04
#define TCP_ACK	      0x10

#define OUTER_TTL 64 /* of what we send ourselves */

#define ICMP_ECHOREPLY	0
#define ICMP_ECHO	8
#define ICMP6_ECHO	128
#define ICMP6_ECHOREPLY 129

/* The kernel's headers for these two drag in the C library's. */
struct icmphdr {
	__u8 type;
	__u8 code;
	__u16 checksum;
	__be16 id; /* of an echo */
	__be16 sequence;
};

struct arphdr {
	__be16 hardware;
	__be16 protocol;
	__u8 hardware_len;
	__u8 protocol_len;
	__be16 op;
	__u8 sender_mac[ETH_ALEN];
	__be32 sender_ip;
	__u8 target_mac[ETH_ALEN];
	__be32 target_ip;
} __attribute__((packed));

struct cursor {
	void *pos;
	void *end;
};

static __always_inline struct cursor xdp_cursor(struct xdp_md *ctx)
{
	struct cursor c = {
		.pos = (void *)(long)ctx->data,
		.end = (void *)(long)ctx->data_end,
	};

	return c;
}

static __always_inline struct cursor skb_cursor(struct __sk_buff *skb)
{
	struct cursor c = {
		.pos = (void *)(long)skb->data,
		.end = (void *)(long)skb->data_end,
	};

	return c;
}

/* Shorten the frame to length; also a frame that is no longer than that. */
static __always_inline long cut(struct xdp_md *ctx, int length)
{
	int have = ctx->data_end - ctx->data;

	return have > length ? bpf_xdp_adjust_tail(ctx, length - have) : 0;
}

/*
 * Have the frame's first bytes, as many as there are up to most, where a cursor
 * finds them: on a TAP little of the frame is linear. No pointer into the
 * packet survives this.
 */
static __always_inline bool linear(struct __sk_buff *skb, __u32 most)
{
	void *head = (void *)(long)skb->data;

	if (most > skb->len)
		most = skb->len;
	if (head + most <= (void *)(long)skb->data_end)
		return true;
	return !bpf_skb_pull_data(skb, most);
}

/* The metadata that lies in front of the packet: from data_meta to data. */
static __always_inline struct cursor skb_meta(struct __sk_buff *skb)
{
	struct cursor c = {
		.pos = (void *)(long)skb->data_meta,
		.end = (void *)(long)skb->data,
	};

	return c;
}

static __always_inline struct cursor xdp_meta(struct xdp_md *ctx)
{
	struct cursor c = {
		.pos = (void *)(long)ctx->data_meta,
		.end = (void *)(long)ctx->data,
	};

	return c;
}

/* The next size bytes, or NULL. */
static __always_inline void *take(struct cursor *c, __u32 size)
{
	void *head = c->pos;

	if (head + size > c->end)
		return NULL;
	c->pos = head + size;
	return head;
}

/* The headers of one IP packet, either family, copied out. */
struct packet {
	struct ip16 saddr;
	struct ip16 daddr;
	__be16 sport; /* ICMP echo: its id, in both */
	__be16 dport;
	__u16 length; /* of the IP packet */
	__u16 l4;     /* offset of the L4 header in the frame */
	__u8 proto;   /* behind IPv6's extension headers */
	__u8 family;  /* 4 or 6 */
	__u8 ttl;
	__u8 tcp_flags;
	__u8 icmp_type;
	__u8 icmp_code;
};

#define L4_MASK 511 /* no L4 header begins later */

static __always_inline bool is_syn(const struct packet *pkt)
{
	return pkt->proto == IPPROTO_TCP && (pkt->tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST)) == TCP_SYN;
}

/* ICMP of the other family is nobody's. */
static __always_inline bool is_icmp(const struct packet *pkt)
{
	return pkt->proto == (pkt->family == 4 ? IPPROTO_ICMP : IPPROTO_ICMPV6);
}

static __always_inline bool is_ping(const struct packet *pkt)
{
	return pkt->icmp_type == (pkt->family == 4 ? ICMP_ECHO : ICMP6_ECHO);
}

static __always_inline bool is_icmp_echo(const struct packet *pkt)
{
	return is_ping(pkt) || pkt->icmp_type == (pkt->family == 4 ? ICMP_ECHOREPLY : ICMP6_ECHOREPLY);
}

static __always_inline enum reason parse_l4(struct cursor *c, struct packet *pkt)
{
	if (pkt->proto == IPPROTO_TCP) {
		struct tcphdr *tcp = take(c, sizeof(*tcp));

		if (!tcp)
			return REASON_MALFORMED;
		pkt->sport = tcp->source;
		pkt->dport = tcp->dest;
		pkt->tcp_flags = ((__u8 *)tcp)[13];
		return REASON_NONE;
	}
	if (pkt->proto == IPPROTO_UDP) {
		struct udphdr *udp = take(c, sizeof(*udp));

		if (!udp)
			return REASON_MALFORMED;
		pkt->sport = udp->source;
		pkt->dport = udp->dest;
		/* RFC 8200, 8.1. */
		return pkt->family == 6 && !udp->check ? REASON_NO_CHECKSUM : REASON_NONE;
	}
	if (is_icmp(pkt)) {
		struct icmphdr *icmp = take(c, sizeof(*icmp));

		if (!icmp)
			return REASON_MALFORMED;
		pkt->icmp_type = icmp->type;
		pkt->icmp_code = icmp->code;
		if (is_icmp_echo(pkt)) {
			pkt->sport = icmp->id;
			pkt->dport = icmp->id;
		}
		return REASON_NONE;
	}
	return REASON_PROTOCOL;
}

#define IP_OPTIONS_MAX 40

/* Bytes of options; more than IP_OPTIONS_MAX when the header's length is less
 * than a header. */
static __always_inline __u32 options_of(const struct iphdr *ip)
{
	return ip->ihl * 4 - sizeof(*ip);
}

/* The L4 header behind the IP header, or NULL. */
static __always_inline void *take_l4(struct cursor *c, const struct iphdr *ip, __u32 size)
{
	__u32 options = options_of(ip);

	if (options > IP_OPTIONS_MAX || !take(c, options))
		return NULL;
	return take(c, size);
}

/* To the L4 header of the frame at whose begin the cursor stands. Read anew, so that
 * the compiler keeps the mask, which is all that the verifier knows of l4. */
static __always_inline bool to_l4(struct cursor *c, const struct packet *pkt)
{
	return take(c, READ_ONCE(pkt->l4) & L4_MASK);
}

/* The L4 header itself, or NULL. */
static __always_inline void *take_at_l4(struct cursor *c, const struct packet *pkt, __u32 size)
{
	return to_l4(c, pkt) ? take(c, size) : NULL;
}

/* Addresses */

static __always_inline struct ip16 ip16_of(__be32 v4)
{
	struct ip16 ip = {};

	ip.b[10] = 0xff;
	ip.b[11] = 0xff;
	__builtin_memcpy(&ip.b[12], &v4, sizeof(v4));
	return ip;
}

static __always_inline __be32 ip16_v4(const struct ip16 *ip)
{
	__be32 v4;

	__builtin_memcpy(&v4, &ip->b[12], sizeof(v4));
	return v4;
}

/*
 * Read the IPv4 header under the cursor and what follows it. Addresses and
 * protocol are valid also when the reason says fragment or protocol.
 */
static __always_inline enum reason parse_ipv4(struct cursor *c, struct packet *pkt)
{
	struct iphdr *ip = take(c, sizeof(*ip));
	__u32 options;

	if (!ip || ip->version != 4)
		return REASON_MALFORMED;
	options = options_of(ip);
	if (options > IP_OPTIONS_MAX || bpf_ntohs(ip->tot_len) < sizeof(*ip) + options)
		return REASON_MALFORMED;
	pkt->family = 4;
	pkt->saddr = ip16_of(ip->saddr);
	pkt->daddr = ip16_of(ip->daddr);
	pkt->proto = ip->protocol;
	pkt->ttl = ip->ttl;
	pkt->length = bpf_ntohs(ip->tot_len);
	pkt->l4 = sizeof(struct ethhdr) + sizeof(*ip) + options;
	if (ip->frag_off & bpf_htons(IP_FRAGMENTED))
		return REASON_FRAGMENT;
	if (!take(c, options))
		return REASON_MALFORMED;
	return parse_l4(c, pkt);
}

static __always_inline bool within(__be32 ip, __u32 prefix, int bits)
{
	return (bpf_ntohl(ip) ^ prefix) >> (32 - bits) == 0;
}

/* Sources of the host's own services: 169.254.0.0/16 and 198.18.0.0/15. */
static __always_inline bool is_host_source(__be32 ip)
{
	return within(ip, 0xa9fe0000, 16) || within(ip, 0xc6120000, 15);
}

/* Destinations that no packet of a port may have. */
static __always_inline bool is_special(__be32 ip)
{
	return is_host_source(ip) || within(ip, 0, 8) || within(ip, 0x7f000000, 8) || within(ip, 0xe0000000, 3);
}

static __always_inline bool same_mac(const __u8 *a, const __u8 *b)
{
	return a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3] && a[4] == b[4] && a[5] == b[5];
}

/* Checksums, changed by what changed (RFC 1624). */

static __always_inline __u16 csum_fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

static __always_inline __u16 csum_swap(__u16 sum, __be32 from, __be32 to)
{
	__u32 s = (__u16)~sum;

	s += (__u16) ~(from & 0xffff) + (__u16) ~(from >> 16);
	s += (to & 0xffff) + (to >> 16);
	return ~csum_fold(s);
}

static __always_inline __u16 csum_swap16(__u16 sum, const struct ip16 *from, const struct ip16 *to)
{
	const __be32 *a = (const __be32 *)from->b, *b = (const __be32 *)to->b;

	return csum_swap(csum_swap(csum_swap(csum_swap(sum, a[0], b[0]), a[1], b[1]), a[2], b[2]), a[3], b[3]);
}

static __always_inline __u16 ip_csum(const struct iphdr *ip)
{
	const __u16 *word = (const __u16 *)ip;
	__u32 sum = 0;

#pragma unroll
	for (int i = 0; i < (int)sizeof(*ip) / 2; i++)
		sum += word[i];
	return ~csum_fold(sum);
}

static __always_inline void ttl_decrement(struct iphdr *ip)
{
	__u32 sum = ip->check + bpf_htons(0x0100);

	ip->check = sum + (sum >= 0xffff);
	ip->ttl--;
}

/* Counting and leaving */

static __always_inline void count(enum reason reason, __u64 packets)
{
	__u32 key = reason;
	__u64 *counter = trace ? NULL : bpf_map_lookup_elem(&reasons, &key);

	if (counter)
		*counter += packets;
}

static __always_inline struct cfg *config(void)
{
	__u32 key = 0;
	struct cfg *c = bpf_map_lookup_elem(&cfg, &key);

	return c && c->endpoint ? c : NULL;
}
