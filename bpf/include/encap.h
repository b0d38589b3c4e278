/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include "leave.h"
#include "nlb.h"

/*
 * Between hosts a load-balanced packet travels as VXLAN: the inner destination
 * MAC is the backend's, the inner source MAC says where the packet has been:
 * 0x0a | generation << 2 + hop | id of the other owner, in network order.
 *
 * trip is one such packet on its way: to a backend, to the one that owned the
 * slot before, into a port of this host.
 */

#define VXLAN_PORT	4789
#define VXLAN_VNI_VALID 0x08
#define MAC_TAG		0x0a
#define HOPS_MAX	2

struct vxlanhdr {
	__u8 flags;
	__u8 reserved[3];
	__be32 vni; /* and 8 reserved bits */
};

/* Ethernet, IPv4, UDP and VXLAN. */
#define TUNNEL_OVERHEAD                                                                                                \
	((int)(sizeof(struct ethhdr) + sizeof(struct iphdr) + sizeof(struct udphdr) + sizeof(struct vxlanhdr)))

/* A fragment of a datagram for a VIP (piece.h). */
struct piece {
	__u32 id;
	__u32 kind; /* enum fragment (inet.h) */
};

struct trip {
	struct packet pkt;
	struct svc *svc;
	struct backend *to; /* where it goes, while that is another host */
	struct local *at;   /* where it is, once that is a port of this host */
	__u32 svc_index;
	__u32 hash;
	__u32 backend; /* that it is meant for */
	__u32 other;   /* owner of the slot that the encapsulation names */
	__u32 port;
	struct piece piece;
	__u8 hop;   /* how often it was handed on */
	bool probe; /* the self-test's own packet */
	bool error; /* an ICMP error about the flow that pkt is of (about.h) */
};

/* The self-test's packets are counted apart, wherever they end. */
static __always_inline int end_trip(const struct trip *t, int action, enum reason reason)
{
	return leave_as(&t->pkt, action, t->probe ? REASON_PROBED : reason);
}

/* Inner source MAC */

static __always_inline void write_tag(__u8 *mac, __u32 generation, __u8 hop, __u32 other)
{
	mac[0] = MAC_TAG;
	mac[1] = (generation & 0x3f) << 2 | (hop & 3);
	mac[2] = other >> 24;
	mac[3] = other >> 16;
	mac[4] = other >> 8;
	mac[5] = other;
}

static __always_inline enum reason read_tag(const __u8 *mac, struct trip *t)
{
	if (mac[0] != MAC_TAG)
		return REASON_MALFORMED;
	t->hop = mac[1] & 3;
	t->other = (__u32)mac[2] << 24 | (__u32)mac[3] << 16 | (__u32)mac[4] << 8 | mac[5];
	return REASON_NONE;
}

/* On the way */

/* What is written around a packet, but for the next hop. */
struct outside {
	__be32 endpoint;
	__u32 hash;
	__u32 generation;
	__u32 other;
	__u8 hop;
	__u8 mac[ETH_ALEN]; /* of the station behind the endpoint */
};

static __always_inline void write_outer_ip(struct iphdr *ip, const struct cfg *c, const struct packet *pkt, __be32 to)
{
	__builtin_memset(ip, 0, sizeof(*ip));
	ip->version = 4;
	ip->ihl = sizeof(*ip) / 4;
	ip->tot_len = bpf_htons(pkt->length + TUNNEL_OVERHEAD);
	ip->frag_off = bpf_htons(0x4000); /* DF */
	ip->ttl = OUTER_TTL;
	ip->protocol = IPPROTO_UDP;
	ip->saddr = c->endpoint;
	ip->daddr = to;
	ip->check = ip_csum(ip);
}

/* RFC 7348: the source port is from the dynamic range, by flow. The hash's
 * upper bits, because the lower ones chose the slot. */
static __always_inline void write_outer_udp(struct udphdr *udp, const struct packet *pkt, __u32 hash)
{
	udp->source = bpf_htons(49152 + (hash >> 18));
	udp->dest = bpf_htons(VXLAN_PORT);
	udp->len = bpf_htons(pkt->length + TUNNEL_OVERHEAD - sizeof(struct iphdr));
	udp->check = 0;
}

/* One hop less for the packet under the cursor. */
static __always_inline bool hop_on(struct cursor c, const struct packet *pkt)
{
	if (pkt->family == 6) {
		struct ipv6hdr *ip = take(&c, sizeof(*ip));

		if (ip)
			ip->hop_limit--;
		return ip;
	} else {
		struct iphdr *ip = take(&c, sizeof(*ip));

		if (ip)
			ttl_decrement(ip);
		return ip;
	}
}

/* A next hop in one load. */
static __always_inline struct nexthop nexthop_of(__u32 index)
{
	struct nexthop *hop = bpf_map_lookup_elem(&nexthops, &index);
	struct nexthop nexthop = {};

	if (hop)
		*(__u64 *)&nexthop = READ_ONCE(*(__u64 *)hop);
	return nexthop;
}

/* Put the tunnel's headers in front, to a station at an endpoint; the old Ethernet
 * header becomes the inner one. */
static __always_inline enum reason encapsulate(struct xdp_md *ctx, const struct cfg *c, const struct packet *pkt,
					       const struct nexthop *nexthop, const struct outside *o)
{
	struct ethhdr *eth, *inner;
	struct vxlanhdr *vxlan;
	struct udphdr *udp;
	struct iphdr *ip;
	struct cursor cur;

	if (bpf_xdp_adjust_head(ctx, -TUNNEL_OVERHEAD))
		return REASON_NO_HEADROOM;
	cur = xdp_cursor(ctx);
	eth = take(&cur, sizeof(*eth));
	ip = take(&cur, sizeof(*ip));
	udp = take(&cur, sizeof(*udp));
	vxlan = take(&cur, sizeof(*vxlan));
	inner = take(&cur, sizeof(*inner));
	if (!eth || !ip || !udp || !vxlan || !inner || !hop_on(cur, pkt))
		return REASON_MALFORMED;
	__builtin_memcpy(inner->h_dest, o->mac, ETH_ALEN);
	write_tag(inner->h_source, o->generation, o->hop, o->other);
	__builtin_memset(vxlan, 0, sizeof(*vxlan));
	vxlan->flags = VXLAN_VNI_VALID;
	vxlan->vni = bpf_htonl(c->lb_vni << 8);
	write_outer_udp(udp, pkt, o->hash);
	write_outer_ip(ip, c, pkt, o->endpoint);
	__builtin_memcpy(eth->h_dest, nexthop->mac, ETH_ALEN);
	__builtin_memcpy(eth->h_source, c->uplink_mac, ETH_ALEN);
	eth->h_proto = bpf_htons(ETH_P_IP);
	return REASON_NONE;
}
