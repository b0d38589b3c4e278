/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include "quote.h"

/*
 * An ICMP error about a balanced flow: on the wire it is about the VIP, at the
 * VM about the instance. The quote changes with the outer header, or its reader
 * finds no socket for it.
 */

/* One end of the quoted packet, and what it becomes. */
struct requote {
	__u32 addr; /* offsets in the frame */
	__u32 port;
	__be32 from_ip;
	__be32 to_ip;
	__be16 from_port;
	__be16 to_port;
};

static __always_inline struct requote sender_of(const struct inet *q)
{
	return (struct requote){
		.addr = q->l3 + offsetof(struct iphdr, saddr),
		.port = q->l4 + offsetof(struct udphdr, source),
		.from_ip = ip16_v4(&q->src),
		.to_ip = ip16_v4(&q->src),
		.from_port = q->sport,
		.to_port = q->sport,
	};
}

static __always_inline struct requote receiver_of(const struct inet *q)
{
	return (struct requote){
		.addr = q->l3 + offsetof(struct iphdr, daddr),
		.port = q->l4 + offsetof(struct udphdr, dest),
		.from_ip = ip16_v4(&q->dst),
		.to_ip = ip16_v4(&q->dst),
		.from_port = q->dport,
		.to_port = q->dport,
	};
}

/* Change 2 bytes of what the ICMP checksum covers. */
static __always_inline long patch2(struct __sk_buff *skb, __u32 check, __u32 at, __be16 from, __be16 to)
{
	return bpf_l4_csum_replace(skb, check, from, to, 2) ?: bpf_skb_store_bytes(skb, at, &to, sizeof(to), 0);
}

static __always_inline long patch4(struct __sk_buff *skb, __u32 check, __u32 at, __be32 from, __be32 to)
{
	return bpf_l4_csum_replace(skb, check, from, to, 4) ?: bpf_skb_store_bytes(skb, at, &to, sizeof(to), 0);
}

/* A checksum in the quote follows what it covers; only of UDP is one of 0 none. */
static __always_inline long patch_checksum(struct __sk_buff *skb, __u32 check, __u32 at, const struct requote *r,
					   bool udp)
{
	__u16 was, is;

	if (bpf_skb_load_bytes(skb, at, &was, sizeof(was)))
		return -1;
	if (udp && !was)
		return 0;
	is = csum_swap(csum_swap(was, r->from_ip, r->to_ip), r->from_port, r->to_port);
	return patch2(skb, check, at, was, udp && !is ? 0xffff : is);
}

static __always_inline long patch_l4_checksum(struct __sk_buff *skb, const struct inet *p, const struct inet *q,
					      const struct requote *r, __u32 check)
{
	__u32 at = q->l4 + offsetof(struct tcphdr, check);

	if (q->proto == IPPROTO_UDP)
		return patch_checksum(skb, check, q->l4 + offsetof(struct udphdr, check), r, true);
	if (at + sizeof(__u16) > p->l3 + p->length)
		return 0; /* the quote ends before it */
	return patch_checksum(skb, check, at, r, false);
}

/* Rewrite one end of the packet that p quotes. */
static __noinline enum reason requote(struct __sk_buff *skb, const struct inet *p, const struct inet *q,
				      const struct requote *r)
{
	__u32 check = p->l4 + offsetof(struct icmphdr, checksum), at = q->l3 + offsetof(struct iphdr, check);
	__u16 was;

	if (r->from_ip == r->to_ip && r->from_port == r->to_port)
		return REASON_NONE;
	if (bpf_skb_load_bytes(skb, at, &was, sizeof(was)) ||
	    patch2(skb, check, at, was, csum_swap(was, r->from_ip, r->to_ip)) ||
	    patch4(skb, check, r->addr, r->from_ip, r->to_ip) ||
	    patch2(skb, check, r->port, r->from_port, r->to_port) || patch_l4_checksum(skb, p, q, r, check))
		return REASON_MALFORMED;
	return REASON_NONE;
}

static __always_inline bool has_ports(const struct inet *q)
{
	return q->family == 4 && (q->proto == IPPROTO_TCP || q->proto == IPPROTO_UDP);
}

/* An error for the VM: what it has sent came from its own address and port, to
 * the one by which it knows the client. */
static __always_inline enum reason rewrite_error_in(struct __sk_buff *skb, struct work *w)
{
	struct requote from = sender_of(&w->quoted), to = receiver_of(&w->quoted);
	struct visit *v = &w->v;
	enum reason reason;

	if (!has_ports(&w->quoted))
		return REASON_NONE;
	from.to_ip = ip16_v4(&v->key.own);
	from.to_port = v->key.own_port;
	to.to_port = v->key.peer_port;
	reason = requote(skb, &w->f.ip, &w->quoted, &from) ?: requote(skb, &w->f.ip, &w->quoted, &to);
	if (reason)
		return reason;
	return rewrite_address(skb, IP_OFFSET(daddr), &w->f.ip.dst, &v->key.own);
}
