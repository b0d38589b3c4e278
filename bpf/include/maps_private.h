/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include "maps.h"

/* Private networks (private.h, overlay.bpf.c). Conventions: maps.h. */

struct fdb_key {
	__u32 vni;
	__u8 mac[6];
	__u8 pad[2];
};

/* Where a MAC of a network is. */
struct station {
	__u32 port;	 /* of this host; 0: on another host */
	__be32 endpoint; /* of that host; 0: this one */
};

struct neigh_key {
	__u32 vni;
	struct ip16 ip;
};

/* Who has an address of a network. */
struct neigh {
	__u32 port; /* of the zone; 0: the network's own server */
	__u8 mac[6];
	__u8 pad[2];
};

#define BUM_PORTS 256
#define BUM_HOSTS 512

enum bum_flag {
	BUM_SNOOPING = 1, /* multicast goes only to who joined its group */
};

/* To whom a frame for all of a network goes. */
struct bum {
	__u32 flags; /* enum bum_flag */
	__u32 rate;  /* of such frames from one port, a second; 0: none */
	__u32 ports; /* how many of port[] */
	__u32 hosts; /* how many of host[] */
	__u32 port[BUM_PORTS];
	__be32 host[BUM_HOSTS]; /* tunnel endpoints */
};

/* A listener: a port of this host, or another host for all of its ports; neither
 * stands for the network, where somebody asks who listens. */
struct listener_key {
	__u32 vni;
	__u32 port;
	__be32 host;
	struct ip16 group;
};

/* When the next frame of a kind is due again (CLOCK_MONOTONIC ns); in the past
 * as long as the port keeps its rate. */
struct pace {
	__u64 bum;
	__u64 punt;
	__u64 fragments;
	__u64 sent; /* the bucket of port_cfg.rate_from is full again */
};

/* The same for answers about packets that are too large for a port: to who sent
 * them to it, and to its own VM. */
struct told {
	__u64 in;
	__u64 out;
};

#define PUNT_MAX 1024

/* A frame that the agent answers, as the VM sent it. */
struct punt {
	__u64 at; /* CLOCK_MONOTONIC ns */
	__u32 port;
	__u32 length;
	__u8 frame[PUNT_MAX];
};

/*
 * Written by the agent: network, MAC → where it is. One entry per port of a
 * network that has a port here; under the load balancer's VNI one per port here.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct fdb_key);
	__type(value, struct station);
} fdb SEC(".maps");

/* Written by the agent: network, address → who has it, if exactly one has. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 131072);
	__type(key, struct neigh_key);
	__type(value, struct neigh);
} neigh SEC(".maps");

/* Written by the agent: network → list for broadcast and multicast. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, struct bum);
} bum SEC(".maps");

/*
 * Written by vm_in and overlay_in from IGMP and MLD: who listens to a group →
 * when it said so (CLOCK_MONOTONIC ns). What falls out is asked for again by the
 * listeners' own repeated reports.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct listener_key);
	__type(value, __u64);
} listeners SEC(".maps");

/* Written by vm_in. Indexed by the zone's port id, as port_cfg is. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, struct pace);
} pace SEC(".maps");

/* Written by vm_in, uplink_in and svc_in. Indexed by the zone's port id, as
 * port_cfg is. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, struct told);
} told SEC(".maps");

/* Written by vm_in, read by the agent: struct punt. Room for 500. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 524288);
} punts SEC(".maps");
