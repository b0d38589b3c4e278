/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include "maps.h"

/*
 * Policies: two axes cut into classes, and bitmaps of rules (policy.h).
 * Conventions: maps.h. A policy is written once, under an id that no port names
 * yet; only rows of peer_bm come and go under a living id.
 */

enum scope {
	SCOPE_PUBLIC = 0, /* else the network's VNI */
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

#define RULES_MAX 1024 /* of a policy and direction */

/* A set of rules of one policy and direction. */
struct bitmap {
	__u64 word[RULES_MAX / 64];
};

struct bm_key {
	__u32 policy;
	__u32 direction;
	__u32 class;
};

#define ANY_PROTOCOL 0 /* of the rules for whatever no rule names */

struct bounds_key {
	__u32 policy;
	__u32 direction;
	__u32 proto;
	__u32 leaf; /* 0: the root */
};

#define CUTS_MAX 64

struct cut {
	__u16 from;
	__u16 class; /* 0: no rule; in a root with leaves the number of one */
};

/*
 * The port axis of one protocol, cut where any rule begins or ends. A cut
 * reaches to the next. The first of a root is at 0, and unused ones repeat the
 * class of the last one at 65535. 1,024 rules have at most 2,049 cuts: 33
 * leaves, found through their root. ICMP uses type << 8 | code as the port, and
 * protocols without ports have the one cut at 0.
 */
struct bounds {
	__u16 leaves; /* of a root: how many, 0 when its cuts are all */
	__u16 whole;  /* of a root: class of the rules that take all of the axis */
	struct cut cut[CUTS_MAX];
};

struct rules_key {
	__u32 policy;
	__u32 direction;
	__u32 word; /* of the bitmaps */
};

/* Bit i of that word of every bitmap of the policy and direction is id[i]. */
struct rules {
	__u32 id[64];
	__u64 keep; /* those that keep the flows they admitted */
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
	__uint(max_entries, 131072);
	__type(key, struct cidr_key);
	__type(value, __u32);
} cidr SEC(".maps");

/* Written by the agent: policy, direction, class → rules that admit it. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct bm_key);
	__type(value, struct bitmap);
} peer_bm SEC(".maps");

/* Written by the agent: the same for classes of CIDRs. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct bm_key);
	__type(value, struct bitmap);
} cidr_bm SEC(".maps");

/* Written by the agent: policy, direction, protocol → classes of its ports. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 32768);
	__type(key, struct bounds_key);
	__type(value, struct bounds);
} port_bounds SEC(".maps");

/* Written by the agent: the same for classes of ports. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 262144);
	__type(key, struct bm_key);
	__type(value, struct bitmap);
} port_bm SEC(".maps");

/* Written by the agent: policy, direction, word → rule id of each bit. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 32768);
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
