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
	REASON_PASS_NOT_INET = 1,  /* XDP: ARP, anything else on the uplink */
	REASON_PASS_HOST = 2,	   /* IP for nobody we serve: the host's own */
	REASON_PASS_OTHER_VNI = 3, /* a tunnel packet of another network */
	REASON_PASS_OTHER_MAC = 4, /* a frame for another station, flooded */
	REASON_PASS_NOT_IP = 5,	   /* tcx: ARP, a VLAN, anything else on the uplink */
	REASON_PASS_UNDERLAY = 6,  /* an ICMP error about a tunnel packet of ours */

	/* Counted beside the reason of the same packet's exit. */
	REASON_CT_QUOTA = 8, /* a confirmed flow found the quota used up and stays among the new */

	/* Done as meant. */
	REASON_TO_OWNER = 7,		/* a fragment, to the node that has the others */
	REASON_TTL_ANSWERED = 9,	/* hops spent: the sender was told */
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
	REASON_ND_ANSWERED = 24,	/* the gateway answered a neighbour solicitation */
	REASON_PUNTED = 25,		/* given to the agent: DHCP, router solicitation */
	REASON_TOO_BIG_ANSWERED = 26,	/* larger than the path takes: the sender was told */
	REASON_TO_TUNNEL = 27,		/* left for another host of the network */
	REASON_FLOODED = 28,		/* copied to all that listen in the network */

	REASON_COPIED = 29, /* a copy for one of those left; FLOODED counts the frame */

	/* Not a packet we take. */
	REASON_MALFORMED = 30,	      /* shorter than its headers say */
	REASON_NOT_IP = 31,	      /* from a port: neither IP nor ARP */
	REASON_FRAGMENT = 32,	      /* a fragment where none may be */
	REASON_PROTOCOL = 33,	      /* one that is not served, or ICMP of the other family */
	REASON_OVERSIZE = 34,	      /* larger than the service's or the port's MTU */
	REASON_TTL = 35,	      /* hops spent */
	REASON_BAD_SOURCE = 36,	      /* a source that only the host may use */
	REASON_BAD_DESTINATION = 37,  /* loopback, link-local, multicast, ... */
	REASON_EXTENSIONS = 38,	      /* IPv6: too many headers, or of a kind or order none may have */
	REASON_FRAGMENT_EARLY = 39,   /* a later fragment whose first one was not admitted */
	REASON_FRAGMENT_OVERLAP = 40, /* it covers what another one has */
	REASON_FRAGMENT_SHORT = 41,   /* a first one without all of its headers, or made to change them */
	REASON_FRAGMENT_RATE = 42,    /* more datagrams in fragments than a port may have */
	REASON_TCP_FLAGS = 43,	      /* a set that no stack sends */
	REASON_VLAN = 44,	      /* from a port: tagged */
	REASON_FRAGMENT_HOLES = 45,   /* out of order, and more holes than are remembered */
	REASON_NO_CHECKSUM = 46,      /* IPv6: a datagram of UDP without one */

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
	REASON_NO_NETWORK = 85,	  /* the port's private network is not here */
	REASON_PUNT_LOST = 86,	  /* for the agent, which does not keep up */
	REASON_SPOOFED_ND = 87,	  /* ND for an address or MAC that is not the port's, or not from the link */
	REASON_ND_IGNORED = 88,	  /* ND that is no question to the gateway */
	REASON_ROGUE_RA = 89,	  /* a port that would be a router */
	REASON_ROGUE_DHCP = 90,	  /* a port that would be a DHCP server */
	REASON_ROGUE_DHCP6 = 91,
	REASON_CT_INVALID_RST = 92,  /* a RST outside of the flow's window */
	REASON_CT_NO_SYN = 93,	     /* TCP of an unknown flow, at a strict port */
	REASON_ICMP_UNMATCHED = 94,  /* an ICMP error about no flow of the port */
	REASON_ICMP_TOO_SMALL = 95,  /* a path MTU that no path has */
	REASON_ICMP_REDIRECT = 96,   /* nobody tells a port's routes but us */
	REASON_SMTP = 97,	     /* mail from a port that may not send any */
	REASON_METADATA_CLOSED = 98, /* the metadata service is not here */

	/* Private networks. */
	REASON_UNKNOWN_MAC = 100, /* no station of the network has it */
	REASON_BUM_RATE = 101,	  /* more for all of the network than a port may send */
	REASON_COPY_FAILED = 102, /* a copy for one of many found no room */
	REASON_OVERLAY_LB = 103,  /* the load balancer's own, where private networks are */
	REASON_WRONG_HOST = 104,  /* from a MAC that is not at the sender */
	REASON_PUNT_RATE = 105,	  /* more questions to the agent than a port may ask */
	REASON_TO_SERVER = 106,	  /* to the network's own server, that serves DHCP alone */

	/* 130 to 139: policies. */

	/* The door of the host's own services. */
	REASON_DOOR_PROTOCOL = 140, /* to or from the metadata service: not TCP, or not its port */
	REASON_DOOR_NO_FLOW = 141,  /* from the metadata service: nobody there has asked */
	REASON_DOOR_NOBODY = 142,   /* from the metadata service: to a port that is not here */

	/* Bandwidth. */
	REASON_RATE = 150,	  /* more than the port may send */
	REASON_SOURCE_RATE = 151, /* more for the service than a source prefix may send */

	/* Load balancing, at the backend's host. */
	REASON_LIMIT = 160, /* a new connection to a backend at its limit, beyond the rate of RSTs */

	REASON_MAX = 256,
};
