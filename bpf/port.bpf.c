// SPDX-License-Identifier: Apache-2.0
//go:build ignore

#include "conntrack.h"
#include "export.h"
#include "packet.h"
#include "policy.h"
#include "port.h"

/*
 * The host's side of a VM's device (a veth or a TAP): what the VM sends, and
 * the guard of what enters it. And the door for the host's own services.
 * Nothing a VM sends reaches the host's stack: what is not redirected drops.
 */

/* May the port speak for this address? */
static __noinline bool owns(__u32 port, __be32 ip)
{
	struct addr_key key = { .port = port, .ip = ip16_of(ip) };

	return bpf_map_lookup_elem(&addr_ok, &key) != NULL;
}

/* ARP */

/* Turn the question under the cursor into its answer. */
static __always_inline enum reason answer_arp(struct cursor *c, struct ethhdr *eth, const struct port_cfg *pc,
					      __u32 port)
{
	struct arphdr *arp = take(c, sizeof(*arp));
	__be32 asked;

	if (!arp)
		return REASON_MALFORMED;
	if (arp->hardware != bpf_htons(1) || arp->protocol != bpf_htons(ETH_P_IP) || arp->op != bpf_htons(1))
		return REASON_ARP_IGNORED;
	if (!same_mac(arp->sender_mac, pc->mac))
		return REASON_SPOOFED_ARP;
	if (arp->sender_ip && !owns(port, arp->sender_ip))
		return REASON_SPOOFED_ARP;
	/* A VM that asks for its own address looks for a duplicate. */
	if (owns(port, arp->target_ip))
		return REASON_ARP_IGNORED;

	asked = arp->target_ip;
	arp->op = bpf_htons(2);
	__builtin_memcpy(arp->target_mac, arp->sender_mac, ETH_ALEN);
	arp->target_ip = arp->sender_ip;
	__builtin_memcpy(arp->sender_mac, pc->gateway_mac, ETH_ALEN);
	arp->sender_ip = asked;
	__builtin_memcpy(eth->h_dest, pc->mac, ETH_ALEN);
	__builtin_memcpy(eth->h_source, pc->gateway_mac, ETH_ALEN);
	return REASON_NONE;
}

/* The gateway is whatever address is asked for: there is no L2 between VMs. */
static __always_inline int from_arp(struct __sk_buff *skb, const struct frame *f, const struct port_cfg *pc, __u32 port)
{
	struct cursor c = skb_cursor(skb);
	struct ethhdr *eth = take(&c, sizeof(*eth));
	enum reason reason = REASON_MALFORMED;

	if (eth)
		reason = answer_arp(&c, eth, pc, port);
	if (reason)
		return drop(f, reason);
	skb->mark = GUARD_MARK;
	return redirected(f, bpf_redirect(pc->ifindex, 0), REASON_ARP_ANSWERED);
}

/* What the VM sends, in the order vm_in asks */

static __always_inline enum reason check_destination(const struct frame *f, const struct cfg *c)
{
	if (f->pkt.daddr == c->probe)
		return REASON_NONE; /* the flow table decides */
	if (is_special(f->pkt.daddr))
		return REASON_BAD_DESTINATION;
	if (prefix_flags(f->pkt.daddr) & PREFIX_HOST)
		return REASON_HOST_ADDRESS;
	return REASON_NONE;
}

static __always_inline enum reason check_size(struct __sk_buff *skb, const struct frame *f, const struct port_cfg *pc)
{
	if (pc->mtu && !skb->gso_size && f->pkt.length > pc->mtu)
		return REASON_OVERSIZE;
	return f->pkt.ttl > 1 ? REASON_NONE : REASON_TTL;
}

#define IP_OFFSET(field) (sizeof(struct ethhdr) + offsetof(struct iphdr, field))

/* TTL − 1. It shares a checksum word with the protocol. */
static __always_inline enum reason hop(struct __sk_buff *skb, const struct frame *f)
{
	__u16 from = (__u16)f->pkt.proto << 8 | f->pkt.ttl;
	__u8 ttl = f->pkt.ttl - 1;
	__u16 to = (__u16)f->pkt.proto << 8 | ttl;

	if (bpf_l3_csum_replace(skb, IP_OFFSET(check), from, to, 2) ||
	    bpf_skb_store_bytes(skb, IP_OFFSET(ttl), &ttl, sizeof(ttl), 0))
		return REASON_MALFORMED;
	return REASON_NONE;
}

/* instance:target-port → VIP:port, as the flow says. */
static __always_inline enum reason rewrite_source(struct __sk_buff *skb, struct frame *f, const struct ct *flow)
{
	bool tcp = f->pkt.proto == IPPROTO_TCP;
	__u32 check = f->pkt.l4 + (tcp ? offsetof(struct tcphdr, check) : offsetof(struct udphdr, check));
	__u64 mangled = tcp ? 0 : BPF_F_MARK_MANGLED_0;
	__be32 from = f->pkt.saddr, to = ip16_v4(&flow->vip);

	if (bpf_l4_csum_replace(skb, check, from, to, mangled | BPF_F_PSEUDO_HDR | 4) ||
	    write_port(skb, f, offsetof(struct tcphdr, source), f->pkt.sport, flow->vip_port) ||
	    bpf_l3_csum_replace(skb, IP_OFFSET(check), from, to, 4) ||
	    bpf_skb_store_bytes(skb, IP_OFFSET(saddr), &to, sizeof(to), 0))
		return REASON_MALFORMED;
	f->pkt.saddr = to;
	f->pkt.sport = flow->vip_port;
	return REASON_NONE;
}

/* The port that the VM knows the client by → the client's own. */
static __always_inline enum reason restore_port(struct __sk_buff *skb, struct frame *f, const struct ct *flow)
{
	if (write_port(skb, f, offsetof(struct tcphdr, dest), f->pkt.dport, flow->peer_port))
		return REASON_MALFORMED;
	f->pkt.dport = flow->peer_port;
	return REASON_NONE;
}

/* The way out */

static __always_inline int to_door(struct __sk_buff *skb, const struct frame *f, const struct cfg *c,
				   const struct port_cfg *pc)
{
	if (write_macs(skb, c->door_mac, pc->gateway_mac))
		return drop(f, REASON_MALFORMED);
	return redirected(f, bpf_redirect(c->door, 0), REASON_TO_DOOR);
}

/* A port of this host, the sender's own included: its policy is asked first. */
static __always_inline int to_neighbour(struct __sk_buff *skb, const struct frame *f, struct visit *v,
					const struct port_cfg *pc)
{
	enum reason reason = enter(f, v, pc);

	if (reason)
		return drop(f, reason);
	return to_port(skb, f, v, pc);
}

static __always_inline int to_uplink(struct __sk_buff *skb, const struct frame *f, const struct cfg *c)
{
	skb->mark = 0;
	return redirected(f, bpf_redirect_neigh(c->uplink, NULL, 0, 0), REASON_TO_UPLINK);
}

static __always_inline enum reason check(struct __sk_buff *skb, const struct frame *f, const struct cfg *c,
					 const struct port_cfg *pc, __u32 port)
{
	enum reason reason = f->reason; /* of the headers */

	if (reason != REASON_MALFORMED && !owns(port, f->pkt.saddr))
		return REASON_SPOOFED_IP;
	if (!reason)
		reason = check_destination(f, c);
	if (!reason)
		reason = check_size(skb, f, pc);
	return reason;
}

/* An IPv4 packet that the VM may send: account it, mend it, send it. */
static __always_inline int from_vm(struct __sk_buff *skb, struct frame *f, const struct cfg *c,
				   const struct port_cfg *pc, __u32 port)
{
	bool door = f->pkt.daddr == c->probe;
	struct visit v = { .port = port, .answer_only = door };
	struct port_cfg *neighbour;
	enum reason reason;

	reason = depart(f, &v, pc);
	if (!reason && v.flow.service)
		reason = rewrite_source(skb, f, &v.flow);
	if (!reason && v.flow.peer_port != f->pkt.dport)
		reason = restore_port(skb, f, &v.flow);
	if (!reason)
		reason = hop(skb, f);
	if (reason)
		return drop(f, reason);
	if (door)
		return to_door(skb, f, c, pc);

	__builtin_memset(&v, 0, sizeof(v));
	neighbour = port_at(f->pkt.daddr, &v.port);
	if (neighbour)
		return to_neighbour(skb, f, &v, neighbour);
	return to_uplink(skb, f, c);
}

SEC("tcx/ingress")
int vm_in(struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex, *port;
	struct cfg *c = config();
	struct frame f = {};
	struct port_cfg *pc;
	enum reason reason;

	if (!c)
		return drop(&f, REASON_NO_CONFIG);
	port = bpf_map_lookup_elem(&ifindex_port, &ifindex);
	pc = port ? port_by_id(*port) : NULL;
	if (!pc)
		return drop(&f, REASON_NO_PORT);
	if (!read_frame(skb, &f))
		return drop(&f, REASON_MALFORMED);
	if (!same_mac(f.src, pc->mac))
		return drop(&f, REASON_SPOOFED_MAC);
	if (f.proto == bpf_htons(ETH_P_ARP))
		return from_arp(skb, &f, pc, *port);
	if (f.proto != bpf_htons(ETH_P_IP))
		return drop(&f, REASON_NOT_IPV4);
	reason = check(skb, &f, c, pc, *port);
	if (reason)
		return drop(&f, reason);
	return from_vm(skb, &f, c, pc, *port);
}

/* The last look before the VM: only what our programs brought. */
SEC("tcx/egress")
int vm_guard(struct __sk_buff *skb)
{
	struct frame f = { .packets = 1 };

	if (skb->mark != GUARD_MARK)
		return drop(&f, REASON_GUARD);
	return pass(&f, REASON_GUARD_ADMITTED);
}

/*
 * The host's side of cairn-svc: health checks on their way to a port. They
 * need no rule, because they came through the door, not because of an address.
 */
SEC("tcx/ingress")
int svc_in(struct __sk_buff *skb)
{
	struct visit v = { .host = true };
	struct cfg *c = config();
	struct frame f = {};
	struct port_cfg *pc;
	enum reason reason;

	if (!c)
		return drop(&f, REASON_NO_CONFIG);
	if (!read_frame(skb, &f))
		return drop(&f, REASON_MALFORMED);
	if (f.proto != bpf_htons(ETH_P_IP))
		return drop(&f, REASON_NOT_IPV4);
	if (f.reason)
		return drop(&f, f.reason);
	if (f.pkt.saddr != c->probe)
		return drop(&f, REASON_BAD_SOURCE);
	pc = port_at(f.pkt.daddr, &v.port);
	if (!pc)
		return drop(&f, REASON_NO_PORT);
	reason = enter(&f, &v, pc);
	if (reason)
		return drop(&f, reason);
	return to_port(skb, &f, &v, pc);
}

/* Delete a port's expired flows; the agent runs it from a ticker, because a
 * timer per flow fails in bursts. */
SEC("syscall")
int ct_sweep(struct sweep *s)
{
	__u32 port = s->port;
	void *flows = flows_of(port);
	struct sweep done = {};

	if (!flows)
		return 1;
	done.now = bpf_ktime_get_ns();
	bpf_for_each_map_elem(flows, sweep_flow, &done, 0);
	s->live = done.live;
	s->expired = done.expired;
	s->now = done.now;
	return 0;
}

char _license[] SEC("license") = "Apache-2.0";
