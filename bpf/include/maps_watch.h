/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include "maps.h"

/* What is told of ports: counters and events (events.h). Conventions: maps.h. */

/* A port's packets on one CPU; bytes are of IP. */
struct port_stat {
	__u64 packets_in; /* that went to the instance */
	__u64 bytes_in;
	__u64 packets_out; /* that came from it and went on, or were answered here */
	__u64 bytes_out;
	__u64 packets_dropped; /* either way */
	__u64 due;	       /* CLOCK_MONOTONIC ns: how far it has used up its rate of events */
};

enum event_kind {
	EVENT_OPENED = 1,  /* a port has admitted a flow */
	EVENT_CLOSED = 2,  /* and it is gone */
	EVENT_DENIED = 3,  /* the port's policy has refused a packet */
	EVENT_DROPPED = 4, /* a packet was dropped for any other reason */
	EVENT_SAMPLED = 5, /* a packet of a service has been given to a backend */
};

enum event_audience {
	EVENT_FOR_LOG = 1,    /* the port has PORT_FLOW_LOG */
	EVENT_FOR_WATCH = 2,  /* somebody watches drops */
	EVENT_FOR_SAMPLE = 4, /* somebody looks at samples */
};

/*
 * One of all kinds. Of a flow the tuple is its first packet's at the port, the
 * peer's port the one on the wire, and packets and bytes are those of both ways;
 * of a packet they are its own, and what could not be read of it is 0.
 */
struct event {
	__u64 at;     /* CLOCK_MONOTONIC ns */
	__u64 opened; /* the same of a flow's first packet; 0: of no flow */
	__u64 packets;
	__u64 bytes; /* of IP */
	struct ip16 src;
	struct ip16 dst;
	__u32 port;    /* where it happened; 0: before a port was known */
	__u32 from;    /* the port of this host that has sent the packet; 0: none. Of a sample: the backend */
	__u32 reason;  /* enum reason: of the drop, or of a flow's end; 0: it was over */
	__u32 rule;    /* that has admitted the flow; 0: none */
	__u32 service; /* by which the flow came; 0: none */
	__be16 sport;  /* of ICMP as in struct ct_key */
	__be16 dport;
	__be16 type; /* of Ethernet; 0: of a flow */
	__u8 proto;
	__u8 kind;	/* enum event_kind */
	__u8 direction; /* enum direction, at the port */
	__u8 state;	/* enum ct_state: of a flow */
	__u8 tcp_flags; /* of a packet */
	__u8 audience;	/* enum event_audience, all that asked */
};

/* Events on one CPU. */
struct event_stat {
	__u64 told;
	__u64 lost;	   /* the ring was full */
	__u64 muted;	   /* beyond the rate of their port */
	__u64 due;	   /* as struct port_stat's, of what has no port */
	__u64 frames_lost; /* their ring was full */
};

#define CAPTURE_MAX 1536

/* A frame at a port, as it came there. What follows size bytes is not handed over. */
struct capture {
	__u64 at; /* CLOCK_MONOTONIC ns */
	__u32 port;
	__u32 reason; /* enum reason: what became of it */
	__u32 rule;   /* that has admitted its flow; 0: none */
	__u32 service;
	__u32 length; /* of the frame */
	__u16 size;   /* of what is here */
	__u8 direction;
	__u8 pad;
	__u8 frame[CAPTURE_MAX];
};

/* What somebody looks at. It ends by itself: who dies leaves nothing on. */
struct watch {
	__u64 drops_until;  /* CLOCK_MONOTONIC ns; 0: nobody */
	__u64 frames_until; /* the same */
	__u32 drops_port;   /* 0: of all */
	__u32 drops_reason; /* enum reason; 0: any */
	__u32 frames_port;
	__u32 frames_bytes;    /* of each frame */
	__u64 samples_until;   /* as drops_until */
	__u32 samples_service; /* 0: of all */
	__u32 pad;
};

/*
 * A port's entry is made by the loader when it attaches the port, and goes with
 * it: a port that is not here costs nothing. Written by the programs.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, __u32);
	__type(value, struct port_stat);
} port_stat SEC(".maps");

/* Written by the programs, read by the agent: struct event. Room for 10,000. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1048576);
} events SEC(".maps");

/* Written by the programs. One record. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct event_stat);
} event_stat SEC(".maps");

/* Written by the programs, read by the agent: struct capture. Room for 3,500 of 262 bytes. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1048576);
} captures SEC(".maps");

/* Written and read by one program for the length of one packet; each object has its own. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct capture);
} captured SEC(".maps");

/* Written by the agent for who looks into it. One record. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct watch);
} watch SEC(".maps");
