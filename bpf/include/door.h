/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include "vm.h"

/*
 * cairn-svc, the one door of the host's own services. The metadata service at
 * 169.254.169.254 tells instances who they are: who asks is known by the port
 * alone, so a request leaves with an address that names the port, whatever the
 * guest's own is. Its flow is one of the port's, as a balanced one would be whose
 * VIP is that address; an alias under it finds the guest's own again, since the
 * answer names nothing else.
 */

#define METADATA_PORT	 80
#define METADATA_SERVICE 0xffffffff /* of its flows: no balanced service has it */

#define IDENTITIES	0xc6120000 /* 198.18.0.0, of which the last 17 bits are the port's number */
#define IDENTITIES_BITS 15

static __always_inline struct ip16 identity_of(__u32 port)
{
	return ip16_of(bpf_htonl(IDENTITIES + port));
}

static __always_inline int to_door(struct __sk_buff *skb, const struct frame *f, const struct cfg *c,
				   const struct port_cfg *pc)
{
	if (write_macs(skb, c->door_mac, pc->gateway_mac))
		return drop(f, REASON_MALFORMED);
	skb->mark = 0;
	return redirected(f, bpf_redirect(c->door, 0), REASON_TO_DOOR);
}

/*
 * A request, from a port that may speak for its source. Nothing of the port's
 * policy is asked, as nothing is by which it gets its address; a flow begins with
 * a SYN.
 */
static __noinline int to_metadata(struct __sk_buff *skb, struct work *w, const struct cfg *c, const struct port_cfg *pc,
				  __u32 port)
{
	struct frame *f = &w->f;
	struct visit *v = &w->v;
	enum reason reason;

	if (!c->door)
		return drop(f, REASON_METADATA_CLOSED);
	if (f->ip.fragment)
		return drop(f, REASON_FRAGMENT);
	if (f->ip.proto != IPPROTO_TCP || f->ip.dport != bpf_htons(METADATA_PORT))
		return drop(f, REASON_DOOR_PROTOCOL);
	begin_visit(v, f, port, DIRECTION_OUT);
	v->host = true;
	v->answer_only = !v->opening;
	v->service = METADATA_SERVICE;
	v->vip = identity_of(port);
	v->vip_port = f->ip.sport;
	v->translated = v->new_alias = true;
	reason = track(v, pc) ?: rewrite_source(skb, f, v);
	if (reason)
		return drop(f, reason);
	return to_door(skb, f, c, pc);
}

/* Find who has asked from v's identity and port, and make the flow's key of it. */
static __noinline bool find_asker(struct visit *v)
{
	__u64 now = bpf_ktime_get_ns();
	struct ct_key alias = alias_of(v);
	void *est = flows_of(v->port), *fresh;
	struct ct *f;

	if (!est)
		return false;
	fresh = new_flows_of(v->port);
	if (!fresh)
		return false;
	f = live_flow(est, fresh, &alias, now);
	if (!f)
		return false;
	if (!trace)
		f->seen = now;
	v->key.own = f->vip;
	return true;
}

/* The identity → the address that the guest has asked from. */
static __always_inline enum reason rewrite_receiver(struct __sk_buff *skb, const struct frame *f,
						    const struct ip16 *becomes)
{
	__be32 from = ip16_v4(&f->ip.dst), to = ip16_v4(becomes);

	if (bpf_l4_csum_replace(skb, f->ip.l4 + offsetof(struct tcphdr, check), from, to, BPF_F_PSEUDO_HDR | 4) ||
	    bpf_l3_csum_replace(skb, IP_OFFSET(check), from, to, 4) ||
	    bpf_skb_store_bytes(skb, IP_OFFSET(daddr), &to, sizeof(to), 0))
		return REASON_MALFORMED;
	return REASON_NONE;
}

/* What the metadata service says: answers to a live flow of the port that the
 * destination names, and nothing else. It is no fragment. */
static __noinline int from_metadata(struct __sk_buff *skb, struct work *w)
{
	struct frame *f = &w->f;
	struct visit *v = &w->v;
	struct port_cfg *pc;
	enum reason reason;
	__u32 port;

	if (!within(ip16_v4(&f->ip.dst), IDENTITIES, IDENTITIES_BITS))
		return drop(f, REASON_BAD_SOURCE);
	if (f->ip.proto != IPPROTO_TCP || f->ip.sport != bpf_htons(METADATA_PORT))
		return drop(f, REASON_DOOR_PROTOCOL);
	port = bpf_ntohl(ip16_v4(&f->ip.dst)) - IDENTITIES;
	pc = port_by_id(port);
	if (!pc)
		return drop(f, REASON_DOOR_NOBODY);
	stand_at(skb, f, port, DIRECTION_IN);
	begin_visit(v, f, port, DIRECTION_IN);
	v->answer_only = true;
	v->service = METADATA_SERVICE;
	v->vip = f->ip.dst;
	v->vip_port = f->ip.dport;
	if (!find_asker(v))
		return drop(f, REASON_DOOR_NO_FLOW);
	reason = track(v, pc) ?: rewrite_receiver(skb, f, &v->key.own);
	if (reason)
		return drop(f, reason);
	if (write_macs(skb, pc->mac, pc->gateway_mac))
		return drop(f, REASON_MALFORMED);
	skb->mark = GUARD_MARK;
	return redirected(f, bpf_redirect(pc->ifindex, 0), REASON_TO_PORT);
}
