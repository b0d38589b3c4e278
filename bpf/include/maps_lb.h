/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include "maps.h"

/* Load balancing: services, slots, backends and how they are reached. Conventions: maps.h. */

struct vip4_key {
	__be32 ip;
	__be16 port;
	__u8 proto;
	__u8 pad;
};

struct vip6_key {
	struct ip16 ip;
	__be16 port;
	__u8 proto;
	__u8 pad;
};

enum svc_flag {
	SVC_SOURCE_HASH = 1, /* ports stay out of the flow hash */
	SVC_PANIC = 2,	     /* too few backends are healthy: all are used */
	SVC_ROTATING = 4,    /* prev_seed says where a flow may be from before */
	SVC_PACED = 8,	     /* by rate */
	SVC_SAMPLED = 16,    /* by sample */
	SVC_QUIC = 32,	     /* connection IDs may name backends */
	SVC_OPTIONS = SVC_ROTATING | SVC_PACED | SVC_SAMPLED | SVC_QUIC,
};

/* Written once under a fresh index; a change takes another index. */
struct svc {
	struct ip16 vip;
	__be16 port;
	__u8 proto;
	__u8 pad;
	__u32 id;
	__u32 slot_base;  /* index of slot 0 in slots */
	__u32 slot_mask;  /* number of slots − 1 */
	__u32 flags;	  /* enum svc_flag */
	__u32 mtu;	  /* largest IP packet to a backend; 0: any */
	__u32 generation; /* of the slot table */
	__u32 seed;	  /* of the flow hash */
	__u32 limit;	  /* connections that a backend takes; 0: any */
	__u32 prev_seed;  /* the one before */
	__u32 rate;	  /* packets a second, CPU and source prefix */
	__u32 sample;	  /* one packet in so many is told of */
};

/* The server ID in a connection ID: the backend's IPv4 address. */
struct quic_key {
	__u32 service;
	__be32 server;
};

/* What a source prefix may send yet. */
struct allowance {
	__u64 prefix; /* /24 or /56, its bits in the lowest ones */
	__u64 due;    /* CLOCK_MONOTONIC ns: how far it has used up its rate */
	__u32 service;
	__u32 pad;
};

#define ALLOWANCE_PLACES 4
#define ALLOWANCE_LINES	 1024

struct allowances {
	struct allowance place[ALLOWANCE_PLACES];
};

enum backend_flag {
	BACKEND_VALID = 1, /* an all-zero record is no backend */
};

struct backend {
	__be32 endpoint; /* tunnel endpoint of its host; 0: this host */
	__u32 nexthop;	 /* index in nexthops */
	__u32 flags;	 /* enum backend_flag */
	__u8 mac[6];	 /* the port's */
	__u8 reserved[14];
};

enum nexthop_flag {
	NEXTHOP_VALID = 1,
};

/* 8 bytes, so that one store changes it and one load reads it. */
struct nexthop {
	__u8 mac[6];
	__u16 flags; /* enum nexthop_flag */
} __attribute__((aligned(8)));

struct stat {
	__u64 packets;
	__u64 bytes;	 /* of IP */
	__u64 opened;	 /* TCP SYNs */
	__u64 forwarded; /* handed on to the other owner by this host */
};

#define STATS_PER_PAGE 64

struct stat_page {
	struct stat of[STATS_PER_PAGE];
};

struct vtep {
	__u32 host;
	__u32 pmtu;
};

/* Times are CLOCK_MONOTONIC ns of this host. */
struct reach {
	__u64 seen; /* when the last answer came */
	__u64 sent; /* when its question left */
};

struct local_key {
	__u32 service;
	__u32 port;
};

enum local_flag {
	LOCAL_READY = 1,    /* takes new flows */
	LOCAL_DRAINING = 2, /* keeps its flows, takes no new one */
};

struct local {
	__u32 backend;
	struct ip16 ip;
	__be16 target_port;
	__u16 flags; /* enum local_flag; 0: unhealthy */
};

struct refusals {
	__u64 since; /* CLOCK_MONOTONIC ns: the current second's begin */
	__u64 sent;
};

#define VIP_BITS_WORDS 2048

/*
 * Written by the agent: one bit per hash of a VIP address (vip_hash4 and vip_hash6 in nlb.h),
 * set before the address is added, rebuilt on removal. Clear: not ours. 16 KB,
 * so that it stays in cache; 3 % false positives at 4,096 VIPs.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, VIP_BITS_WORDS);
	__type(key, __u32);
	__type(value, __u64);
} vip_bits SEC(".maps");

/*
 * Written by the agent: VIP, port, protocol → index in svc. One entry per
 * service; the u32 flips a service to its next record.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 8192);
	__type(key, struct vip4_key);
	__type(value, __u32);
} vip4 SEC(".maps");

/* Written by the agent: every VIP address → number of its services. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 8192);
	__type(key, __be32);
	__type(value, __u32);
} vipaddr4 SEC(".maps");

/* Written by the agent: vip4's twin for VIPs of IPv6. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 8192);
	__type(key, struct vip6_key);
	__type(value, __u32);
} vip6 SEC(".maps");

/* Written by the agent: vipaddr4's. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 8192);
	__type(key, struct ip16);
	__type(value, __u32);
} vipaddr6 SEC(".maps");

/*
 * Written by the agent, indexed by the host's own service index. Twice the
 * services, because a change needs a second record until readers are gone.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 16384);
	__type(key, __u32);
	__type(value, struct svc);
} svc SEC(".maps");

/*
 * Written by the agent in 8-byte stores: low half cur, high half prev, both
 * backend ids. Ranges of a power of two per service; 1 M slots are 8 MB.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1048576);
	__type(key, __u32);
	__type(value, __u64);
} slots SEC(".maps");

/* Written by the agent, indexed by the zone's backend id; written once. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, struct backend);
} backends SEC(".maps");

/* Written by the agent from the kernel's neighbours; the index is its own. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, struct nexthop);
} nexthops SEC(".maps");

/* Written by uplink, indexed by the zone's service id. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 16384);
	__type(key, __u32);
	__type(value, struct stat);
} svc_stat SEC(".maps");

/*
 * Written by uplink, indexed by the zone's backend id / 64. A per-CPU array keeps
 * a pointer for each of its values: one for 64 backends stays in cache.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, struct stat_page);
} backend_stat SEC(".maps");

/* Written by the agent: tunnel endpoint → host. One entry per known host. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, __be32);
	__type(value, struct vtep);
} vteps SEC(".maps");

/*
 * Written by uplink, read by the agent: the last answer of a host to the
 * question whether it is reached. Indexed by the zone's host id.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 16384);
	__type(key, __u32);
	__type(value, struct reach);
} vtep_seen SEC(".maps");

/*
 * Written by the agent: service, port → how the service reaches that port.
 * One entry per backend on this host.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, struct local_key);
	__type(value, struct local);
} local SEC(".maps");

/*
 * Written by the agent: service, IPv4 address of an instance → its backend. One entry
 * for each backend of a service with SVC_QUIC.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct quic_key);
	__type(value, __u32);
} quic SEC(".maps");

/*
 * Written by uplink, indexed by the hash of service and source prefix: 4,096
 * prefixes a CPU, 96 KB.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, ALLOWANCE_LINES);
	__type(key, __u32);
	__type(value, struct allowances);
} allowances SEC(".maps");

/* Written by uplink: RSTs sent in the current second, per CPU. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct refusals);
} refusals SEC(".maps");
