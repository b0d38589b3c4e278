/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include "conntrack.h"
#include "port.h"

/*
 * An ICMP error quotes the packet that it is about. It belongs to that packet's
 * flow, which it neither creates nor refreshes; without one it drops. A balanced
 * flow's has another quote on the wire than at the VM. Services are IPv4's.
 */

/* The least path MTU that is believed. IPv4 has 68; so small a path is an attack. */
#define MTU_MIN4 576
#define MTU_MIN6 1280

#define QUOTED_L4 8 /* bytes of L4 that a quote has at least (RFC 792) */

static __always_inline bool is_icmp_error(const struct inet *p)
{
	if (p->proto == IPPROTO_ICMPV6)
		return p->icmp_type < ICMP6_ECHO;
	if (p->proto != IPPROTO_ICMP)
		return false;
	return p->icmp_type == ICMP_UNREACHABLE || p->icmp_type == ICMP_SOURCE_QUENCH ||
	       p->icmp_type == ICMP_REDIRECT || p->icmp_type == ICMP_TIME_EXCEEDED || p->icmp_type == ICMP_PARAMETER;
}

/* Reading the quote */

static __always_inline enum reason read_quoted4(struct __sk_buff *skb, struct inet *q)
{
	struct iphdr ip;
	__u32 options;

	if (bpf_skb_load_bytes(skb, q->l3, &ip, sizeof(ip)) || ip.version != 4)
		return REASON_ICMP_UNMATCHED;
	options = options_of(&ip);
	if (options > IP_OPTIONS_MAX || ip.frag_off & bpf_htons(IP_OFFSET_MASK))
		return REASON_ICMP_UNMATCHED;
	q->src = ip16_of(ip.saddr);
	q->dst = ip16_of(ip.daddr);
	q->proto = ip.protocol;
	q->l4 = q->l3 + sizeof(ip) + options;
	return REASON_NONE;
}

static __always_inline enum reason read_quoted6(struct __sk_buff *skb, struct inet *q)
{
	struct ipv6hdr ip;

	if (bpf_skb_load_bytes(skb, q->l3, &ip, sizeof(ip)) || ip.version != 6)
		return REASON_ICMP_UNMATCHED;
	__builtin_memcpy(&q->src, &ip.saddr, sizeof(q->src));
	__builtin_memcpy(&q->dst, &ip.daddr, sizeof(q->dst));
	if (is_v4(&q->src) || is_v4(&q->dst))
		return REASON_ICMP_UNMATCHED;
	q->proto = ip.nexthdr;
	q->l4 = q->l3 + sizeof(ip);
	if (!is_extension(q->proto))
		return REASON_NONE;
	if (skip_extensions(skb, q) || q->fragment == FRAGMENT_LATER)
		return REASON_ICMP_UNMATCHED;
	return REASON_NONE;
}

static __always_inline bool quotes_echo(const struct inet *q)
{
	if (q->proto == IPPROTO_ICMP)
		return q->icmp_type == ICMP_ECHO || q->icmp_type == ICMP_ECHOREPLY;
	return q->icmp_type == ICMP6_ECHO || q->icmp_type == ICMP6_ECHOREPLY;
}

/* The ports of the quoted packet. */
static __always_inline enum reason read_quoted_l4(struct __sk_buff *skb, const struct inet *p, struct inet *q)
{
	struct icmphdr icmp;

	if (q->l4 + QUOTED_L4 > p->l3 + p->length || bpf_skb_load_bytes(skb, q->l4, &icmp, sizeof(icmp)))
		return REASON_ICMP_UNMATCHED;
	if (q->proto == IPPROTO_TCP || q->proto == IPPROTO_UDP) {
		q->sport = *(__be16 *)&icmp.type;
		q->dport = icmp.checksum;
		return REASON_NONE;
	}
	if (q->proto != IPPROTO_ICMP && q->proto != IPPROTO_ICMPV6)
		return REASON_NONE;
	q->icmp_type = icmp.type;
	if (!quotes_echo(q))
		return REASON_ICMP_UNMATCHED;
	icmp_ports(q, icmp.id);
	return REASON_NONE;
}

/* Read what p quotes into *q. */
static __noinline enum reason read_quoted(struct __sk_buff *skb, const struct inet *p, struct inet *q)
{
	enum reason reason;

	__builtin_memset(q, 0, sizeof(*q));
	q->family = p->family;
	q->l3 = p->payload;
	q->length = p->length;
	reason = p->family == 4 ? read_quoted4(skb, q) : read_quoted6(skb, q);
	return reason ?: read_quoted_l4(skb, p, q);
}

/* Is the error itself one that anybody sends? */
static __always_inline enum reason check_error(struct __sk_buff *skb, const struct inet *p)
{
	struct icmphdr icmp;

	if (p->fragment)
		return REASON_FRAGMENT;
	if (p->family == 4 && p->icmp_type == ICMP_REDIRECT)
		return REASON_ICMP_REDIRECT;
	if (bpf_skb_load_bytes(skb, p->l4, &icmp, sizeof(icmp)))
		return REASON_MALFORMED;
	if (p->family == 4 && p->icmp_type == ICMP_UNREACHABLE && p->icmp_code == ICMP_FRAG_NEEDED &&
	    bpf_ntohs(icmp.sequence) < MTU_MIN4)
		return REASON_ICMP_TOO_SMALL;
	if (p->family == 6 && p->icmp_type == ICMP6_TOO_BIG && !icmp.id && bpf_ntohs(icmp.sequence) < MTU_MIN6)
		return REASON_ICMP_TOO_SMALL;
	return REASON_NONE;
}

/* Finding its flow */

/* Make v's key that of the packet which went the other way than its error. A
 * service's has the VIP in it: the instance is behind it. */
static __always_inline enum reason key_of_quote(struct visit *v, const struct inet *q)
{
	struct local_key here = { .service = v->service, .port = v->port };
	bool sent = v->direction == DIRECTION_IN; /* the port has sent what came back */
	struct local *at;

	v->key.proto = q->proto;
	v->key.peer = sent ? q->dst : q->src;
	v->key.own = sent ? q->src : q->dst;
	v->key.peer_port = sent ? q->dport : q->sport;
	v->key.own_port = sent ? q->sport : q->dport;
	v->wire_port = v->key.peer_port;
	if (!sent || !v->service)
		return REASON_NONE;
	at = bpf_map_lookup_elem(&local, &here);
	if (!at || !same_ip(&q->src, &v->vip) || q->sport != v->vip_port)
		return REASON_ICMP_UNMATCHED;
	v->key.own = at->ip;
	v->key.own_port = at->target_port;
	return REASON_NONE;
}

/* The flow of v's key; coming in, it must be the service's that v has. */
static __noinline struct ct *quoted_flow(void *est, void *fresh, struct visit *v, __u64 now)
{
	struct ct *f = live_flow(est, fresh, &v->key, now);
	struct ct_key alias;

	if (!f || v->direction == DIRECTION_OUT || is_same_service(f, v))
		return f;
	alias = alias_of(v);
	f = live_flow(est, fresh, &alias, now);
	if (!f)
		return NULL;
	v->translated = true;
	v->key.peer_port = f->peer_port;
	return live_flow(est, fresh, &v->key, now);
}

/* Would the flow be there still, if a packet of it came now? */
static __always_inline bool is_revoked(const struct ct *f, const struct port_cfg *pc, struct visit *v)
{
	if (f->generation == READ_ONCE(pc->generation) || f->flags & (CT_HOST | CT_KEEP))
		return false;
	return permit(pc, v, f->direction, f->match);
}

/*
 * Find the flow that v's packet, an ICMP error, is about, and leave in *v what
 * its packets are rewritten by. Global, as track is; no caller passes NULL.
 */
__noinline enum reason match_error(struct __sk_buff *skb, const struct inet *p, struct inet *q, struct visit *v,
				   const struct port_cfg *pc)
{
	void *est, *fresh;
	enum reason reason;
	struct ct *f;

	if (!p || !q || !v || !pc)
		return REASON_NO_PORT;
	reason = check_error(skb, p) ?: read_quoted(skb, p, q);
	if (!reason && !same_ip(&p->dst, &q->src))
		reason = REASON_ICMP_UNMATCHED; /* it is for somebody else than who sent the packet */
	if (!reason)
		reason = key_of_quote(v, q);
	if (reason)
		return reason;
	est = flows_of(v->port);
	if (!est)
		return REASON_NO_CT;
	fresh = new_flows_of(v->port);
	if (!fresh)
		return REASON_NO_CT;
	f = quoted_flow(est, fresh, v, bpf_ktime_get_ns());
	if (!f || is_revoked(f, pc, v) || (v->answer_only && !(f->flags & CT_HOST)))
		return REASON_ICMP_UNMATCHED;
	take_over(v, f);
	return REASON_NONE;
}
