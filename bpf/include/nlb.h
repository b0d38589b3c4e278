/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include "packet.h"

/*
 * Which backend gets this packet: VIP, port and protocol name a service, the
 * flow hash one of its slots, the slot its owner and the one before it. No
 * state per flow.
 */

/* The hash of Linux's jhash_3words (Bob Jenkins' lookup3). */

#define ROL(x, k) ((x) << (k) | (x) >> (32 - (k)))

static __always_inline __u32 jhash_3words(__u32 a, __u32 b, __u32 c, __u32 initval)
{
	initval += 0xdeadbeef + (3 << 2);
	a += initval;
	b += initval;
	c += initval;

	c ^= b;
	c -= ROL(b, 14);
	a ^= c;
	a -= ROL(c, 11);
	b ^= a;
	b -= ROL(a, 25);
	c ^= b;
	c -= ROL(b, 16);
	a ^= c;
	a -= ROL(c, 4);
	b ^= a;
	b -= ROL(a, 14);
	c ^= b;
	c -= ROL(b, 24);
	return c;
}

/* Words are the wire's bytes as they lie in memory; source-hash leaves the
 * ports out. */
static __always_inline __u32 flow_hash(const struct svc *s, const struct packet *pkt)
{
	__u32 ports = (__u32)pkt->dport << 16 | pkt->sport;

	if (s->flags & SVC_SOURCE_HASH)
		ports = 0;
	return jhash_3words(pkt->saddr, pkt->daddr, ports, s->seed ^ pkt->proto);
}

/* Is there any VIP with this address' hash? One load, before any hash map. */
static __always_inline bool vip_bit(__be32 ip)
{
	__u32 h = (ip * 0x9e3779b1) >> (32 - 17);
	__u32 word = h >> 6;
	__u64 *bits = bpf_map_lookup_elem(&vip_bits, &word);

	return bits && (*bits >> (h & 63) & 1);
}

/*
 * The service record for a packet to a VIP. Hash elements can be reused under
 * a reader, so the record's own tuple decides.
 */
static __always_inline enum reason service_of(const struct packet *pkt, struct svc **found, __u32 *index)
{
	struct vip4_key key = { .ip = pkt->daddr, .port = pkt->dport, .proto = pkt->proto };
	__u32 *at = bpf_map_lookup_elem(&vip4, &key);
	struct svc *s;

	if (!at)
		return REASON_NO_SERVICE;
	*index = READ_ONCE(*at);
	s = bpf_map_lookup_elem(&svc, index);
	if (!s || ip16_v4(&s->vip) != pkt->daddr || s->port != pkt->dport || s->proto != pkt->proto)
		return REASON_STALE_SERVICE;
	*found = s;
	return REASON_NONE;
}

/* Both owners of the slot in one load: a reader never pairs a new owner with
 * an old predecessor. */
static __always_inline enum reason slot_of(const struct svc *s, __u32 hash, __u32 *cur, __u32 *prev)
{
	__u32 index = s->slot_base + (hash & s->slot_mask);
	__u64 *slot = bpf_map_lookup_elem(&slots, &index);
	__u64 owners;

	if (!slot)
		return REASON_NO_SLOT;
	owners = READ_ONCE(*slot);
	*cur = (__u32)owners;
	*prev = owners >> 32;
	return REASON_NONE;
}

static __always_inline struct backend *backend_of(__u32 id)
{
	struct backend *b = bpf_map_lookup_elem(&backends, &id);

	return b && id && b->flags & BACKEND_VALID ? b : NULL;
}

static __always_inline void count_stat(struct stat *s, const struct packet *pkt)
{
	if (!s || trace)
		return;
	s->packets++;
	s->bytes += pkt->length;
	s->opened += is_syn(pkt);
}
