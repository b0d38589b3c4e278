/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include "pace.h"
#include "segment.h"

/*
 * Frames for all of a network, or for a group: a copy to each port here and to
 * each host, which makes those for its own ports. With snooping a group's frames
 * go only to who has asked for them by IGMP or MLD (RFC 4541); a host counts as
 * one listener, that never leaves while its own list is what decides.
 */

#define IS_INCLUDE 1
#define TO_INCLUDE 3
#define BLOCK_OLD  6

/* So long after its last report somebody listens: two queries, 125 s apart, and
 * the time there is to answer one (RFC 3376, 8.4; RFC 3810, 9.4). */
#define LISTENS (260 * SECOND)

#define RECORDS_MAX 8 /* of one report; the rest ask again */

/* Groups that a port was not in yet: they push out others' (maps_private.h). */
#define NEW_GROUPS_PER_SECOND 16

/* Who speaks of groups: a port here, or a host. */
struct speaker {
	__u32 vni;
	__u32 port;
	__be32 host;
};

/* What reports say of one group. */
struct group_record {
	__u8 type;
	__u8 aux; /* words */
	__be16 sources;
};

/* False if a port joins more than it may, which counts as what it sends to all.
 * What comes from a host was within the rate there. */
static __noinline bool join(const struct speaker *s, const struct ip16 *group)
{
	struct listener_key key = { .vni = s->vni, .port = s->port, .host = s->host, .group = *group };
	__u64 now = bpf_ktime_get_ns();
	struct pace *p;

	if (s->port && !bpf_map_lookup_elem(&listeners, &key)) {
		p = bpf_map_lookup_elem(&pace, &key.port);
		if (!p || !keeps_pace(&p->bum, NEW_GROUPS_PER_SECOND))
			return false;
	}
	if (!trace)
		bpf_map_update_elem(&listeners, &key, &now, BPF_ANY);
	return true;
}

static __noinline void leave_group(const struct speaker *s, const struct ip16 *group)
{
	struct listener_key key = { .vni = s->vni, .port = s->port, .group = *group };

	if (s->port && !trace)
		bpf_map_delete_elem(&listeners, &key);
}

/* A group's address in a message of either family. */
static __always_inline bool load_group(struct __sk_buff *skb, bool v6, __u32 at, struct ip16 *group)
{
	__be32 v4;

	if (v6)
		return !bpf_skb_load_bytes(skb, at, group, sizeof(*group));
	if (bpf_skb_load_bytes(skb, at, &v4, sizeof(v4)))
		return false;
	*group = ip16_of(v4);
	return true;
}

/* What is learned from a frame. */
enum lesson {
	LESSON_NONE = 0,
	LESSON_ANSWER = 1,   /* to who asks who listens */
	LESSON_TOO_MANY = 2, /* groups at once */
};

/* The records of IGMPv3 and MLDv2 differ in the size of an address. */
static __noinline enum lesson learn_records(struct __sk_buff *skb, const struct speaker *s, __u32 at, bool v6)
{
	__u32 size = v6 ? sizeof(struct ip16) : sizeof(__be32);
	struct group_record r;
	struct ip16 group;
	__be16 records;

	if (bpf_skb_load_bytes(skb, at + 6, &records, sizeof(records)))
		return LESSON_ANSWER;
	at += 8;
	for (int i = 0; i < RECORDS_MAX && i < bpf_ntohs(records); i++) {
		if (bpf_skb_load_bytes(skb, at, &r, sizeof(r)) || !load_group(skb, v6, at + sizeof(r), &group))
			return LESSON_ANSWER;
		if (r.type == TO_INCLUDE && !r.sources)
			leave_group(s, &group);
		else if (r.type != BLOCK_OLD && !(r.type == IS_INCLUDE && !r.sources) && !join(s, &group))
			return LESSON_TOO_MANY;
		at += sizeof(r) + size * (1 + bpf_ntohs(r.sources)) + 4 * r.aux;
		if (at > 1500)
			return LESSON_ANSWER;
	}
	return LESSON_ANSWER;
}

/* What a message of IGMP or MLD says of its sender. Who asks is a router: it
 * listens to all groups, which :: stands for. */
static __noinline enum lesson learn(struct __sk_buff *skb, const struct inet *p, const struct speaker *s)
{
	__u8 type = p->icmp_type;
	struct speaker network = { .vni = s->vni };
	struct ip16 group = {};
	bool v6 = p->family == 6;

	if (!v6 && bpf_skb_load_bytes(skb, p->l4, &type, sizeof(type)))
		return LESSON_NONE;
	switch (type) {
	case IGMP_QUERY:
	case MLD_QUERY:
		if (join(s, &group))
			join(&network, &group);
		return LESSON_NONE;
	case IGMP3_REPORT:
	case MLD2_REPORT:
		return learn_records(skb, s, p->l4, v6);
	case IGMP1_REPORT:
	case IGMP2_REPORT:
	case MLD1_REPORT:
		if (load_group(skb, v6, p->l4 + (v6 ? 8 : 4), &group) && !join(s, &group))
			return LESSON_TOO_MANY;
		return LESSON_ANSWER;
	case IGMP2_LEAVE:
	case MLD1_DONE:
		if (load_group(skb, v6, p->l4 + (v6 ? 8 : 4), &group))
			leave_group(s, &group);
		return LESSON_ANSWER;
	}
	return LESSON_NONE;
}

/* A group that hosts ask for: not a broadcast, not one of the link's own
 * protocols (224.0.0.0/24, ff02::/16 and less), not what asks. */
static __always_inline bool is_asked_for(const struct inet *p)
{
	if (p->family == 6)
		return is_multicast6(&p->dst) && (p->dst.b[1] & 0xf) > 2 && !is_mld(p);
	return p->family == 4 && within(ip16_v4(&p->dst), 0xe0000000, 4) && !within(ip16_v4(&p->dst), 0xe0000000, 24) &&
	       !is_igmp(p);
}

static __always_inline bool has_said(const struct listener_key *key, __u64 now)
{
	__u64 *at = bpf_map_lookup_elem(&listeners, key);

	return at && now - READ_ONCE(*at) < LISTENS;
}

/* Where nobody asks, nobody repeats what he has said once: it holds for ever. */
static __noinline bool listens(const struct speaker *to, const struct ip16 *group)
{
	struct listener_key key = { .vni = to->vni, .port = to->port, .host = to->host, .group = *group };
	struct listener_key asking = { .vni = to->vni };
	__u64 now = bpf_ktime_get_ns();

	if (has_said(&key, now))
		return true;
	if (bpf_map_lookup_elem(&listeners, &key) && !has_said(&asking, now))
		return true;
	__builtin_memset(&key.group, 0, sizeof(key.group));
	return has_said(&key, now);
}

/* One frame on its way to many. */
struct replication {
	struct __sk_buff *skb;
	struct work *w;
	const struct cfg *c;
	struct bum *list;
	struct speaker from;
	struct ip16 group;
	bool only_listeners; /* to group */
	bool answer;
};

static __always_inline bool wants(const struct replication *r, __u32 port, __be32 host)
{
	struct speaker to = { .vni = r->from.vni, .port = port, .host = host };

	if (r->answer && host)
		return true; /* it has to learn as well */
	return !r->only_listeners || listens(&to, &r->group);
}

static __always_inline enum reason send_copy(const struct replication *r, __u32 ifindex)
{
	enum reason reason;

	if (trace)
		return REASON_COPIED;
	reason = bpf_clone_redirect(r->skb, ifindex, 0) ? REASON_COPY_FAILED : REASON_COPIED;
	count(reason, r->w->f.packets);
	return reason;
}

/* A copy into a port whose frames are captured. */
static __noinline int show_copy(const struct replication *r, __u32 port, enum reason reason)
{
	struct frame *f = &r->w->f;
	bool captured = f->captured;

	f->captured = false;
	take_frame(r->skb, f, port, DIRECTION_IN);
	if (f->captured)
		give_frame(f, reason);
	f->captured = captured;
	return 0;
}

static long copy_to_port(__u32 i, struct replication *r)
{
	struct port_cfg *pc;
	enum reason reason;
	__u32 port;

	if (i >= BUM_PORTS)
		return 1;
	port = r->list->port[i];
	if (port == r->from.port || !wants(r, port, 0))
		return 0;
	pc = port_by_id(port);
	if (!pc || pc->vni != r->from.vni)
		return 0;
	reason = admit_copy(r->w, pc, port);
	if (reason) {
		count(reason, r->w->f.packets);
	} else {
		r->skb->mark = GUARD_MARK;
		reason = send_copy(r, pc->ifindex);
	}
	count_port(port, DIRECTION_IN, &r->w->f, reason != REASON_COPIED);
	if (trace)
		trace_reason(TRACE_COPY, reason == REASON_COPIED ? 0 : reason, port);
	if (is_captured(port))
		show_copy(r, port, reason);
	return 0;
}

static long copy_to_host(__u32 i, struct replication *r)
{
	__be32 host;

	if (i >= BUM_HOSTS)
		return 1;
	host = r->list->host[i];
	if (!wants(r, 0, host))
		return 0;
	if (trace)
		return trace_place(TRACE_COPY, 0, 0, host, 0);
	if (address_to(r->skb, r->c, r->from.vni, host))
		return 0;
	send_copy(r, r->c->overlay);
	return 0;
}

/* To all ports here but the sender's, and to all hosts unless a host sent it. */
static __always_inline int replicate(struct __sk_buff *skb, struct work *w, const struct cfg *c, struct bum *list,
				     struct speaker from)
{
	struct replication r = { .skb = skb, .w = w, .c = c, .list = list, .from = from };

	if (list->flags & BUM_SNOOPING && is_ip(&w->f)) {
		enum lesson lesson = is_igmp(&w->f.ip) || is_mld(&w->f.ip) ? learn(skb, &w->f.ip, &from) : LESSON_NONE;

		if (lesson == LESSON_TOO_MANY)
			return drop(&w->f, REASON_BUM_RATE);
		/* Routers alone hear an answer: others of the group would keep theirs
		 * back, and be forgotten. */
		r.answer = lesson == LESSON_ANSWER;
		r.only_listeners = r.answer || is_asked_for(&w->f.ip);
		if (!r.answer)
			r.group = w->f.ip.dst;
	}
	bpf_loop(list->ports, copy_to_port, &r, 0);
	if (!from.host && c->overlay)
		bpf_loop(list->hosts, copy_to_host, &r, 0);
	return drop(&w->f, REASON_FLOODED); /* the copies have left */
}
