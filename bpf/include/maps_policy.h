/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include "maps.h"

/* Policies: two axes cut into classes, and bitmaps of rules (policy.h). Conventions: maps.h. */

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
