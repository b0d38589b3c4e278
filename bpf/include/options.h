/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include "encap.h"

/*
 * What a service may have beyond its slots (0008-service-options.md): a limit on
 * what one source prefix sends, connection IDs that name backends, a seed that
 * rotates, a sample of its packets. A service without any pays one test of its
 * flags.
 */

/* A limit by source prefix */

/* /24, or /56. Two families have no number in common that could be a client's. */
static __always_inline __u64 source_prefix(const struct packet *pkt)
{
	__u64 head;

	if (pkt->family == 4)
		return bpf_ntohl(ip16_v4(&pkt->saddr)) >> 8;
	head = (__u64)bpf_ntohl(word_of(&pkt->saddr, 0)) << 32 | bpf_ntohl(word_of(&pkt->saddr, 1));
	return head >> 8;
}

/*
 * Has the packet's prefix anything left? It may send svc->rate packets a second,
 * a second's worth at once. A prefix without a place takes that of who has been
 * quiet for longest, and starts with all it may send: forgetting never hurts.
 */
static __noinline bool may_come(const struct svc *s, const struct packet *pkt)
{
	__u64 now = bpf_ktime_get_ns(), prefix = source_prefix(pkt), from, cost;
	__u32 line = jhash_3words(prefix, prefix >> 32, s->id, s->seed) % ALLOWANCE_LINES;
	struct allowances *all = bpf_map_lookup_elem(&allowances, &line);
	struct allowance *a;
	__u32 at = 0;

	if (!all || !s->rate)
		return true;
	for (int i = 0; i < ALLOWANCE_PLACES; i++) {
		a = &all->place[i];
		if (a->prefix == prefix && a->service == s->id) {
			at = i;
			break;
		}
		if (a->due < all->place[at % ALLOWANCE_PLACES].due)
			at = i;
	}
	a = &all->place[at % ALLOWANCE_PLACES];
	cost = SECOND / s->rate;
	from = a->prefix == prefix && a->service == s->id && a->due > now ? a->due : now;
	if (from + cost - now > SECOND)
		return false;
	if (trace)
		return true;
	a->prefix = prefix;
	a->service = s->id;
	a->due = from + cost;
	return true;
}

/* Connection IDs of QUIC */

#define QUIC_LONG   0x80 /* of a packet's first byte */
#define QUIC_CONFIG 0xe0 /* of a connection ID's first byte; 0 is ours */

/* A packet of RFC 9000, 17.3, whose connection ID is a server's that was made as
 * draft-ietf-quic-load-balancers has it, not enciphered. */
struct quic_short {
	__u8 form;
	__u8 config;
	__u8 server[4];
};

/* The backend that the packet's connection ID names; 0: none. */
static __noinline __u32 named_backend(struct xdp_md *ctx, const struct trip *t)
{
	struct cursor c = xdp_cursor(ctx);
	struct quic_key key = { .service = t->svc->id };
	struct quic_short *q;
	__u32 *id;

	if (t->pkt.proto != IPPROTO_UDP || t->error)
		return 0;
	if (!take(&c, READ_ONCE(t->pkt.l4) & L4_MASK) || !take(&c, sizeof(struct udphdr)))
		return 0;
	q = take(&c, sizeof(*q));
	if (!q || q->form & QUIC_LONG || q->config & QUIC_CONFIG)
		return 0;
	__builtin_memcpy(&key.server, q->server, sizeof(key.server));
	id = bpf_map_lookup_elem(&quic, &key);
	return id && backend_of(*id) ? *id : 0;
}

/* A seed that rotates */

/*
 * Who had the flow under the seed before, if that is another than now. Its slot may
 * have moved since: flows from before are then with that one's predecessor, and no
 * new one has come there by this seed.
 */
static __noinline __u32 owner_before(const struct trip *t)
{
	__u32 cur = 0, prev = 0;

	if (slot_of(t->svc, flow_hash_by(t->svc, &t->pkt, t->svc->prev_seed), &cur, &prev))
		return 0;
	return prev ?: cur;
}

/* A sample */

/* Tell of one packet in svc->sample, while somebody looks. */
static __noinline int sample(const struct trip *t)
{
	const struct packet *pkt = &t->pkt;
	__u32 zero = 0;
	struct watch *w = bpf_map_lookup_elem(&watch, &zero);
	struct event *e;

	if (!w || !t->svc->sample || bpf_get_prandom_u32() % t->svc->sample)
		return 0;
	if (w->samples_service && w->samples_service != t->svc->id)
		return 0;
	if (bpf_ktime_get_ns() >= w->samples_until)
		return 0;
	e = begin_event(0, EVENTS_OF_PACKETS);
	if (!e)
		return 0;
	e->kind = EVENT_SAMPLED;
	e->audience = EVENT_FOR_SAMPLE;
	e->type = pkt->family == 6 ? bpf_htons(ETH_P_IPV6) : bpf_htons(ETH_P_IP);
	e->packets = 1;
	e->bytes = pkt->length;
	e->src = pkt->saddr;
	e->dst = pkt->daddr;
	e->sport = pkt->sport;
	e->dport = pkt->dport;
	e->proto = pkt->proto;
	e->tcp_flags = pkt->tcp_flags;
	e->service = t->svc->id;
	e->from = t->backend;
	bpf_ringbuf_submit(e, 0);
	return 0;
}

/* All of them, for a packet whose slot is known. */
static __noinline enum reason apply_options(struct xdp_md *ctx, struct trip *t)
{
	__u32 flags = t->svc->flags, id = 0;

	if (flags & SVC_PACED && !t->probe && !t->error && !may_come(t->svc, &t->pkt))
		return REASON_SOURCE_RATE;
	if (flags & SVC_QUIC)
		id = named_backend(ctx, t);
	if (id) {
		t->backend = id;
		t->other = 0;
	} else if (flags & SVC_ROTATING) {
		id = owner_before(t);
		if (id && id != t->backend)
			t->other = id;
	}
	if (flags & SVC_SAMPLED && !t->probe)
		sample(t);
	return REASON_NONE;
}

/* What this host's own record says who else may have the flow, at the host of
 * t->backend; 0: nobody. */
static __noinline __u32 optional_next(struct xdp_md *ctx, const struct trip *t)
{
	__u32 cur = 0, prev = 0;

	if (t->svc->flags & SVC_QUIC && named_backend(ctx, t) == t->backend)
		return 0;
	if (slot_of(t->svc, t->hash, &cur, &prev))
		return 0;
	if (cur != t->backend)
		return cur;
	if (t->svc->flags & SVC_ROTATING)
		prev = owner_before(t) ?: prev;
	return prev != t->backend ? prev : 0;
}
