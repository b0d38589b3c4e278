/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include "maps.h"

/* What is not a plain packet of a flow to a VIP: fragments, what clients are told,
 * and what the underlay tells us. Conventions: maps.h. */

#define VIP_NODES_MAX 16

/* One LB node that announces a VIP. */
struct vip_node {
	__u32 host;
	__be32 endpoint; /* tunnel endpoint; 0: this host */
	__u32 nexthop;	 /* index in nexthops */
};

struct vip_nodes {
	__u32 count;
	struct vip_node node[VIP_NODES_MAX];
};

struct vip_frag_key {
	struct ip16 src;
	struct ip16 dst; /* the VIP */
	__u32 id;
	__u8 proto; /* IPv6: the fragment header's own */
	__u8 pad[3];
};

/* Where a datagram's first fragment went. */
struct vip_frag {
	__u64 seen; /* CLOCK_MONOTONIC ns */
	__u32 svc;  /* index of the service record */
	__u32 hash;
	__u32 backend;
	__u32 other; /* owner of the slot that the encapsulation names */
	__u8 hop;
	__u8 pad[7];
};

/* CLOCK_MONOTONIC ns: when the saved ones are back in full (keeps_pace). */
struct vip_pace {
	__u64 told;	 /* what clients are told: too big, hops spent */
	__u64 fragments; /* that are taken */
};

/* The last ICMP error about what this host has sent to a tunnel endpoint. */
struct vtep_error {
	__u64 seen; /* CLOCK_MONOTONIC ns; 0: none */
	__u64 count;
	__be32 from; /* who has sent it: a router of the underlay */
	__u16 mtu;   /* that it names, of the outer packet; 0: it is about something else */
	__u8 type;
	__u8 code;
};

/* Written by the agent: VIP → the LB nodes that announce it, this one among them,
 * if there are others. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 8192);
	__type(key, struct ip16);
	__type(value, struct vip_nodes);
} vip_nodes SEC(".maps");

/* Written by uplink: datagrams in fragments, at the node that owns them and at the
 * host of their backend. A VIP has a rate. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct vip_frag_key);
	__type(value, struct vip_frag);
} vip_frag SEC(".maps");

/* Written by uplink: VIP → what its rates have left. An entry comes with the first
 * need; who is forgotten begins anew. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct ip16);
	__type(value, struct vip_pace);
} vip_pace SEC(".maps");

/* Written by uplink, read by the agent. Indexed by the zone's host id, as vtep_seen
 * is. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 16384);
	__type(key, __u32);
	__type(value, struct vtep_error);
} vtep_errors SEC(".maps");
