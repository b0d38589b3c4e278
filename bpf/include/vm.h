/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include "examine.h"
#include "mss.h"
#include "requote.h"

/* What a VM may send, and how it is mended on its way. */

/* Is the address in a range that the port may speak for? */
static __noinline bool owns_range(__u32 port, const struct ip16 *ip)
{
	struct allow_key key = { .bits = 32 + 128, .port = port, .ip = *ip };

	return bpf_map_lookup_elem(&addr_allow, &key) != NULL;
}

/* May the port speak for this address? */
static __noinline bool owns(__u32 port, const struct ip16 *ip)
{
	struct addr_key key = { .port = port, .ip = *ip };

	bool is = bpf_map_lookup_elem(&addr_ok, &key) || owns_range(port, ip);

	if (trace)
		trace_ip(TRACE_OWNER, port, ip, is);
	return is;
}

/* Is one of a packet's addresses that from which health checks come? */
static __always_inline bool is_prober(const struct inet *p, const struct ip16 *ip, const struct cfg *c)
{
	return p->family == 4 ? ip16_v4(ip) == c->probe : is_twin(ip, c->probe);
}

static __always_inline bool is_door(const struct frame *f, const struct cfg *c)
{
	return is_prober(&f->ip, &f->ip.dst, c);
}

#define METADATA_ADDRESS 0xa9fea9fe /* 169.254.169.254 */

static __always_inline bool is_metadata(const struct frame *f)
{
	return f->ip.family == 4 && ip16_v4(&f->ip.dst) == bpf_htonl(METADATA_ADDRESS);
}

static __always_inline enum reason check_destination(const struct frame *f, const struct cfg *c)
{
	if (is_door(f, c) || is_metadata(f) || is_hairpin(&f->ip.dst))
		return REASON_NONE; /* the flow table decides */
	if (is_bad_destination(&f->ip))
		return REASON_BAD_DESTINATION;
	if (prefix_flags(&f->ip.dst) & PREFIX_HOST)
		return REASON_HOST_ADDRESS;
	return REASON_NONE;
}

/* TTL − 1. It shares a checksum word with the protocol, which behind IPv4 is
 * never an extension's. */
static __always_inline enum reason hop(struct __sk_buff *skb, const struct frame *f)
{
	__u16 from = (__u16)f->ip.proto << 8 | f->ip.ttl;
	__u8 ttl = f->ip.ttl - 1;
	__u16 to = (__u16)f->ip.proto << 8 | ttl;

	if (f->ip.family == 6)
		return bpf_skb_store_bytes(skb, IP6_OFFSET(hop_limit), &ttl, sizeof(ttl), 0) ? REASON_MALFORMED
											     : REASON_NONE;
	if (bpf_l3_csum_replace(skb, IP_OFFSET(check), from, to, 2) ||
	    bpf_skb_store_bytes(skb, IP_OFFSET(ttl), &ttl, sizeof(ttl), 0))
		return REASON_MALFORMED;
	return REASON_NONE;
}

/* instance:target-port → VIP:port, as the flow says. */
static __always_inline enum reason rewrite_source(struct __sk_buff *skb, struct frame *f, const struct visit *v)
{
	if (write_address(skb, f, &v->vip, true))
		return REASON_MALFORMED;
	if (write_port(skb, f, offsetof(struct tcphdr, source), f->ip.sport, v->vip_port))
		return REASON_MALFORMED;
	f->ip.src = v->vip;
	f->ip.sport = v->vip_port;
	return REASON_NONE;
}

/* The port that the VM knows the client by → the client's own. */
static __always_inline enum reason restore_port(struct __sk_buff *skb, struct frame *f, const struct visit *v)
{
	if (write_port(skb, f, offsetof(struct tcphdr, dest), f->ip.dport, v->peer_port))
		return REASON_MALFORMED;
	f->ip.dport = v->peer_port;
	return REASON_NONE;
}

/* The address by which the VM knows itself as a client → its own. */
static __always_inline enum reason restore_address(struct __sk_buff *skb, struct frame *f, const struct visit *v)
{
	enum reason reason = write_address(skb, f, &v->key.own, false);

	f->ip.dst = v->key.own;
	return reason;
}

/* An error that the VM sends: the flow's packet came to the VIP, from the
 * client's own port. */
static __always_inline enum reason rewrite_error_out(struct __sk_buff *skb, struct work *w)
{
	struct requote to = receiver_of(&w->quoted), from = sender_of(&w->quoted);
	struct visit *v = &w->v;
	enum reason reason;

	if (!has_ports(&w->quoted))
		return REASON_NONE;
	from.to_port = v->peer_port;
	if (v->service) {
		to.to_ip = ip16_v4(&v->vip);
		to.to_port = v->vip_port;
	}
	reason = requote(skb, &w->f.ip, &w->quoted, &to) ?: requote(skb, &w->f.ip, &w->quoted, &from);
	if (reason || !v->service)
		return reason;
	return rewrite_address(skb, IP_OFFSET(saddr), &w->f.ip.src, &v->vip);
}

/* A later fragment has no L4 header, so that nothing covers its address but IPv4's own. */
static __always_inline enum reason rewrite_later(struct __sk_buff *skb, struct frame *f, const struct visit *v)
{
	if (f->ip.family == 4)
		return rewrite_address(skb, IP_OFFSET(saddr), &f->ip.src, &v->vip);
	f->ip.src = v->vip;
	return bpf_skb_store_bytes(skb, IP6_OFFSET(saddr), &v->vip, sizeof(v->vip), 0) ? REASON_MALFORMED : REASON_NONE;
}

/* What the wire sees instead of what the VM has sent. */
static __always_inline enum reason mend_out(struct __sk_buff *skb, struct work *w)
{
	struct frame *f = &w->f;
	struct visit *v = &w->v;
	enum reason reason;

	if (w->error)
		return rewrite_error_out(skb, w);
	if (f->ip.fragment == FRAGMENT_LATER)
		return v->service ? rewrite_later(skb, f, v) : REASON_NONE;
	reason = fit_mss(skb, f, v);
	if (reason)
		return reason;
	if (v->service)
		reason = rewrite_source(skb, f, v);
	if (!reason && v->peer_port != f->ip.dport)
		reason = restore_port(skb, f, v);
	if (!reason && is_hairpin(&v->key.peer))
		reason = restore_address(skb, f, v);
	return reason;
}

static __always_inline enum reason check(const struct frame *f, const struct cfg *c, __u32 port)
{
	enum reason reason = f->reason; /* of the headers */

	if (reason != REASON_MALFORMED && !owns(port, &f->ip.src))
		return REASON_SPOOFED_IP;
	if (!reason && is_bad_source(&f->ip))
		return REASON_BAD_SOURCE; /* whatever ranges the port has */
	return reason ?: check_destination(f, c);
}
