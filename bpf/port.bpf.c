// SPDX-License-Identifier: Apache-2.0
//go:build ignore

#include "deliver.h"
#include "door.h"
#include "export.h"
#include "neighbour.h"
#include "packet.h"
#include "policy.h"
#include "port.h"
#include "private.h"
#include "rate.h"
#include "vm.h"

/*
 * The host's side of a VM's device (a veth or a TAP): what the VM sends, and
 * the guard of what enters it. And the door for the host's own services.
 * Nothing a VM sends reaches the host's stack: what is not redirected drops.
 */

/* The way out */

/* A port of this host, the sender's own included: its policy is asked first. */
static __always_inline int to_neighbour(struct __sk_buff *skb, struct work *w, const struct port_cfg *pc, __u32 port)
{
	stand_at(skb, &w->f, port, DIRECTION_IN);
	begin_visit(&w->v, &w->f, port, DIRECTION_IN);
	return deliver_to(skb, w, pc, GUARD_MARK);
}

static __always_inline int to_uplink(struct __sk_buff *skb, const struct frame *f, const struct cfg *c)
{
	skb->mark = 0;
	return redirected(f, bpf_redirect_neigh(c->uplink, NULL, 0, 0), REASON_TO_UPLINK);
}

/* A packet that the VM may send: account it, mend it, send it. */
static __noinline int from_vm(struct __sk_buff *skb, struct work *w, const struct cfg *c, const struct port_cfg *pc,
			      __u32 port)
{
	struct frame *f = &w->f;
	struct visit *v = &w->v;
	struct port_cfg *neighbour;
	bool door = is_door(f, c), hairpin = is_hairpin(&f->ip.dst);
	enum reason reason;

	if (hairpin && (f->ip.fragment || is_icmp_error(&f->ip)))
		return drop(f, f->ip.fragment ? REASON_FRAGMENT : REASON_ICMP_UNMATCHED);
	begin_visit(v, f, port, DIRECTION_OUT);
	v->answer_only = door || hairpin;
	reason = examine(skb, w, pc) ?: mend_out(skb, w) ?: hop(skb, f);
	if (reason)
		return drop(f, reason);
	if (door)
		return to_door(skb, f, c, pc);

	neighbour = port_at(&f->ip.dst, &port);
	if (neighbour)
		return to_neighbour(skb, w, neighbour, port);
	return to_uplink(skb, f, c);
}

SEC("tcx/ingress")
int vm_in(struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex, *port;
	struct work *w = begin_work();
	struct cfg *c = config();
	struct port_cfg *pc;
	enum reason reason;

	if (!c || !w)
		return drop_blind(REASON_NO_CONFIG);
	port = bpf_map_lookup_elem(&ifindex_port, &ifindex);
	pc = port ? port_by_id(*port) : NULL;
	if (!pc)
		return drop_blind(REASON_NO_PORT);
	stand_at(skb, &w->f, *port, DIRECTION_OUT);
	if (!read_frame(skb, &w->f))
		return drop(&w->f, REASON_MALFORMED);
	if (!same_mac(w->f.src, pc->mac))
		return drop(&w->f, REASON_SPOOFED_MAC);
	if (skb->vlan_present)
		return drop(&w->f, REASON_VLAN);
	if (!may_send(skb, &w->f, pc, *port))
		return drop(&w->f, REASON_RATE);
	if (pc->vni)
		return from_private(skb, w, c, pc, *port);
	if (w->f.proto == bpf_htons(ETH_P_ARP))
		return from_arp(skb, &w->f, pc, *port);
	if (!is_ip(&w->f))
		return drop(&w->f, w->f.reason ?: REASON_NOT_IP);
	if (!w->f.reason && is_nd(&w->f.ip))
		return from_nd(skb, &w->f, pc, *port);
	if (!w->f.reason && is_dhcp(&w->f.ip))
		return from_dhcp(skb, &w->f, *port);
	reason = check(&w->f, c, *port);
	if (reason)
		return drop(&w->f, reason);
	if (is_too_big(skb, &w->f, pc))
		return too_big_out(skb, &w->f, pc, *port);
	if (is_metadata(&w->f))
		return to_metadata(skb, w, c, pc, *port);
	if (w->f.ip.ttl <= 1)
		return drop(&w->f, REASON_TTL);
	return from_vm(skb, w, c, pc, *port);
}

/* The last look before the VM: only what our programs brought. */
SEC("tcx/egress")
int vm_guard(struct __sk_buff *skb)
{
	if (skb->mark != GUARD_MARK)
		return drop_blind(REASON_GUARD);
	return pass_blind(REASON_GUARD_ADMITTED);
}

/*
 * The host's side of cairn-svc: health checks on their way to a port, and what the
 * metadata service answers. They need no rule, because they came through the door,
 * not because of an address.
 */
SEC("tcx/ingress")
int svc_in(struct __sk_buff *skb)
{
	struct work *w = begin_work();
	struct cfg *c = config();
	struct port_cfg *pc;
	__u32 port = 0;

	if (!c || !w)
		return drop_blind(REASON_NO_CONFIG);
	if (!read_frame(skb, &w->f))
		return drop_blind(REASON_MALFORMED);
	if (!is_ip(&w->f))
		return drop(&w->f, w->f.reason ?: REASON_NOT_IP);
	if (w->f.reason)
		return drop(&w->f, w->f.reason);
	if (w->f.ip.fragment)
		return drop(&w->f, REASON_FRAGMENT);
	if (w->f.ip.family == 4 && ip16_v4(&w->f.ip.src) == bpf_htonl(METADATA_ADDRESS))
		return from_metadata(skb, w);
	if (!is_prober(&w->f.ip, &w->f.ip.src, c))
		return drop(&w->f, REASON_BAD_SOURCE);
	pc = port_at(&w->f.ip.dst, &port);
	if (!pc)
		return drop(&w->f, REASON_NO_PORT);
	stand_at(skb, &w->f, port, DIRECTION_IN);
	begin_visit(&w->v, &w->f, port, DIRECTION_IN);
	w->v.host = true;
	return deliver_to(skb, w, pc, 0);
}

/* sweep_flow, of a port with PORT_FLOW_LOG. */
static long sweep_logged(struct bpf_map *flows, const struct ct_key *key, struct ct *flow, struct sweep *s)
{
	if (is_swept(key, flow, s) && !(flow->flags & (CT_HOST | CT_ALIAS)))
		tell_flow(key, flow, s->port, EVENT_CLOSED, s->all ? REASON_NO_PORT : REASON_NONE);
	return sweep_flow(flows, key, flow, s);
}

/* Delete a port's expired flows; the agent runs it from a ticker, because a
 * timer per flow fails in bursts. */
SEC("syscall")
int ct_sweep(struct sweep *s)
{
	__u32 port = s->port;
	void *est = flows_of(port), *fresh = new_flows_of(port);
	struct sweep done = {};
	struct port_cfg *pc;

	if (!est || !fresh)
		return 1;
	pc = bpf_map_lookup_elem(&port_cfg, &port);
	done.port = port;
	done.flags = pc ? pc->flags : 0;
	done.all = s->all;
	done.now = bpf_ktime_get_ns();
	if (done.flags & PORT_FLOW_LOG) {
		bpf_for_each_map_elem(est, sweep_logged, &done, 0);
		bpf_for_each_map_elem(fresh, sweep_logged, &done, 0);
	} else {
		bpf_for_each_map_elem(est, sweep_flow, &done, 0);
		bpf_for_each_map_elem(fresh, sweep_flow, &done, 0);
	}
	s->live = done.live;
	s->expired = done.expired;
	s->now = done.now;
	return 0;
}

/* What a port's policy says to a packet that would open a flow: run by user
 * space, attached to nothing. It asks the live rules and leaves no trace. */
SEC("tcx/ingress")
int ask(struct __sk_buff *skb)
{
	struct inquiry i;
	struct port_cfg *pc;

	if (bpf_skb_load_bytes(skb, 0, &i, sizeof(i)))
		return TC_ACT_SHOT;
	pc = port_by_id(i.port);
	if (!pc)
		return TC_ACT_SHOT;
	i.reason = judge(pc, &i.question, &i.verdict);
	return bpf_skb_store_bytes(skb, 0, &i, sizeof(i), 0) ? TC_ACT_SHOT : TC_ACT_OK;
}

char _license[] SEC("license") = "Apache-2.0";
