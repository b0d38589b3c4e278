/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Why a packet left a program. Every exit counts exactly one of these. Numbers
 * are never reused or moved: counters outlive a program in their pinned map.
 * Go gets the same list from this enum (package bpf, Reason).
 */
enum reason {
	/* 0 means "go on": a stage that returns it has not decided. */
	REASON_NONE = 0,

	/* Left to the host's stack. */
	REASON_PASS_NOT_IPV4 = 1,  /* ARP, IPv6, anything else on the uplink */
	REASON_PASS_HOST = 2,	   /* IPv4 for nobody we serve: the host's own */
	REASON_PASS_OTHER_VNI = 3, /* a tunnel packet of another network */
	REASON_PASS_OTHER_MAC = 4, /* a frame for another station, flooded */

	/* Done as meant. */
	REASON_SENT = 10,		/* encapsulated towards a backend, left */
	REASON_FORWARDED = 11,		/* handed on to the other owner of its slot */
	REASON_DELIVERED = 12,		/* rewritten and noted for uplink_in */
	REASON_ECHOED = 13,		/* answered a ping to a VIP */
	REASON_PROBED = 14,		/* the self-test's own packet, wherever it went */
	REASON_TO_PORT = 15,		/* redirected to a local port */
	REASON_TO_UPLINK = 16,		/* left a port for the network */
	REASON_TO_DOOR = 17,		/* reply to one of the host's own services */
	REASON_ARP_ANSWERED = 18,	/* the gateway answered */
	REASON_GUARD_ADMITTED = 19,	/* a marked frame entered its port */
	REASON_REACH_ANSWERED = 20,	/* another host asked whether it reaches us */
	REASON_REACHED = 21,		/* another host answered that we reach it */
	REASON_TO_PORT_TRANSLATED = 22, /* the same, the client's port changed */
	REASON_REFUSED = 23,		/* a new flow that nobody takes: answered with a RST */

	/* Not a packet we take. */
	REASON_MALFORMED = 30,	     /* shorter than its headers say */
	REASON_NOT_IPV4 = 31,	     /* from a port: neither IPv4 nor ARP */
	REASON_FRAGMENT = 32,	     /* fragments carry no ports */
	REASON_PROTOCOL = 33,	     /* neither TCP, UDP nor ICMP */
	REASON_OVERSIZE = 34,	     /* larger than the service's or the port's MTU */
	REASON_TTL = 35,	     /* hops spent */
	REASON_BAD_SOURCE = 36,	     /* a source that only the host may use */
	REASON_BAD_DESTINATION = 37, /* loopback, link-local, multicast, ... */

	/* Load balancing. */
	REASON_UNKNOWN_ENDPOINT = 50, /* tunnel packet of a stranger */
	REASON_NO_SERVICE = 51,	      /* a VIP's address, a port it does not serve */
	REASON_STALE_SERVICE = 52,    /* the record is another service's by now */
	REASON_NO_SLOT = 53,	      /* the slot lies outside the table */
	REASON_NO_BACKEND = 54,	      /* the slot is empty or names no known backend */
	REASON_NO_NEXTHOP = 55,	      /* the next hop's MAC is not known */
	REASON_NO_LOCAL = 56,	      /* the backend is not on this host (any more) */
	REASON_DRAINING = 57,	      /* the same, beyond the rate of RSTs */
	REASON_VIP_ICMP = 58,	      /* ICMP to a VIP that is not an echo request */
	REASON_NO_HEADROOM = 59,      /* the driver gave no room for headers */
	REASON_NO_META = 60,	      /* the driver gave no room for the note */
	REASON_HOPS = 61,	      /* handed on more often than the table allows */

	/* Ports. */
	REASON_NO_PORT = 70,	  /* an instance address or device without a port */
	REASON_NO_POLICY = 71,	  /* the port's policy is not set yet */
	REASON_POLICY_IN = 72,	  /* no ingress rule admits it */
	REASON_POLICY_OUT = 73,	  /* no egress rule admits it */
	REASON_SPOOFED_MAC = 74,  /* source MAC is not the port's */
	REASON_SPOOFED_IP = 75,	  /* source address is not the port's */
	REASON_SPOOFED_ARP = 76,  /* ARP for an address that is not the port's */
	REASON_ARP_IGNORED = 77,  /* ARP that is no question to the gateway */
	REASON_HOST_ADDRESS = 78, /* towards underlay, management or host */
	REASON_NO_CT = 79,	  /* the port has no flow table */
	REASON_CT_FULL = 80,	  /* the port's quota of flows is used up */
	REASON_CT_COLLISION = 81, /* the tuple is another live flow's, no port is free */
	REASON_NO_DOOR_FLOW = 82, /* towards the door, answering nothing */
	REASON_GUARD = 83,	  /* unmarked frame towards a port */
	REASON_NO_CONFIG = 84,	  /* cfg was never written */

	REASON_MAX = 96,
};
