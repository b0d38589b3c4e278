/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include "maps.h"

/* Flows at ports (conntrack.h). Conventions: maps.h. */

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
