/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include <linux/pkt_cls.h>

#include "conntrack.h"
#include "packet.h"

/*
 * Into a port. The same steps whoever brings the packet: the uplink, another
 * port, the host's door. At tcx packets are counted, not skbs.
 */

/* Without it vm_guard lets no frame into a port. */
#define GUARD_MARK 0xca190001

struct frame {
	struct packet pkt;
	__be16 proto; /* of Ethernet */
	__u8 src[ETH_ALEN];
	__u8 dst[ETH_ALEN];
	enum reason reason; /* what parsing the packet came to */
	__u64 packets;
};

static __always_inline int drop(const struct frame *f, enum reason reason)
{
	count(reason, f->packets ?: 1);
	return TC_ACT_SHOT;
}

static __always_inline int pass(const struct frame *f, enum reason reason)
{
	count(reason, f->packets ?: 1);
	return TC_ACT_UNSPEC; /* the next program, else the stack */
}

static __always_inline int redirected(const struct frame *f, long action, enum reason reason)
{
	count(reason, f->packets ?: 1);
	return action;
}

/*
 * Read an skb's headers. On a TAP little of the frame is linear, and headers
 * that are shared with a clone must not be changed: pull as much as they can
 * take at most.
 */
static __always_inline bool read_frame(struct __sk_buff *skb, struct frame *f)
{
	__u32 most = L4_MAX + sizeof(struct tcphdr);
	struct cursor c;
	struct ethhdr *eth;

	if (bpf_skb_pull_data(skb, skb->len < most ? skb->len : most))
		return false;
	c = skb_cursor(skb);
	eth = take(&c, sizeof(*eth));
	if (!eth)
		return false;
	f->proto = eth->h_proto;
	__builtin_memcpy(f->src, eth->h_source, ETH_ALEN);
	__builtin_memcpy(f->dst, eth->h_dest, ETH_ALEN);
	f->packets = 1;
	if (f->proto != bpf_htons(ETH_P_IP))
		return true;
	f->reason = parse_ipv4(&c, &f->pkt);
	if (f->reason == REASON_NONE)
		f->packets = packets_in(skb, f->pkt.l4 + (f->pkt.proto == IPPROTO_TCP ? sizeof(struct tcphdr) : 8));
	return true;
}

static __noinline __u32 prefix_flags(__be32 ip)
{
	struct prefix_key key = { .bits = 128, .ip = ip16_of(ip) };
	__u32 *flags = bpf_map_lookup_elem(&prefixes, &key);

	return flags ? *flags : 0;
}

static __always_inline struct port_cfg *port_by_id(__u32 port)
{
	struct port_cfg *pc = bpf_map_lookup_elem(&port_cfg, &port);

	return pc && pc->ifindex ? pc : NULL;
}

/* The local port that has a public address. */
static __noinline struct port_cfg *port_at(__be32 ip, __u32 *port)
{
	struct ip16 key = ip16_of(ip);
	__u32 *id = bpf_map_lookup_elem(&addr_port, &key);

	if (!id)
		return NULL;
	*port = *id;
	return port_by_id(*id);
}

static __always_inline void fill_visit(struct visit *v, const struct frame *f)
{
	v->key.proto = f->pkt.proto;
	v->tcp_flags = f->pkt.tcp_flags;
	v->opening = f->pkt.proto != IPPROTO_TCP || is_syn(&f->pkt);
	v->match = match_port(&f->pkt);
	v->packets = f->packets;
	v->bytes = f->pkt.length;
}

/* Account and judge a packet on its way into the port v->port. */
static __always_inline enum reason enter(const struct frame *f, struct visit *v, const struct port_cfg *pc)
{
	v->key.peer = ip16_of(f->pkt.saddr);
	v->key.own = ip16_of(f->pkt.daddr);
	v->key.peer_port = v->wire_port = f->pkt.sport;
	v->key.own_port = f->pkt.dport;
	v->direction = DIRECTION_IN;
	fill_visit(v, f);
	return track(v, pc);
}

/* Account and judge a packet that came out of the port v->port. */
static __always_inline enum reason depart(const struct frame *f, struct visit *v, const struct port_cfg *pc)
{
	v->key.peer = ip16_of(f->pkt.daddr);
	v->key.own = ip16_of(f->pkt.saddr);
	v->key.peer_port = v->wire_port = f->pkt.dport;
	v->key.own_port = f->pkt.sport;
	v->direction = DIRECTION_OUT;
	fill_visit(v, f);
	return track(v, pc);
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
	bool tcp = f->pkt.proto == IPPROTO_TCP;
	__u32 check = f->pkt.l4 + (tcp ? offsetof(struct tcphdr, check) : offsetof(struct udphdr, check));

	return bpf_l4_csum_replace(skb, check, from, to, (tcp ? 0 : BPF_F_MARK_MANGLED_0) | 2) ||
	       bpf_skb_store_bytes(skb, f->pkt.l4 + offset, &to, sizeof(to), 0);
}

/* Out of the host's side of a port's device, into the VM. v is what enter made
 * of the packet. */
static __always_inline int to_port(struct __sk_buff *skb, const struct frame *f, const struct visit *v,
				   const struct port_cfg *pc)
{
	if (v->translated && write_port(skb, f, offsetof(struct tcphdr, source), v->wire_port, v->key.peer_port))
		return drop(f, REASON_MALFORMED);
	if (write_macs(skb, pc->mac, pc->gateway_mac))
		return drop(f, REASON_MALFORMED);
	skb->mark = GUARD_MARK;
	return redirected(f, bpf_redirect(pc->ifindex, 0), v->translated ? REASON_TO_PORT_TRANSLATED : REASON_TO_PORT);
}
