/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include "ipv6.h"

/*
 * Which backend gets this packet: VIP, port and protocol name a service, the
 * flow hash one of its slots, the slot its owner and the one before it. No
 * state per flow.
 */

/* The hash of Linux's jhash_3words (Bob Jenkins' lookup3). */

#define ROL(x, k) ((x) << (k) | (x) >> (32 - (k)))

static __always_inline __u32 jhash_final(__u32 a, __u32 b, __u32 c)
{
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

static __always_inline __u32 jhash_3words(__u32 a, __u32 b, __u32 c, __u32 initval)
{
	initval += 0xdeadbeef + (3 << 2);
	return jhash_final(a + initval, b + initval, c + initval);
}

/* And of its jhash2 over both addresses of IPv6 and a last word: 9 of them, so
 * that two rounds of mixing come before the end. */
static __always_inline __u32 jhash_9words(const struct ip16 *src, const struct ip16 *dst, __u32 last, __u32 initval)
{
	__u32 word[8] = {
		word_of(src, 0), word_of(src, 1), word_of(src, 2), word_of(src, 3),
		word_of(dst, 0), word_of(dst, 1), word_of(dst, 2), word_of(dst, 3),
	};
	__u32 a, b, c;

	a = b = c = initval + 0xdeadbeef + (9 << 2);
#pragma unroll
	for (int i = 0; i < 6; i += 3) {
		a += word[i];
		b += word[i + 1];
		c += word[i + 2];
		a -= c;
		a ^= ROL(c, 4);
		c += b;
		b -= a;
		b ^= ROL(a, 6);
		a += c;
		c -= b;
		c ^= ROL(b, 8);
		b += a;
		a -= c;
		a ^= ROL(c, 16);
		c += b;
		b -= a;
		b ^= ROL(a, 19);
		a += c;
		c -= b;
		c ^= ROL(b, 4);
		b += a;
	}
	return jhash_final(a + word[6], b + word[7], c + last);
}

/* Words are the wire's bytes as they lie in memory; source-hash leaves the
 * ports out. */
static __always_inline __u32 flow_hash_by(const struct svc *s, const struct packet *pkt, __u32 seed)
{
	__u32 ports = (__u32)pkt->dport << 16 | pkt->sport;

	seed ^= pkt->proto;
	if (s->flags & SVC_SOURCE_HASH)
		ports = 0;
	if (pkt->family == 6)
		return jhash_9words(&pkt->saddr, &pkt->daddr, ports, seed);
	return jhash_3words(ip16_v4(&pkt->saddr), ip16_v4(&pkt->daddr), ports, seed);
}

static __always_inline __u32 flow_hash(const struct svc *s, const struct packet *pkt)
{
	return flow_hash_by(s, pkt, s->seed);
}

/* Odd numbers without a pattern: that of IPv4 is 2^32 by the golden ratio. */
static __always_inline __u32 vip_hash4(__be32 ip)
{
	return ip * 0x9e3779b1;
}

static __always_inline __u32 vip_hash6(const __u32 *word)
{
	return word[0] * 0x85ebca6b + word[1] * 0xc2b2ae35 + word[2] * 0x27d4eb2f + word[3] * 0x9e3779b1;
}

/* Is there any VIP whose address has this hash? One load, before any hash map. */
static __always_inline bool vip_bit(__u32 hash)
{
	__u32 h = hash >> (32 - 17);
	__u32 word = h >> 6;
	__u64 *bits = bpf_map_lookup_elem(&vip_bits, &word);

	return bits && (*bits >> (h & 63) & 1);
}

/* May the IPv6 packet under the cursor be for a VIP? Before anything of it is read: a
 * packet for nobody we serve costs this alone. */
static __always_inline bool may_be_vip6(struct cursor c)
{
	struct ipv6hdr *ip = take(&c, sizeof(*ip));

	return !ip || vip_bit(vip_hash6(ip->daddr.in6_u.u6_addr32));
}

/* The index of the record of what is served at the packet's destination. */
static __always_inline __u32 *served_at(const struct packet *pkt)
{
	if (pkt->family == 6) {
		struct vip6_key key = { .ip = pkt->daddr, .port = pkt->dport, .proto = pkt->proto };

		return bpf_map_lookup_elem(&vip6, &key);
	} else {
		struct vip4_key key = { .ip = ip16_v4(&pkt->daddr), .port = pkt->dport, .proto = pkt->proto };

		return bpf_map_lookup_elem(&vip4, &key);
	}
}

/* Is the destination a VIP, whatever it serves? */
static __always_inline bool is_vip(const struct packet *pkt)
{
	__be32 v4 = ip16_v4(&pkt->daddr);

	if (pkt->family == 6)
		return bpf_map_lookup_elem(&vipaddr6, &pkt->daddr);
	return bpf_map_lookup_elem(&vipaddr4, &v4);
}

/*
 * The service record for a packet to a VIP. Hash elements can be reused under
 * a reader, so the record's own tuple decides.
 */
static __always_inline enum reason service_of(const struct packet *pkt, struct svc **found, __u32 *index)
{
	__u32 *at = served_at(pkt);
	struct svc *s;

	if (!at)
		return REASON_NO_SERVICE;
	*index = READ_ONCE(*at);
	s = bpf_map_lookup_elem(&svc, index);
	if (!s || !same_ip(&s->vip, &pkt->daddr) || s->port != pkt->dport || s->proto != pkt->proto)
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

static __always_inline struct stat *stat_of_backend(__u32 id)
{
	__u32 at = id / STATS_PER_PAGE;
	struct stat_page *page = bpf_map_lookup_elem(&backend_stat, &at);

	return page ? &page->of[id % STATS_PER_PAGE] : NULL;
}

static __always_inline void count_stat(struct stat *s, const struct packet *pkt)
{
	if (!s || trace)
		return;
	s->packets++;
	s->bytes += pkt->length;
	s->opened += is_syn(pkt);
}
