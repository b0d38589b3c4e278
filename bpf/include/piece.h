/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include "encap.h"
#include "fragment.h"
#include "tell.h"

/*
 * A datagram in fragments for a VIP. Its first fragment alone has the ports, and
 * routers may send the others to other LB nodes. So one node owns all of it, by a
 * hash that every node computes; the others hand their fragments over. The owner,
 * and the host of the backend, remember where the first one went.
 */

#define OWNER_MAC	  0x0b /* inner destination of what is handed over: a group's, so no port has it; then zeros */
#define PIECES_PER_SECOND 1000 /* of a VIP, each node */

static __always_inline void write_owner_mac(__u8 *mac)
{
	__builtin_memset(mac, 0, ETH_ALEN);
	mac[0] = OWNER_MAC;
}

static __always_inline bool is_owner_mac(const __u8 *mac)
{
	return mac[0] == OWNER_MAC && !(mac[1] | mac[2] | mac[3] | mac[4] | mac[5]);
}

static __always_inline struct vip_frag_key piece_key(const struct packet *pkt, __u32 id)
{
	return (struct vip_frag_key){
		.src = pkt->saddr,
		.dst = pkt->daddr,
		.id = id,
		/* RFC 8200, 4.5: IPv6's fragments need not name the same protocol. */
		.proto = pkt->family == 4 ? pkt->proto : IPPROTO_FRAGMENT,
	};
}

static __always_inline __u32 fold16(const struct ip16 *ip)
{
	return word_of(ip, 0) ^ word_of(ip, 1) ^ word_of(ip, 2) ^ word_of(ip, 3);
}

/*
 * Which of a VIP's nodes owns the datagram: its place among them. The highest hash
 * wins, so that a node that comes or goes moves no other's. Global, as track is.
 */
__noinline __u32 place_of_owner(const struct vip_frag_key *key)
{
	struct vip_nodes *nodes = key ? bpf_map_lookup_elem(&vip_nodes, &key->dst) : NULL;
	__u32 most = 0, owner = 0;

	if (!nodes)
		return 0;
	for (__u32 i = 0; i < VIP_NODES_MAX && i < nodes->count; i++) {
		__u32 hash =
			jhash_3words(fold16(&key->src), fold16(&key->dst), key->id, nodes->node[i].host ^ key->proto);

		if (i && hash <= most)
			continue;
		owner = i;
		most = hash;
	}
	return owner;
}

/* The node that owns the datagram; NULL: this one, or nobody else is known. */
static __always_inline struct vip_node *owner_node(const struct vip_frag_key *key)
{
	struct vip_nodes *nodes = bpf_map_lookup_elem(&vip_nodes, &key->dst);
	__u32 place = place_of_owner(key);
	struct vip_node *owner;

	if (!nodes || place >= VIP_NODES_MAX)
		return NULL;
	owner = &nodes->node[place];
	return owner->endpoint ? owner : NULL;
}

/* The place of a fragment's data, in units of 8 bytes in wire order, and its number. */
static __always_inline enum reason number_of(struct cursor c, const struct packet *pkt, __u32 *id, __u16 *offset)
{
	if (pkt->family == 4) {
		struct iphdr *ip;

		if (!take(&c, sizeof(struct ethhdr)))
			return REASON_MALFORMED;
		ip = take(&c, sizeof(*ip));
		if (!ip)
			return REASON_MALFORMED;
		*id = ip->id;
		*offset = ip->frag_off & bpf_htons(IP_OFFSET_MASK);
	} else {
		struct fraghdr *h; /* l4 is right behind it */

		if (!take(&c, (READ_ONCE(pkt->l4) - sizeof(*h)) & L4_MASK))
			return REASON_MALFORMED;
		h = take(&c, sizeof(*h));
		if (!h)
			return REASON_MALFORMED;
		*id = h->id;
		*offset = h->offset & bpf_htons(0xfff8);
	}
	return REASON_NONE;
}

/* What a fragment is, and of a first one the ports. Global, as track is. */
__noinline enum reason read_piece(struct xdp_md *ctx, struct packet *pkt, struct piece *piece)
{
	struct cursor c = xdp_cursor(ctx);
	__u16 offset = 0;
	__u32 id = 0;

	if (!pkt || !piece)
		return REASON_MALFORMED;
	if (is_bad_client(pkt))
		return REASON_BAD_SOURCE;
	if (pkt->proto != IPPROTO_TCP && pkt->proto != IPPROTO_UDP)
		return REASON_FRAGMENT;
	if (number_of(c, pkt, &id, &offset))
		return REASON_MALFORMED;
	piece->id = id;
	piece->kind = offset ? FRAGMENT_LATER : FRAGMENT_FIRST;
	pkt->sport = pkt->dport = 0;
	pkt->tcp_flags = 0;
	if (offset)
		return REASON_NONE;
	return to_l4(&c, pkt) ? parse_l4(&c, pkt) : REASON_MALFORMED;
}

/* Where the first one went. Global, as track is. */
__noinline enum reason recall_piece(const struct vip_frag_key *key, struct vip_frag *to)
{
	struct vip_frag *f = key ? bpf_map_lookup_elem(&vip_frag, key) : NULL;

	if (!f || !to || is_past(f->seen, FRAGMENTS_LIFETIME, bpf_ktime_get_ns()))
		return REASON_FRAGMENT_EARLY;
	*to = *f;
	return REASON_NONE;
}

/* A later fragment goes where the first one went. */
static __always_inline enum reason follow_piece(struct trip *t)
{
	struct vip_frag_key key = piece_key(&t->pkt, t->piece.id);
	struct vip_frag first = {};
	enum reason reason = recall_piece(&key, &first);
	struct svc *s;

	if (reason)
		return reason;
	t->svc_index = first.svc;
	t->hash = first.hash;
	t->backend = first.backend;
	t->other = first.other;
	t->hop = first.hop;
	s = bpf_map_lookup_elem(&svc, &t->svc_index);
	if (!s || !same_ip(&s->vip, &t->pkt.daddr))
		return REASON_STALE_SERVICE;
	t->svc = s;
	return REASON_NONE;
}

/* Remember where the first one goes. */
static __noinline int remember_piece(const struct trip *t)
{
	struct vip_frag_key key = piece_key(&t->pkt, t->piece.id);
	struct vip_frag f = {
		.seen = bpf_ktime_get_ns(),
		.svc = t->svc_index,
		.hash = t->hash,
		.backend = t->backend,
		.other = t->other,
		.hop = t->hop,
	};

	if (!trace)
		bpf_map_update_elem(&vip_frag, &key, &f, BPF_ANY);
	return 0;
}

/* May this node take one more of the VIP's? Global, as track is. */
__noinline bool may_take_piece(const struct ip16 *vip)
{
	struct vip_pace *p = vip ? pace_of_vip(vip) : NULL;

	return p ? keeps_pace(&p->fragments, PIECES_PER_SECOND) : trace;
}

/*
 * To the datagram's owner, as it is: REASON_TO_OWNER, or why not; REASON_NONE when
 * this node is the owner. It is handed over once: whoever gets it so is the owner,
 * whatever the tables say there. Global, as track is.
 */
__noinline enum reason hand_over(struct xdp_md *ctx, const struct cfg *c, const struct packet *pkt, __u32 id)
{
	struct vip_frag_key key;
	struct vip_node *owner;
	struct nexthop nexthop;
	struct outside outside;

	if (!c || !pkt)
		return REASON_NO_CONFIG;
	key = piece_key(pkt, id);
	owner = owner_node(&key);
	if (!owner)
		return REASON_NONE;
	nexthop = nexthop_of(owner->nexthop);
	if (!(nexthop.flags & NEXTHOP_VALID))
		return REASON_NO_NEXTHOP;
	if (pkt->ttl <= 1)
		return REASON_TTL;
	outside = (struct outside){ .endpoint = owner->endpoint, .hash = id * 0x9e3779b1, .hop = 1 };
	write_owner_mac(outside.mac);
	return encapsulate(ctx, c, pkt, &nexthop, &outside) ?: REASON_TO_OWNER;
}

/*
 * A fragment for a VIP, off the wire or handed over: REASON_NONE leaves it to this
 * node, its first fragment's ports read.
 */
static __always_inline enum reason take_piece(struct xdp_md *ctx, const struct cfg *c, struct trip *t, bool handed)
{
	enum reason reason = read_piece(ctx, &t->pkt, &t->piece);

	if (!reason && !may_take_piece(&t->pkt.daddr))
		reason = REASON_FRAGMENT_RATE;
	if (reason || handed)
		return reason;
	return hand_over(ctx, c, &t->pkt, t->piece.id);
}
