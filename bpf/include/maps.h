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
	__u32 overlay;	  /* ifindex of the vxlan device; 0: none */
};

enum direction {
	DIRECTION_IN = 0, /* towards the instance */
	DIRECTION_OUT = 1,
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
	__u64 overlay_digest;
	__u32 overlay_in_prog;
	__u32 pad;
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
