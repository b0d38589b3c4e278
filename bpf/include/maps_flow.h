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
	__be16 peer_port; /* ICMP: an echo's id is the port of who asks; else type << 8 | code, in both */
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
	CT_HOST = 1, /* of the host's own services: no policy is asked */
	CT_FIN_IN = 2,
	CT_FIN_OUT = 4,
	CT_ALIAS = 8,  /* no flow: peer_port is the one the VM sees */
	CT_KEEP = 16,  /* its rule said that it outlives it */
	CT_LOOSE = 32, /* TCP that was under way: how windows are scaled is not known */
};

/* What is known of the two sides of a TCP flow. */
enum ct_heard {
	CT_END_IN = 1, /* side[].end */
	CT_END_OUT = 2,
	CT_ACK_IN = 4, /* side[].ack and edge */
	CT_ACK_OUT = 8,
};

/* Who sends in one direction of a TCP flow, in sequence numbers. */
struct ct_side {
	__u32 end;  /* behind the last it has sent */
	__u32 ack;  /* the next that it waits for */
	__u32 edge; /* behind the last that it takes */
};

struct ct {
	__u64 seen;		/* CLOCK_MONOTONIC ns of the last packet */
	__u64 created;		/* and of the first */
	__u64 packets;		/* both ways */
	__u64 bytes;		/* of IP, both ways */
	struct ip16 vip;	/* of the service, with vip_port; :: if none */
	struct ct_side side[2]; /* by enum direction */
	__u32 service;		/* 0: none */
	__u32 backend;
	__u32 hash;	  /* flow hash; & slot mask is the slot */
	__u32 generation; /* the port's when this was last judged */
	__u32 rule;	  /* that admitted it; 0: no rule was needed */
	__u32 idle;	  /* seconds that it lives without a packet when established; 0: as usual */
	__be16 vip_port;
	__be16 peer_port; /* on the wire */
	__u16 match;	  /* port by which the policy judged */
	__u8 direction;	  /* of the first packet */
	__u8 state;	  /* enum ct_state */
	__u8 flags;	  /* enum ct_flag */
	__u8 heard;	  /* enum ct_heard */
	__u8 scale[2];	  /* of side[]'s window */
	__u32 counted;	  /* 1: it is among its backend's live ones (backend_conn) */
};

#define CT_NEW_MAX 1024
#define CT_QUOTA   8192

/* A port's flows that nobody has confirmed. A full one forgets those that were
 * not used for longest: a flood costs only itself. */
struct new_flows {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, CT_NEW_MAX);
	__type(key, struct ct_key);
	__type(value, struct ct);
};

/* A port's flows. Without prealloc: an empty one costs 132 KB. */
struct flows {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, CT_QUOTA);
	__type(key, struct ct_key);
	__type(value, struct ct);
};

/*
 * Flows are in ct_new until their initiator has spoken after the answer, then in
 * ct_est; those of the host's own services at once. Outer maps written by the
 * loader when it attaches a port, indexed by the zone's port id, as port_cfg is.
 * Inner maps are written by uplink_in, vm_in and svc_in.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__array(values, struct new_flows);
} ct_new SEC(".maps");

/* As ct_new. Inner maps are swept by the agent; their size is the port's quota. */
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

struct frag_key {
	__u32 port;
	__u32 id;
	struct ip16 src;
	struct ip16 dst;
	__u8 proto; /* IPv6: the fragment header's own */
	__u8 direction;
	__u8 pad[2];
};

struct frag_piece {
	__u16 from; /* bytes of the datagram */
	__u16 to;   /* 0: no piece */
};

#define FRAG_PIECES 4

/* A datagram in fragments whose first one was admitted. */
struct frag {
	__u64 seen;	 /* CLOCK_MONOTONIC ns of the first one */
	struct ip16 vip; /* the service's, whose address the others take, too */
	__u32 service;	 /* 0: none */
	__u32 rule;
	struct frag_piece piece[FRAG_PIECES]; /* those that lie apart; the first begins at 0 */
	__u16 total;			      /* its length, once the last one was there */
	__u8 spoilt;			      /* two of them have overlapped */
	__u8 pad[5];
};

/* Written by vm_in and uplink_in. All ports share it; each has a rate. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct frag_key);
	__type(value, struct frag);
} frag SEC(".maps");
