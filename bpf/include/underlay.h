/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include "about.h"

/*
 * An ICMP error about what we have put around a packet: a router of the underlay
 * takes less than the uplink does, or does not know the way. Clients can do nothing
 * about it, so none is told; the agent raises an alarm.
 */

/* Write down what is said of the tunnel to host. */
static __noinline int note_error(__u32 host, const struct packet *pkt, __u16 mtu)
{
	struct vtep_error *e = bpf_map_lookup_elem(&vtep_errors, &host);

	if (!e || trace)
		return 0;
	e->seen = bpf_ktime_get_ns();
	__sync_fetch_and_add(&e->count, 1);
	e->from = ip16_v4(&pkt->saddr);
	e->mtu = mtu;
	e->type = pkt->icmp_type;
	e->code = pkt->icmp_code;
	return 0;
}

/*
 * Is the packet, for the own endpoint, such an error? It passes all the same: the
 * kernel's own tunnels learn the path's MTU from it. Only what quotes a tunnel
 * packet of ours to a known endpoint counts; that can be forged, and changes nothing
 * but what the agent says.
 */
__noinline bool is_underlay_error(struct xdp_md *ctx, const struct packet *pkt)
{
	struct cursor c = xdp_cursor(ctx);
	struct quoted_l4 *l4;
	struct vtep *vtep;
	__be32 endpoint;
	__u16 mtu = 0;
	struct iphdr *q;

	if (!pkt || !is_error(pkt))
		return false;
	l4 = take_quote(&c, &q);
	if (!l4 || q->protocol != IPPROTO_UDP || l4->dport != bpf_htons(VXLAN_PORT) || q->saddr != ip16_v4(&pkt->daddr))
		return false;
	endpoint = q->daddr;
	c = xdp_cursor(ctx);
	if (pkt->icmp_type == ICMP_UNREACHABLE && pkt->icmp_code == ICMP_FRAG_NEEDED)
		mtu = next_mtu(c);
	vtep = bpf_map_lookup_elem(&vteps, &endpoint);
	if (!vtep)
		return false;
	note_error(vtep->host, pkt, mtu);
	return true;
}
