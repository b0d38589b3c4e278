/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include "inet.h"
#include "question.h"

struct frame {
	struct inet ip;
	__be16 proto; /* of Ethernet */
	__u8 src[ETH_ALEN];
	__u8 dst[ETH_ALEN];
	enum reason reason; /* what reading the packet came to */
	__u64 packets;	    /* on the wire; an skb may be many */
	__u64 bytes;	    /* of IP, with the headers of each */
	__u32 port[2];	    /* by enum direction: the one here that gets it, the one that has sent it */
	__u32 rule;	    /* as far as it is known: what has admitted its flow, */
	__u32 service;	    /* and by what it came */
	bool captured;	    /* it was kept for who captures frames */
};

/* One packet at one port. */
struct visit {
	struct ct_key key;
	__u32 port;
	__u8 direction; /* of this packet at the port */
	__u8 tcp_flags;
	__u8 scale;	  /* of a SYN's window; SCALE_NONE if it names none */
	bool opening;	  /* a SYN, or any packet of what is not TCP */
	bool host;	  /* of the host's own services: no policy is asked */
	bool answer_only; /* it may belong to a flow, never open one */
	bool translated;  /* key.peer_port is not the wire's */
	bool new_alias;
	bool confirmed; /* its flow is in ct_est */
	bool stale;	/* there is one in ct_est that is over */
	__u16 match;
	__be16 wire_port; /* the peer's, as the packet has it */
	__u16 window;
	__u32 seq;
	__u32 end; /* behind the last sequence number */
	__u32 ack;
	__u64 packets;
	__u64 bytes;

	/*
	 * Going in: the service the packet came through, if any. Coming out: the
	 * flow's. Copied, because the entry may go while the packet is still here.
	 */
	struct ip16 vip;
	__u32 service;
	__u32 backend;
	__u32 hash;
	__u32 rule;
	__be16 vip_port;
	__be16 peer_port; /* on the wire */

	struct ct flow; /* a record on its way into a table */

	/* To the port's policy. Here because the stack has no room for it. */
	struct question question;
	struct verdict verdict;
};

/* The packet at the port, all else of *v anew but the record and what follows it. */
static __always_inline void begin_visit(struct visit *v, const struct frame *f, __u32 port, __u8 direction)
{
	const struct inet *p = &f->ip;

	__builtin_memset(v, 0, offsetof(struct visit, flow));
	v->port = port;
	v->direction = direction;
	v->key.peer = direction == DIRECTION_IN ? p->src : p->dst;
	v->key.own = direction == DIRECTION_IN ? p->dst : p->src;
	v->key.peer_port = direction == DIRECTION_IN ? p->sport : p->dport;
	v->key.own_port = direction == DIRECTION_IN ? p->dport : p->sport;
	v->key.proto = p->proto;
	v->wire_port = v->peer_port = v->key.peer_port;
	v->opening = true;
	v->match = p->match;
	v->packets = f->packets;
	v->bytes = f->bytes;
	if (p->proto != IPPROTO_TCP)
		return;
	v->opening = is_opening_tcp(p);
	v->tcp_flags = p->tcp_flags;
	v->scale = p->scale;
	v->window = p->window;
	v->seq = p->seq;
	v->ack = p->ack;
	v->end = p->seq + (p->l3 + p->length - p->payload);
	v->end += !!(p->tcp_flags & TCP_SYN) + !!(p->tcp_flags & TCP_FIN);
}
