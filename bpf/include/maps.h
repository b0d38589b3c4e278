/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>

#include "reason.h"

/*
 * The maps all programs share, pinned by name under <pins>/v1/. Both objects
 * declare all of them; the loader creates each once.
 *
 * "ip16" is an IPv6 address, or an IPv4 address as ::ffff:a.b.c.d, in wire
 * order. Ids of ports, backends, services, rules and classes are the zone's
 * (dense, from 1; 0 is "none"); policy ids and service indexes are this host's
 * own. Fields called __be are in wire order, all others in the host's.
 * Sizes are defaults: the loader may be told others.
 */

struct ip16 {
	__u8 b[16];
} __attribute__((aligned(4)));

/* What does not change while the host runs. */
struct cfg {
	__be32 endpoint; /* own tunnel endpoint */
	__u32 lb_vni;	 /* 0xFFFFFE */
	__u32 uplink;	 /* ifindex */
	__u32 door;	 /* ifindex of the host's side of cairn-svc */
	__be32 probe;	 /* the door's own address: source of health checks */
	__u8 uplink_mac[6];
	__u8 door_mac[6]; /* MAC of the door's far side */
};

struct vip4_key {
	__be32 ip;
	__be16 port;
	__u8 proto;
	__u8 pad;
};

enum svc_flag {
	SVC_SOURCE_HASH = 1, /* ports stay out of the flow hash */
	SVC_PANIC = 2,	     /* too few backends are healthy: all are used */
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
	__u8 reserved[16];
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

struct fdb_key {
	__u32 vni;
	__u8 mac[6];
	__u8 pad[2];
};

enum port_flag {
	PORT_EGRESS_OPEN = 1, /* no egress rule exists: all may leave */
};

struct port_cfg {
	__u32 ifindex;
	__u32 flags; /* enum port_flag */
	__u8 mac[6];
	__u8 gateway_mac[6];
	/* Written before generation, read after it: a flow stamped with a
	 * generation was judged by that generation's policy or a later one. */
	__u32 policy_in;  /* 0: none yet, all is dropped */
	__u32 policy_out; /* 0: none yet, all is dropped unless open */
	__u32 generation;
	__u32 mtu; /* largest IP packet; 0: any */
	__u32 vni; /* 0: the public network */
	__u32 reserved[6];
};

struct addr_key {
	__u32 port;
	struct ip16 ip;
};

enum prefix_flag {
	PREFIX_HOST = 1,      /* underlay, management, host: no port may reach it */
	PREFIX_INSTANCES = 2, /* announced for instances: never the stack's */
};

struct prefix_key {
	__u32 bits; /* 0..128 of ip; 96 + n for an IPv4 prefix of n bits */
	struct ip16 ip;
};

enum scope {
	SCOPE_PUBLIC = 0,
};

struct member_key {
	__u32 scope;
	struct ip16 ip;
};

struct cidr_key {
	__u32 bits; /* 32 + 0..128; 32 + 96 + n for an IPv4 prefix of n bits */
	__u32 policy;
	struct ip16 ip;
};

enum direction {
	DIRECTION_IN = 0, /* towards the instance */
	DIRECTION_OUT = 1,
};

struct bm_key {
	__u32 policy;
	__u32 direction;
	__u32 class;
};

struct bounds_key {
	__u32 policy;
	__u32 direction;
	__u32 proto;
};

#define BOUNDS_MAX 128

/*
 * The port axis of one protocol, cut where any rule begins or ends: interval i
 * holds the ports p with exactly i bounds <= p. 64 ranges have at most 128
 * bounds. ICMP uses type << 8 | code as the port.
 */
struct bounds {
	__u32 n;
	__u16 bound[BOUNDS_MAX]; /* ascending, the first n are used */
};

struct port_bm_key {
	__u32 policy;
	__u32 direction;
	__u32 proto;
	__u32 interval;
};

struct rules_key {
	__u32 policy;
	__u32 direction;
};

/* Bit i of every bitmap of this policy and direction is rule id[i]. */
struct rules {
	__u32 id[64];
};

struct rule_stat {
	__u64 packets;
	__u64 bytes; /* of IP */
};

/*
 * What the VM sees, whatever the wire says. Two services, or a service and the
 * instance's own address, can give one client the same tuple; then the later
 * flow's peer_port is another one here, and an alias finds it: peer and VIP:port
 * (or the instance's) as on the wire.
 */
struct ct_key {
	struct ip16 peer;
	struct ip16 own;
	__be16 peer_port; /* ICMP: the echo id, in both ports */
	__be16 own_port;
	__u8 proto;
	__u8 alias; /* 1: the tuple on the wire of a flow whose port is translated */
	__u8 pad[2];
};

enum ct_state {
	CT_NEW = 1,	    /* only the initiator has spoken */
	CT_REPLIED = 2,	    /* the other side has answered */
	CT_ESTABLISHED = 3, /* the initiator has spoken after the answer */
	CT_CLOSING = 4,	    /* one FIN */
	CT_CLOSED = 5,	    /* both FINs */
	CT_RESET = 6,
};

enum ct_flag {
	CT_HOST = 1, /* opened by the host through its door */
	CT_FIN_IN = 2,
	CT_FIN_OUT = 4,
	CT_ALIAS = 8, /* no flow: peer_port is the one the VM sees */
};

struct ct {
	__u64 seen;	 /* CLOCK_MONOTONIC ns of the last packet */
	__u64 packets;	 /* both ways */
	struct ip16 vip; /* of the service, with vip_port; :: if none */
	__u32 service;	 /* 0: none */
	__u32 backend;
	__u32 hash;	  /* flow hash; & slot mask is the slot */
	__u32 generation; /* the port's when this was last judged */
	__u32 rule;	  /* that admitted it; 0: no rule was needed */
	__be16 vip_port;
	__be16 peer_port; /* on the wire */
	__u16 match;	  /* port by which the policy judged */
	__u8 direction;	  /* of the first packet */
	__u8 state;	  /* enum ct_state */
	__u8 flags;	  /* enum ct_flag */
	__u8 pad[3];
};

struct refusals {
	__u64 since; /* CLOCK_MONOTONIC ns: the current second's begin */
	__u64 sent;
};

#define META_SCHEMA 1

/* What the loader and the agent remember beside the maps. */
struct meta {
	__u32 schema;
	__u32 uplink_prog; /* program ids, as loaded */
	__u32 uplink_in_prog;
	__u32 vm_in_prog;
	__u32 vm_guard_prog;
	__u32 svc_in_prog;
	__u64 uplink_digest; /* of the object's bytes and constants */
	__u64 port_digest;
	__u64 revision; /* high-water mark of applied revisions */
};

enum note_flag {
	NOTE_PRESENT = 1,
};

/*
 * What uplink (XDP) tells uplink_in about a packet it has rewritten. The same
 * for every packet of a flow, so that GRO still merges.
 */
struct note {
	__u32 flags; /* enum note_flag */
	__u32 svc;   /* index of the service record */
	__u32 backend;
	__u32 hash;
};

/* Written by the loader, when it starts. One record. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct cfg);
} cfg SEC(".maps");

/* Written by the loader (programs) and the agent (revision). One record. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct meta);
} meta SEC(".maps");

/* Written by every program, one count per exit. Indexed by enum reason. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, REASON_MAX);
	__type(key, __u32);
	__type(value, __u64);
} reasons SEC(".maps");

#define VIP_BITS_WORDS 2048

/*
 * Written by the agent: one bit per hash of a VIP address (vip_bit in nlb.h),
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

/* Written by uplink, indexed by the zone's backend id, as backends is. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, struct stat);
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

/* Written by the agent: network, MAC → local port. One entry per port. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, struct fdb_key);
	__type(value, __u32);
} fdb SEC(".maps");

/* Written by the agent, indexed by the zone's port id. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, struct port_cfg);
} port_cfg SEC(".maps");

/* Written by the loader when it attaches a port: device → port id. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, __u32);
	__type(value, __u32);
} ifindex_port SEC(".maps");

/* Written by the agent: addresses a port may use as a source → flags (0). */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct addr_key);
	__type(value, __u32);
} addr_ok SEC(".maps");

/* Written by the agent: public address → local port. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct ip16);
	__type(value, __u32);
} addr_port SEC(".maps");

/* Written by the agent: what an address range is → enum prefix_flag. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 4096);
	__type(key, struct prefix_key);
	__type(value, __u32);
} prefixes SEC(".maps");

/* Written by the agent: member address → class (a set of groups). */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 131072);
	__type(key, struct member_key);
	__type(value, __u32);
} members SEC(".maps");

/* Written by the agent: policy, prefix → class of the CIDRs that cover it. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct cidr_key);
	__type(value, __u32);
} cidr SEC(".maps");

/* Written by the agent: policy, direction, class → rules that admit it. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct bm_key);
	__type(value, __u64);
} peer_bm SEC(".maps");

/* Written by the agent: the same for classes of CIDRs. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct bm_key);
	__type(value, __u64);
} cidr_bm SEC(".maps");

/* Written by the agent: policy, direction, protocol → bounds of its ports. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, struct bounds_key);
	__type(value, struct bounds);
} port_bounds SEC(".maps");

/* Written by the agent: and interval → rules. An absent one means none. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 262144);
	__type(key, struct port_bm_key);
	__type(value, __u64);
} port_bm SEC(".maps");

/* Written by the agent: policy, direction → rule id of each bit. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 8192);
	__type(key, struct rules_key);
	__type(value, struct rules);
} rule_ids SEC(".maps");

/*
 * Written by the programs: packets of the flows a rule admitted, indexed by
 * the zone's rule id; 0 counts what needed no rule.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, struct rule_stat);
} rule_stats SEC(".maps");

#define CT_QUOTA 8192

/* A port's flows. Without prealloc: an empty one costs 132 KB. */
struct flows {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, CT_QUOTA);
	__type(key, struct ct_key);
	__type(value, struct ct);
};

/*
 * Outer map written by the loader when it attaches a port, indexed by the
 * zone's port id, as port_cfg is. Inner maps are written by uplink_in, vm_in
 * and svc_in, and swept by the agent; their size is the port's quota.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__array(values, struct flows);
} ct_est SEC(".maps");

/*
 * Written by the programs: when a port's full table was last swept
 * (CLOCK_MONOTONIC ns). Indexed by the zone's port id, as port_cfg is.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, __u64);
} ct_swept SEC(".maps");

/* Written by uplink: RSTs sent in the current second, per CPU. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct refusals);
} refusals SEC(".maps");
