/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include "pace.h"

/*
 * A packet is larger than a port takes, and must not be cut in two: its sender is
 * told (RFC 1191, RFC 8201), as from the one it was for. On a link nobody else is
 * there; a public address is announced by this host, so that a router which looks
 * at sources lets the answer pass.
 */

#define QUOTE_V4	    68	/* IPv4 with all options, and 8 bytes */
#define QUOTE_V6	    128 /* IPv6, two extensions, and TCP */
#define TOO_BIGS_PER_SECOND 20

/* RFC 792 and RFC 4443, 3.2. */
struct too_big {
	__u8 type;
	__u8 code;
	__u16 checksum;
	__be16 unused; /* IPv6: the MTU's upper half */
	__be16 mtu;
};

/* What is written over the packet; padded so that all behind Ethernet is aligned. */
struct too_big4 {
	__u8 pad[2];
	struct ethhdr eth;
	struct iphdr ip;
	struct too_big icmp;
	__u8 quote[QUOTE_V4];
};

struct too_big6 {
	__u8 pad[2];
	struct ethhdr eth;
	struct ipv6hdr ip;
	struct too_big icmp;
	__u8 quote[QUOTE_V6];
};

struct too_bigs {
	struct too_big4 v4;
	struct too_big6 v6;
};

/* Room for one: Go has no name for what the kernel's headers have in them. */
struct too_big_room {
	__u64 word[(sizeof(struct too_bigs) + 7) / 8];
};

/* Written and read by one program for the length of one packet. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct too_big_room);
} too_bigs SEC(".maps");

/* GRO and TSO: each of the packets, not the skb. */
static __always_inline bool is_too_big(struct __sk_buff *skb, const struct frame *f, const struct port_cfg *pc)
{
	if (!pc->mtu)
		return false;
	if (skb->gso_size)
		return f->ip.payload - f->ip.l3 + skb->gso_size > pc->mtu;
	return f->ip.length > pc->mtu;
}

#define FORGET 400 /* bytes in which the start of a checksum lies: all headers, also those in a tunnel of a guest's */

/*
 * Leave size bytes, to be written over. GRO and the guests' own offloads leave a
 * checksum to the device, from an offset on that holds for the packet and not for
 * what is written over it. The kernel forgets that when what it starts at is
 * taken away, so the front goes, and not the end alone; else who computes
 * checksums in software would write one into the answer.
 */
static __always_inline long shorten(struct __sk_buff *skb, __u32 size)
{
	__u32 front = skb->len - size;

	if (skb->len <= size)
		return -1;
	if (front > FORGET)
		front = FORGET;
	return bpf_skb_change_tail(skb, size + front, 0)
		       ?: bpf_skb_adjust_room(skb, -(__s32)front, BPF_ADJ_ROOM_MAC, 0);
}

static __always_inline void turn_ethernet(struct ethhdr *eth, const struct frame *f)
{
	__builtin_memcpy(eth->h_dest, f->src, ETH_ALEN);
	__builtin_memcpy(eth->h_source, f->dst, ETH_ALEN);
	eth->h_proto = f->proto;
}

static __always_inline long write_too_big4(struct __sk_buff *skb, struct too_big4 *b, const struct frame *f, __u32 mtu)
{
	const __u32 size = sizeof(*b) - sizeof(b->pad);
	const __u32 message = sizeof(b->icmp) + sizeof(b->quote);

	turn_ethernet(&b->eth, f);
	__builtin_memset(&b->ip, 0, sizeof(b->ip));
	b->ip.version = 4;
	b->ip.ihl = sizeof(b->ip) / 4;
	b->ip.tot_len = bpf_htons(sizeof(b->ip) + message);
	b->ip.ttl = OUTER_TTL;
	b->ip.protocol = IPPROTO_ICMP;
	b->ip.saddr = ip16_v4(&f->ip.dst);
	b->ip.daddr = ip16_v4(&f->ip.src);
	b->ip.check = ip_csum(&b->ip);
	b->icmp = (struct too_big){ .type = ICMP_UNREACHABLE, .code = ICMP_FRAG_NEEDED, .mtu = bpf_htons(mtu) };
	b->icmp.checksum = ~csum_fold(bpf_csum_diff(NULL, 0, (__be32 *)&b->icmp, message, 0));
	return shorten(skb, size) ?: bpf_skb_store_bytes(skb, 0, &b->eth, size, 0);
}

static __always_inline long write_too_big6(struct __sk_buff *skb, struct too_big6 *b, const struct frame *f, __u32 mtu)
{
	const __u32 size = sizeof(*b) - sizeof(b->pad);
	const __u32 message = sizeof(b->icmp) + sizeof(b->quote);

	turn_ethernet(&b->eth, f);
	__builtin_memset(&b->ip, 0, sizeof(b->ip));
	b->ip.version = 6;
	b->ip.payload_len = bpf_htons(message);
	b->ip.nexthdr = IPPROTO_ICMPV6;
	b->ip.hop_limit = OUTER_TTL;
	__builtin_memcpy(&b->ip.saddr, &f->ip.dst, sizeof(b->ip.saddr));
	__builtin_memcpy(&b->ip.daddr, &f->ip.src, sizeof(b->ip.daddr));
	b->icmp = (struct too_big){ .type = ICMP6_TOO_BIG, .mtu = bpf_htons(mtu) };
	b->icmp.checksum = ~csum_fold(bpf_csum_diff(NULL, 0, (__be32 *)&b->ip.saddr, 32 + message,
						    bpf_htonl(message) + bpf_htonl(IPPROTO_ICMPV6)));
	return shorten(skb, size) ?: bpf_skb_store_bytes(skb, 0, &b->eth, size, 0);
}

/* An error about an error would never end, nor one about what went to many. */
static __always_inline bool may_tell(const struct inet *p)
{
	if (!p->dont_fragment || p->fragment == FRAGMENT_LATER)
		return false;
	if (p->family == 6)
		return !is_multicast6(&p->dst) && !(p->proto == IPPROTO_ICMPV6 && p->icmp_type < ICMP6_ECHO);
	return !within(ip16_v4(&p->dst), 0xe0000000, 3) &&
	       !(p->proto == IPPROTO_ICMP && p->icmp_type != ICMP_ECHO && p->icmp_type != ICMP_ECHOREPLY);
}

/* Tell who has sent a packet that is larger than mtu, by way of device back, or
 * drop it. The answer has the skb's mark; *due keeps its pace. */
static __noinline int too_big(struct __sk_buff *skb, const struct frame *f, __u32 mtu, __u64 *due, __u32 back)
{
	__u32 zero = 0;
	struct too_bigs *b = bpf_map_lookup_elem(&too_bigs, &zero);
	long failed;

	if (!b || !may_tell(&f->ip) || !keeps_pace(due, TOO_BIGS_PER_SECOND))
		return drop(f, REASON_OVERSIZE);
	if (f->ip.family == 4)
		failed = bpf_skb_load_bytes(skb, sizeof(struct ethhdr), b->v4.quote, QUOTE_V4)
				 ?: write_too_big4(skb, &b->v4, f, mtu);
	else
		failed = bpf_skb_load_bytes(skb, sizeof(struct ethhdr), b->v6.quote, QUOTE_V6)
				 ?: write_too_big6(skb, &b->v6, f, mtu);
	if (failed)
		return drop(f, REASON_OVERSIZE);
	return redirected(f, bpf_redirect(back, 0), REASON_TOO_BIG_ANSWERED);
}

/* The same of what the port's own VM has sent. */
static __always_inline int too_big_out(struct __sk_buff *skb, const struct frame *f, const struct port_cfg *pc,
				       __u32 port)
{
	struct told *t = bpf_map_lookup_elem(&told, &port);

	skb->mark = GUARD_MARK;
	return too_big(skb, f, pc->mtu, t ? &t->out : NULL, pc->ifindex);
}

/* And of what is on its way to the VM: back to where it has come from. A balanced
 * packet has another destination by now than its sender knows. */
static __always_inline int too_big_in(struct __sk_buff *skb, struct work *w, const struct port_cfg *pc, __u32 mark)
{
	__u32 port = w->v.port;
	struct told *t = bpf_map_lookup_elem(&told, &port);

	if (w->v.service)
		return drop(&w->f, REASON_OVERSIZE);
	skb->mark = mark;
	return too_big(skb, &w->f, pc->mtu, t ? &t->in : NULL, skb->ifindex);
}
