/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include "maps.h"

/* Ports: their configuration, addresses, and the ranges no port may reach. Conventions: maps.h. */

enum port_flag {
	PORT_EGRESS_OPEN = 1, /* no egress rule exists: all may leave */
	PORT_SMTP_OPEN = 2,   /* mail may leave for port 25 */
	PORT_FIREWALL = 4,    /* a private port whose network has security groups */
	PORT_STRICT = 8,      /* TCP without a SYN opens no flow */
	PORT_FLOW_LOG = 16,   /* flows that open and close, and what the policy refuses, are told */
	PORT_UNMANAGED = 256, /* its private network leases no addresses: they are the guests' own */
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
	__u32 mtu;	   /* largest IP packet; 0: any */
	__u32 vni;	   /* 0: the public network */
	__u32 established; /* lifetime of an idle TCP flow in seconds; 0: an hour */
	__u32 reserved;
	__u64 loose_until; /* CLOCK_MONOTONIC ns until which PORT_STRICT does not count */
	__u64 rate_from;   /* bytes a second that may come from the VM; 0: any */
};

struct addr_key {
	__u32 port;
	struct ip16 ip;
};

struct allow_key {
	__u32 bits; /* 32 + 0..128; 32 + 96 + n for an IPv4 prefix of n bits */
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

/* Written by the agent: port, range of which it may use any address as a source
 * → flags (0). Asked only about what addr_ok does not have. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, struct allow_key);
	__type(value, __u32);
} addr_allow SEC(".maps");

/* Written by the agent: public range → local port. Asked only about what
 * addr_port does not have. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, struct prefix_key);
	__type(value, __u32);
} addr_net SEC(".maps");

/* Written by the agent: what an address range is → enum prefix_flag. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 4096);
	__type(key, struct prefix_key);
	__type(value, __u32);
} prefixes SEC(".maps");
