/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include <linux/pkt_cls.h>

#include "conntrack.h"
#include "visit.h"

/*
 * Into a port. The same steps whoever brings the packet: the uplink, another
 * port, the overlay, the host's door. At tcx packets are counted, not skbs.
 */

/* Without it vm_guard lets no frame into a port. */
#define GUARD_MARK 0xca190001

/* What a program needs for one packet and has no stack for. */
struct work {
	struct frame f;
	struct visit v;
	struct inet quoted; /* by an ICMP error */
	bool error;	    /* the packet is one */
};

/*
 * Written and read by one program for the length of one packet; each object has
 * its own. No program interrupts another on a CPU.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct work);
} scratch SEC(".maps");

/* Room for this packet, its frame empty; the visit is for begin_visit to empty. */
static __always_inline struct work *begin_work(void)
{
	__u32 key = 0;
	struct work *w = bpf_map_lookup_elem(&scratch, &key);

	if (w)
		__builtin_memset(&w->f, 0, sizeof(w->f));
	return w;
}

static __always_inline int drop(const struct frame *f, enum reason reason)
{
	settle(f, reason);
	return TC_ACT_SHOT;
}

static __always_inline int pass(const struct frame *f, enum reason reason)
{
	count(reason, f->packets ?: 1);
	return TC_ACT_UNSPEC; /* the next program, else the stack */
}

static __always_inline int redirected(const struct frame *f, long action, enum reason reason)
{
	settle(f, reason);
	return action;
}

/* A way out before anything is known of the packet. */
static __always_inline int drop_blind(enum reason reason)
{
	settle(NULL, reason);
	return TC_ACT_SHOT;
}

static __always_inline int pass_blind(enum reason reason)
{
	count(reason, 1);
	return TC_ACT_UNSPEC;
}

/*
 * An skb may be many packets: GRO and TSO. gso_segs is 0 on a TAP, so they are
 * worked out from the size of a segment; each has the headers again.
 */
static __always_inline void count_packets(struct __sk_buff *skb, struct frame *f)
{
	__u32 headers = f->ip.payload - f->ip.l3, size = skb->gso_size, payload = f->ip.length - headers;

	f->packets = 1;
	f->bytes = f->ip.length;
	if (!size || f->ip.length <= headers)
		return;
	f->packets = (payload + size - 1) / size;
	f->bytes += (f->packets - 1) * headers;
}

/*
 * Read an skb's headers into *f, which is zero. False: there is not even an
 * Ethernet header. Whether IP could be read, f->reason says. Global, so that the
 * verifier reads it once; no caller passes NULL.
 */
__noinline bool read_frame(struct __sk_buff *skb, struct frame *f)
{
	struct cursor c;
	struct ethhdr *eth;

	if (!f || !linear(skb, HEADERS_MAX))
		return false;
	c = skb_cursor(skb);
	eth = take(&c, sizeof(*eth));
	if (!eth)
		return false;
	f->proto = eth->h_proto;
	__builtin_memcpy(f->src, eth->h_source, ETH_ALEN);
	__builtin_memcpy(f->dst, eth->h_dest, ETH_ALEN);
	f->packets = 1;
	if (f->proto != bpf_htons(ETH_P_IP) && f->proto != bpf_htons(ETH_P_IPV6))
		return true;
	f->reason = read_inet(skb, &c, f->proto, &f->ip);
	if (f->reason == REASON_NONE)
		count_packets(skb, f);
	return true;
}

static __always_inline bool is_ip(const struct frame *f)
{
	return f->ip.family != 0;
}

static __noinline __u32 prefix_flags(const struct ip16 *ip)
{
	struct prefix_key key = { .bits = 128, .ip = *ip };
	__u32 *flags = bpf_map_lookup_elem(&prefixes, &key);

	if (trace)
		trace_ip(TRACE_PREFIX, 0, ip, flags ? *flags : 0);
	return flags ? *flags : 0;
}

static __always_inline struct port_cfg *port_by_id(__u32 port)
{
	struct port_cfg *pc = bpf_map_lookup_elem(&port_cfg, &port);

	return pc && pc->ifindex ? pc : NULL;
}

/* The local port that has the range which a public address is in. */
static __noinline __u32 *range_at(const struct ip16 *ip)
{
	struct prefix_key key = { .bits = 128, .ip = *ip };

	return bpf_map_lookup_elem(&addr_net, &key);
}

/* The local port that has a public address. */
static __noinline struct port_cfg *port_at(const struct ip16 *ip, __u32 *port)
{
	__u32 *id = bpf_map_lookup_elem(&addr_port, ip) ?: range_at(ip);

	if (trace)
		trace_ip(TRACE_ADDRESS, id ? *id : 0, ip, 0);
	if (!id)
		return NULL;
	*port = *id;
	return port_by_id(*id);
}

static __always_inline long write_macs(struct __sk_buff *skb, const __u8 *dst, const __u8 *src)
{
	__u8 macs[2 * ETH_ALEN];

	__builtin_memcpy(macs, dst, ETH_ALEN);
	__builtin_memcpy(macs + ETH_ALEN, src, ETH_ALEN);
	return bpf_skb_store_bytes(skb, 0, macs, sizeof(macs), 0);
}

/* Change one port of TCP or UDP; offset is the field's in the L4 header. */
static __always_inline long write_port(struct __sk_buff *skb, const struct frame *f, __u32 offset, __be16 from,
				       __be16 to)
{
	bool tcp = f->ip.proto == IPPROTO_TCP;
	__u32 check = f->ip.l4 + (tcp ? offsetof(struct tcphdr, check) : offsetof(struct udphdr, check));

	return bpf_l4_csum_replace(skb, check, from, to, (tcp ? 0 : BPF_F_MARK_MANGLED_0) | 2) ||
	       bpf_skb_store_bytes(skb, f->ip.l4 + offset, &to, sizeof(to), 0);
}

#define IP_OFFSET(field)  (sizeof(struct ethhdr) + offsetof(struct iphdr, field))
#define IP6_OFFSET(field) (sizeof(struct ethhdr) + offsetof(struct ipv6hdr, field))

static __always_inline long write_address4(struct __sk_buff *skb, const struct ip16 *is, const struct ip16 *becomes,
					   bool source, __u32 check, __u64 flags)
{
	__u32 at = source ? IP_OFFSET(saddr) : IP_OFFSET(daddr);
	__be32 from = ip16_v4(is), to = ip16_v4(becomes);

	return bpf_l4_csum_replace(skb, check, from, to, flags | 4) ||
	       bpf_l3_csum_replace(skb, IP_OFFSET(check), from, to, 4) ||
	       bpf_skb_store_bytes(skb, at, &to, sizeof(to), 0);
}

static __always_inline long write_address6(struct __sk_buff *skb, const struct ip16 *is, const struct ip16 *becomes,
					   bool source, __u32 check, __u64 flags)
{
	__s64 change = bpf_csum_diff((__be32 *)is, sizeof(*is), (__be32 *)becomes, sizeof(*becomes), 0);
	__u32 at = source ? IP6_OFFSET(saddr) : IP6_OFFSET(daddr);

	return bpf_l4_csum_replace(skb, check, 0, change, flags) ||
	       bpf_skb_store_bytes(skb, at, becomes, sizeof(*becomes), 0);
}

/* Change an end's address of TCP or UDP, as far as skb and checksums go. Global, so that
 * the verifier reads it once; no caller passes NULL. */
__noinline enum reason write_address(struct __sk_buff *skb, const struct frame *f, const struct ip16 *to, bool source)
{
	__u32 check;
	__u64 flags;
	bool tcp;

	if (!f || !to)
		return REASON_MALFORMED;
	tcp = f->ip.proto == IPPROTO_TCP;
	check = f->ip.l4 + (tcp ? offsetof(struct tcphdr, check) : offsetof(struct udphdr, check));
	flags = BPF_F_PSEUDO_HDR | (tcp ? 0 : BPF_F_MARK_MANGLED_0);
	if (f->ip.family == 6 ? write_address6(skb, source ? &f->ip.src : &f->ip.dst, to, source, check, flags)
			      : write_address4(skb, source ? &f->ip.src : &f->ip.dst, to, source, check, flags))
		return REASON_MALFORMED;
	return REASON_NONE;
}

/* Change an address of IPv4 that no checksum of L4 covers: an ICMP error's, a
 * later fragment's. */
static __always_inline enum reason rewrite_address(struct __sk_buff *skb, __u32 at, struct ip16 *is,
						   const struct ip16 *becomes)
{
	__be32 from = ip16_v4(is), to = ip16_v4(becomes);

	if (from == to)
		return REASON_NONE;
	*is = *becomes;
	if (bpf_l3_csum_replace(skb, IP_OFFSET(check), from, to, 4) || bpf_skb_store_bytes(skb, at, &to, sizeof(to), 0))
		return REASON_MALFORMED;
	return REASON_NONE;
}
