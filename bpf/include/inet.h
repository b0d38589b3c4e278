/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include "extension.h"

/*
 * The headers of one IP packet in an skb, either family, read once into a
 * struct: addresses as ip16, ports, what TCP, ICMP and a fragment say. What
 * cannot be read has a reason; nothing is guessed. At tcx only: XDP has its own
 * struct packet, of what it needs.
 */

enum fragment {
	FRAGMENT_NONE = 0,
	FRAGMENT_FIRST = 1, /* has the L4 header */
	FRAGMENT_LATER = 2, /* has neither ports nor type */
};

struct inet {
	struct ip16 src;
	struct ip16 dst;
	__be16 sport; /* ICMP: see icmp_ports; 0 in protocols without ports */
	__be16 dport;
	__u16 match; /* by which a policy judges: port, ICMP type << 8 | code, 0 */
	__u8 proto;  /* behind IPv6's extension headers; AH counts as a protocol */
	__u8 family; /* 4 or 6 */
	__u8 ttl;
	__u8 tcp_flags;
	__u8 icmp_type;
	__u8 icmp_code;
	__u8 fragment; /* enum fragment */
	__u8 more;     /* fragments follow */
	__u8 scale;    /* that a SYN names; SCALE_NONE: none */
	__u16 window;  /* as in the header, not scaled */
	__u32 seq;
	__u32 ack;
	__u32 frag_id;
	__u16 frag_offset; /* in bytes */
	__u16 frag_length;
	__u16 l3;      /* offsets in the frame */
	__u16 l4;      /* in a later fragment: of its data */
	__u16 payload; /* offset of what TCP, UDP or ICMP carries */
	__u16 length;  /* of the IP packet */
	bool dont_fragment;
};

#define IP_DF	       0x4000
#define IP_MF	       0x2000
#define IP_OFFSET_MASK 0x1fff

/* Ethernet, IPv4 with all options, TCP. IPv6 and TCP are less. */
#define HEADERS_MAX (sizeof(struct ethhdr) + 60 + sizeof(struct tcphdr))

#define ICMP_UNREACHABLE   3
#define ICMP_FRAG_NEEDED   4 /* a code of it */
#define ICMP_SOURCE_QUENCH 4
#define ICMP_REDIRECT	   5
#define ICMP_TIME_EXCEEDED 11
#define ICMP_PARAMETER	   12
#define ICMP6_TOO_BIG	   2

/* May no packet that is routed have this source? Only the host's own services
 * use link-local ones. */
static __always_inline bool is_bad_source(const struct inet *p)
{
	if (p->family == 6)
		return is_link_local(&p->src) || is_multicast6(&p->src) || is_low6(&p->src);
	return is_special(ip16_v4(&p->src));
}

static __always_inline bool is_bad_destination(const struct inet *p)
{
	if (p->family == 6)
		return is_link_local(&p->dst) || is_multicast6(&p->dst) || is_low6(&p->dst);
	return is_special(ip16_v4(&p->dst));
}

/* L4 */

static __always_inline bool is_opening_tcp(const struct inet *p)
{
	return (p->tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST)) == TCP_SYN;
}

/* No header of any stack has these (RFC 9293, 3.10.7): a scanner's, or an
 * attempt to be read in two ways. */
static __always_inline bool is_odd_tcp(__u8 flags)
{
	flags &= TCP_FIN | TCP_SYN | TCP_RST | TCP_ACK;
	return !flags || flags == TCP_FIN || (flags & TCP_SYN && flags & (TCP_FIN | TCP_RST));
}

#define SCALE_NONE	 255
#define TCP_OPTIONS_MAX	 40
#define TCP_OPTION_END	 0
#define TCP_OPTION_NOP	 1
#define TCP_OPTION_SCALE 3

struct tcp_options {
	__u8 b[64];
	__u32 length;
	__u32 wanted; /* kind */
	__u32 pos;
	__u32 found; /* place of the wanted one, and 1; 0: it is not there */
};

/* One option more; 1 ends the walk. A callback, so that the verifier reads the walk once
 * and not once for each place where an option may begin. */
static long walk_option(__attribute__((unused)) __u32 i, struct tcp_options *o)
{
	__u32 pos = o->pos;
	__u8 kind = o->b[pos & 63], size = o->b[(pos + 1) & 63];

	if (pos + 2 >= o->length || kind == TCP_OPTION_END)
		return 1;
	if (kind == o->wanted) {
		o->found = pos + 1;
		return 1;
	}
	if (kind != TCP_OPTION_NOP && size < 2)
		return 1;
	o->pos = pos + (kind == TCP_OPTION_NOP ? 1 : size);
	return 0;
}

/* The window scale among a SYN's options (RFC 7323, 2.2): at most 14. */
static __noinline __u8 window_scale(struct __sk_buff *skb, __u32 at, __u32 length)
{
	struct tcp_options o = { .length = length, .wanted = TCP_OPTION_SCALE };
	__u8 scale;

	if (!length || length > TCP_OPTIONS_MAX || bpf_skb_load_bytes(skb, at, o.b, length))
		return SCALE_NONE;
	bpf_loop(TCP_OPTIONS_MAX, walk_option, &o, 0);
	if (!o.found)
		return SCALE_NONE;
	scale = o.b[(o.found + 1) & 63];
	return scale < 14 ? scale : 14;
}

static __always_inline enum reason read_tcp(struct __sk_buff *skb, struct cursor *c, struct inet *p, __u32 room)
{
	struct tcphdr *tcp = take(c, sizeof(*tcp));
	__u32 length;

	if (!tcp)
		return p->fragment ? REASON_FRAGMENT_SHORT : REASON_MALFORMED;
	length = tcp->doff * 4;
	if (length < sizeof(*tcp))
		return REASON_MALFORMED;
	if (length > room)
		return p->fragment ? REASON_FRAGMENT_SHORT : REASON_MALFORMED;
	p->sport = tcp->source;
	p->dport = tcp->dest;
	p->match = bpf_ntohs(tcp->dest);
	p->tcp_flags = ((__u8 *)tcp)[13];
	p->window = bpf_ntohs(tcp->window);
	p->seq = bpf_ntohl(tcp->seq);
	p->ack = bpf_ntohl(tcp->ack_seq);
	p->payload = p->l4 + length;
	if (is_odd_tcp(p->tcp_flags))
		return REASON_TCP_FLAGS;
	if (p->tcp_flags & TCP_SYN)
		p->scale = window_scale(skb, p->l4 + sizeof(*tcp), length - sizeof(*tcp));
	return REASON_NONE;
}

static __always_inline enum reason read_udp(struct cursor *c, struct inet *p, __u32 room)
{
	struct udphdr *udp = take(c, sizeof(*udp));
	__u32 length;

	if (!udp || room < sizeof(*udp))
		return p->fragment ? REASON_FRAGMENT_SHORT : REASON_MALFORMED;
	length = bpf_ntohs(udp->len);
	if (length < sizeof(*udp) || (!p->fragment && length > room))
		return REASON_MALFORMED;
	p->sport = udp->source;
	p->dport = udp->dest;
	p->match = bpf_ntohs(udp->dest);
	p->payload = p->l4 + sizeof(*udp);
	return REASON_NONE;
}

/*
 * An echo's id is the port of who asks, and the other side has none: so nobody
 * asks in a flow in which he may only answer. Any other type is a flow of its own.
 */
static __always_inline void icmp_ports(struct inet *p, __be16 id)
{
	__u8 asks = p->proto == IPPROTO_ICMP ? ICMP_ECHO : ICMP6_ECHO;
	__u8 answers = p->proto == IPPROTO_ICMP ? ICMP_ECHOREPLY : ICMP6_ECHOREPLY;

	if (p->icmp_type == asks)
		p->sport = id;
	else if (p->icmp_type == answers)
		p->dport = id;
	else
		p->sport = p->dport = bpf_htons(p->match);
}

static __always_inline enum reason read_icmp(struct cursor *c, struct inet *p, __u32 room)
{
	struct icmphdr *icmp = take(c, sizeof(*icmp));

	if (!icmp || room < sizeof(*icmp))
		return p->fragment ? REASON_FRAGMENT_SHORT : REASON_MALFORMED;
	p->icmp_type = icmp->type;
	p->icmp_code = icmp->code;
	p->match = (__u16)icmp->type << 8 | icmp->code;
	p->payload = p->l4 + sizeof(*icmp);
	icmp_ports(p, icmp->id);
	return REASON_NONE;
}

#define ND_ROUTER_SOLICITATION	   133
#define ND_ROUTER_ADVERTISEMENT	   134
#define ND_NEIGHBOUR_SOLICITATION  135
#define ND_NEIGHBOUR_ADVERTISEMENT 136
#define ND_REDIRECT		   137

/* Messages between neighbours; ICMPv6's others are routed. */
static __always_inline bool is_nd(const struct inet *p)
{
	return p->proto == IPPROTO_ICMPV6 && p->icmp_type >= ND_ROUTER_SOLICITATION && p->icmp_type <= ND_REDIRECT;
}

/* What follows at p->l4. ICMP of the other family is nobody's. */
static __always_inline enum reason read_l4(struct __sk_buff *skb, struct inet *p)
{
	__u32 room = p->l3 + p->length - p->l4;
	struct cursor c = skb_cursor(skb);

	if (!take(&c, p->l4 & L4_MASK))
		return REASON_MALFORMED;
	switch (p->proto) {
	case IPPROTO_TCP:
		return read_tcp(skb, &c, p, room);
	case IPPROTO_UDP:
		return read_udp(&c, p, room);
	case IPPROTO_ICMP:
		return p->family == 4 ? read_icmp(&c, p, room) : REASON_PROTOCOL;
	case IPPROTO_ICMPV6:
		return p->family == 6 ? read_icmp(&c, p, room) : REASON_PROTOCOL;
	}
	return REASON_NONE;
}

/* Fragments */

/* The packet's data begin at start in the frame and at offset in the datagram.
 * RFC 6946: offset 0 and no more is no fragment. */
static __always_inline enum reason read_fragment(struct inet *p, __u32 start, __u32 offset, bool more)
{
	__u32 length = p->l3 + p->length - start;

	if (!offset && !more)
		return REASON_NONE;
	if (!length || (more && length % 8) || offset + length > 65535)
		return REASON_MALFORMED;
	p->fragment = offset ? FRAGMENT_LATER : FRAGMENT_FIRST;
	p->frag_offset = offset;
	p->frag_length = length;
	p->more = more;
	/* RFC 3128: such a one can only be meant to change a TCP header. */
	if (offset && offset < sizeof(struct tcphdr) && p->proto == IPPROTO_TCP)
		return REASON_FRAGMENT_SHORT;
	return REASON_NONE;
}

/* Headers between IPv6's and L4's */

/* One extension header at p->l4, of protocol p->proto; both move on. */
static __always_inline enum reason step(struct __sk_buff *skb, struct inet *p, bool first)
{
	struct fraghdr h; /* as long as the shortest of them */
	__u32 length = sizeof(h);
	__u8 proto = p->proto;

	if (bpf_skb_load_bytes(skb, p->l4, &h, sizeof(h)))
		return p->fragment ? REASON_FRAGMENT_SHORT : REASON_MALFORMED;
	if (is_odd_extension(&h, proto, first))
		return REASON_EXTENSIONS;
	if (proto != IPPROTO_FRAGMENT)
		length += h.reserved * 8;
	p->proto = h.next;
	p->l4 += length;
	if (p->l4 - p->l3 > p->length)
		return p->fragment ? REASON_FRAGMENT_SHORT : REASON_MALFORMED;
	if (p->l4 - p->l3 > sizeof(struct ipv6hdr) + EXTENSIONS_BYTES_MAX)
		return REASON_EXTENSIONS;
	if (proto != IPPROTO_FRAGMENT)
		return REASON_NONE;
	if (p->fragment)
		return REASON_EXTENSIONS;
	p->frag_id = h.id;
	return read_fragment(p, p->l4, bpf_ntohs(h.offset) & ~7, bpf_ntohs(h.offset) & 1);
}

/* To the L4 header of an IPv6 packet; of a later fragment, to its data. */
static __noinline enum reason skip_extensions(struct __sk_buff *skb, struct inet *p)
{
	enum reason reason;

	if (!p)
		return REASON_MALFORMED;
	for (int i = 0; i < EXTENSIONS_MAX; i++) {
		reason = step(skb, p, i == 0);
		if (reason)
			return reason;
		if (p->fragment == FRAGMENT_LATER || !is_extension(p->proto))
			return linear(skb, HEADERS_MAX + EXTENSIONS_BYTES_MAX) ? REASON_NONE : REASON_MALFORMED;
	}
	return REASON_EXTENSIONS;
}

/* L3 */

static __always_inline enum reason read_ipv4(struct __sk_buff *skb, struct cursor *c, struct inet *p)
{
	struct iphdr *ip = take(c, sizeof(*ip));
	__u32 options;
	__u16 frag;

	if (!ip || ip->version != 4)
		return REASON_MALFORMED;
	options = options_of(ip);
	p->family = 4;
	p->src = ip16_of(ip->saddr);
	p->dst = ip16_of(ip->daddr);
	p->proto = ip->protocol;
	p->ttl = ip->ttl;
	p->length = bpf_ntohs(ip->tot_len);
	p->l4 = p->l3 + sizeof(*ip) + options;
	if (options > IP_OPTIONS_MAX || p->length < sizeof(*ip) + options || p->l3 + p->length > skb->len)
		return REASON_MALFORMED;
	frag = bpf_ntohs(ip->frag_off);
	p->dont_fragment = frag & IP_DF;
	if (!(frag & IP_FRAGMENTED))
		return REASON_NONE;
	p->frag_id = ip->id;
	return read_fragment(p, p->l4, (frag & IP_OFFSET_MASK) * 8, frag & IP_MF);
}

/* An IPv6 address that an IPv4 packet could have is never right in a header. */
static __always_inline enum reason read_ipv6(struct __sk_buff *skb, struct cursor *c, struct inet *p)
{
	struct ipv6hdr *ip = take(c, sizeof(*ip));

	if (!ip || ip->version != 6)
		return REASON_MALFORMED;
	p->family = 6;
	__builtin_memcpy(&p->src, &ip->saddr, sizeof(p->src));
	__builtin_memcpy(&p->dst, &ip->daddr, sizeof(p->dst));
	p->proto = ip->nexthdr;
	p->ttl = ip->hop_limit;
	p->length = sizeof(*ip) + bpf_ntohs(ip->payload_len);
	p->l4 = p->l3 + sizeof(*ip);
	p->dont_fragment = true;
	if (p->length < sizeof(*ip) || p->l3 + p->length > skb->len)
		return REASON_MALFORMED;
	if (is_v4(&p->src))
		return REASON_BAD_SOURCE;
	if (is_v4(&p->dst))
		return REASON_BAD_DESTINATION;
	return is_extension(p->proto) ? skip_extensions(skb, p) : REASON_NONE;
}

/*
 * Read the packet behind the Ethernet header; the cursor stands there. Addresses
 * are valid unless the reason is MALFORMED; protocol and ports only without a
 * reason. All of *p is zero before.
 */
static __always_inline enum reason read_inet(struct __sk_buff *skb, struct cursor *c, __be16 type, struct inet *p)
{
	enum reason reason;

	p->l3 = sizeof(struct ethhdr);
	reason = type == bpf_htons(ETH_P_IP) ? read_ipv4(skb, c, p) : read_ipv6(skb, c, p);
	p->payload = p->l4;
	if (reason || p->fragment == FRAGMENT_LATER)
		return reason;
	return read_l4(skb, p);
}
