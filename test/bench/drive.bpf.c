// SPDX-License-Identifier: Apache-2.0
//go:build ignore

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

/*
 * Drives a program under test: restores the frame's headers, which the program
 * before has changed, gives it the tuple of another flow, and tail-calls. The
 * floor is the same with an empty program at the end.
 */

#define HEAD_MAX 128

/*
 * The frame and how its flows differ: flow n has address + n % addresses in the
 * 4 bytes at address_at, and port + n / addresses % ports at port_at. Both
 * are in wire order.
 */
struct shape {
	__u32 whole;  /* bytes of a frame */
	__u32 length; /* of head */
	__u32 address_at;
	__u32 address;
	__u32 addresses;
	__u32 port_at;
	__u32 port;
	__u32 ports;
	__u32 in_turn; /* each flow once, from next on; else at random */
	__u32 note[4]; /* what XDP would have noted: skb->cb */
	__u8 head[HEAD_MAX] __attribute__((aligned(8)));
};

/* Written by the benchmark before a run. One record. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct shape);
} shapes SEC(".maps");

/* Written by the driver: how many frames it has made. One record. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} made SEC(".maps");

/* Written by the benchmark: the program under test. */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} under_test_tc SEC(".maps");

/* Written by the benchmark: the same in XDP. */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} under_test_xdp SEC(".maps");

/* How often a tail call fell through: 0 in a run that counts. One record. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} missed SEC(".maps");

static const __u32 only = 0;

/* The tuple of the next frame. */
static __always_inline void next_flow(const struct shape *s, __u32 *address, __u16 *port)
{
	__u64 *n = bpf_map_lookup_elem(&made, &only);
	__u32 flow;

	if (!n)
		return;
	flow = s->in_turn ? (__u32)*n : bpf_get_prandom_u32();
	(*n)++;
	*address = __builtin_bswap32(s->address + flow % (s->addresses ?: 1));
	*port = __builtin_bswap16(s->port + flow / (s->addresses ?: 1) % (s->ports ?: 1));
}

static __always_inline void miss(void)
{
	__u64 *n = bpf_map_lookup_elem(&missed, &only);

	if (n)
		(*n)++;
}

SEC("tcx/ingress")
int drive_tc(struct __sk_buff *skb)
{
	struct shape *s = bpf_map_lookup_elem(&shapes, &only);
	__u32 address = 0, length;
	__u16 port = 0;

	if (!s)
		return TC_ACT_SHOT;
	length = s->length;
	if (!length || length > HEAD_MAX)
		return TC_ACT_SHOT;
	next_flow(s, &address, &port);
	bpf_skb_store_bytes(skb, 0, s->head, length, 0);
	bpf_skb_store_bytes(skb, s->address_at, &address, sizeof(address), 0);
	bpf_skb_store_bytes(skb, s->port_at, &port, sizeof(port), 0);
	skb->mark = 0;
	skb->cb[0] = s->note[0];
	skb->cb[1] = s->note[1];
	skb->cb[2] = s->note[2];
	skb->cb[3] = s->note[3];
	bpf_tail_call(skb, &under_test_tc, 0);
	miss();
	return TC_ACT_SHOT;
}

/* What any driven program costs at least. */
SEC("tcx/ingress")
int floor_tc(struct __sk_buff *skb)
{
	(void)skb;
	return TC_ACT_OK;
}

/* Undo what the program before has put in front of the frame or taken off. */
static __always_inline bool restore_room(struct xdp_md *xdp, __u32 whole)
{
	void *data = (void *)(long)xdp->data;
	long meta = data - (void *)(long)xdp->data_meta;
	long more = (void *)(long)xdp->data_end - data - whole;

	if (meta && bpf_xdp_adjust_meta(xdp, meta))
		return false;
	return !more || !bpf_xdp_adjust_head(xdp, more);
}

/* size bytes of the frame from at on, or NULL. */
static __always_inline void *bytes_at(struct xdp_md *xdp, __u32 at, __u32 size)
{
	void *p = (void *)(long)xdp->data + (at & (HEAD_MAX - 1));

	return p + size <= (void *)(long)xdp->data_end ? p : NULL;
}

/* As next_flow, without a division or a call for flows at random: what is timed
 * costs little more than this. */
static __always_inline void next_flow_fast(const struct shape *s, __u32 *address, __u16 *port)
{
	__u64 *n = bpf_map_lookup_elem(&made, &only), mixed;

	if (!n)
		return;
	if (s->in_turn)
		return next_flow(s, address, port);
	(*n)++;
	mixed = *n * 0x9e3779b97f4a7c15ULL;
	mixed ^= mixed >> 29;
	mixed *= 0xbf58476d1ce4e5b9ULL;
	*address = __builtin_bswap32(s->address + (((mixed >> 32) * s->addresses) >> 32));
	*port = __builtin_bswap16(s->port + (((mixed & 0xffffffff) * s->ports) >> 32));
}

#define HEAD_FAST 64 /* as much of a frame as drive_xdp restores at a time */

SEC("xdp")
int drive_xdp(struct xdp_md *xdp)
{
	struct shape *s = bpf_map_lookup_elem(&shapes, &only);
	__u32 address = 0, *address_at;
	__u16 port = 0, *port_at;
	__u64 *head;

	if (!s || !restore_room(xdp, s->whole))
		return XDP_ABORTED;
	head = bytes_at(xdp, 0, HEAD_FAST);
	if (!head)
		return XDP_ABORTED;
	for (int i = 0; i < HEAD_FAST / 8; i++)
		head[i] = ((__u64 *)s->head)[i];
	if (s->length == HEAD_MAX) {
		head = bytes_at(xdp, HEAD_FAST, HEAD_FAST);
		if (!head)
			return XDP_ABORTED;
		for (int i = 0; i < HEAD_FAST / 8; i++)
			head[i] = ((__u64 *)s->head)[HEAD_FAST / 8 + i];
	}
	next_flow_fast(s, &address, &port);
	address_at = bytes_at(xdp, s->address_at, sizeof(address));
	port_at = bytes_at(xdp, s->port_at, sizeof(port));
	if (!address_at || !port_at)
		return XDP_ABORTED;
	*address_at = address;
	*port_at = port;
	bpf_tail_call(xdp, &under_test_xdp, 0);
	miss();
	return XDP_ABORTED;
}

/* What any driven XDP program costs at least. */
SEC("xdp")
int floor_xdp(struct xdp_md *xdp)
{
	(void)xdp;
	return XDP_TX;
}

/* A sum of 16-bit words as a checksum. */
static __always_inline __u16 folded(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	return ~((sum & 0xffff) + (sum >> 16));
}

/*
 * Sends frames of the shape on through the device of note[0], for a run with
 * live frames. Those are recycled as the receiver has left them, so every byte
 * of the first HEAD_FAST, all headers, is written each time. Checksums are made up: IPv4's from note[1],
 * the sum of the header's words without the varied address; that of L4, which
 * lies at note[3] unless that is 0, from note[2], the sum of the words that it
 * covers without what is varied.
 */
SEC("xdp")
int spray(struct xdp_md *xdp)
{
	struct shape *s = bpf_map_lookup_elem(&shapes, &only);
	__u32 address = 0, varied, *address_at;
	__u16 port = 0, *port_at, *check;
	__u64 *head;

	head = bytes_at(xdp, 0, HEAD_FAST);
	if (!s || !head)
		return XDP_ABORTED;
	for (int i = 0; i < HEAD_FAST / 8; i++)
		head[i] = ((__u64 *)s->head)[i];
	next_flow_fast(s, &address, &port);
	address_at = bytes_at(xdp, s->address_at, sizeof(address));
	port_at = bytes_at(xdp, s->port_at, sizeof(port));
	check = bytes_at(xdp, 24, sizeof(*check));
	if (!address_at || !port_at || !check)
		return XDP_ABORTED;
	*address_at = address;
	*port_at = port;
	varied = (address & 0xffff) + (address >> 16);
	*check = folded(s->note[1] + varied);
	if (s->note[3]) {
		check = bytes_at(xdp, s->note[3], sizeof(*check));
		if (!check)
			return XDP_ABORTED;
		*check = folded(s->note[2] + varied + port);
	}
	return bpf_redirect(s->note[0], 0);
}

/* Lets everything into the stack: a veth hands over what was redirected to it
 * only if its other end has a program. */
SEC("xdp")
int let_in(struct xdp_md *xdp)
{
	(void)xdp;
	return XDP_PASS;
}

/* Written by sink: what has arrived. One record. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} sunk SEC(".maps");

/* The end of a spray, at no cost worth mentioning. */
SEC("xdp")
int sink(struct xdp_md *xdp)
{
	__u64 *n = bpf_map_lookup_elem(&sunk, &only);

	(void)xdp;
	if (n)
		(*n)++;
	return XDP_DROP;
}

/* Written by the benchmark: a table of the type, key and population that a
 * program under test looks up, and nothing beside it. The inner map is it. */
struct bare {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__uint(key_size, 40);
	__uint(value_size, 112); /* Bare refuses another one than the table's */
};

/* Written by the benchmark: port → its table, as the programs find theirs. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__array(values, struct bare);
} bares SEC(".maps");

/* Written by the driver: keys found by bare_tc. One record. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} found SEC(".maps");

/* One lookup of a key whose first bytes are the frame's tuple. */
SEC("tcx/ingress")
int bare_tc(struct __sk_buff *skb)
{
	struct shape *s = bpf_map_lookup_elem(&shapes, &only);
	__u64 *hits = bpf_map_lookup_elem(&found, &only);
	__u32 port = s ? s->note[0] : 0;
	__u8 key[40] = {};
	void *table;

	if (!s || !hits)
		return TC_ACT_SHOT;
	bpf_skb_load_bytes(skb, s->address_at, key, 4);
	bpf_skb_load_bytes(skb, s->port_at, key + 4, 2);
	table = bpf_map_lookup_elem(&bares, &port);
	if (!table || !bpf_map_lookup_elem(table, key))
		return TC_ACT_SHOT;
	(*hits)++;
	return TC_ACT_OK;
}

/* Written by the benchmark: 64-bit words of which each names one of lines. As
 * many as the programs under test have slots. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1 << 22);
	__type(key, __u32);
	__type(value, __u64);
} words SEC(".maps");

struct line {
	__u64 word[4];
};

/* Written by nobody: records as large as, and as many as, backends. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1 << 17);
	__type(key, __u32);
	__type(value, struct line);
} lines SEC(".maps");

struct page {
	struct line of[64];
};

/* Written by lines_xdp: as their counters are. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1 << 11);
	__type(key, __u32);
	__type(value, struct page);
} tallies SEC(".maps");

/* The memory that choosing among so many backends touches, and nothing beside
 * it: a word at random, the record that it names, and a counter of that. */
SEC("xdp")
int lines_xdp(struct xdp_md *xdp)
{
	__u64 *n = bpf_map_lookup_elem(&made, &only), *word, mixed;
	struct page *page;
	struct line *line;
	__u32 at, named;

	(void)xdp;
	if (!n)
		return XDP_ABORTED;
	mixed = *n * 0x9e3779b97f4a7c15ULL;
	mixed ^= mixed >> 29;
	mixed *= 0xbf58476d1ce4e5b9ULL;
	at = mixed >> 42;
	word = bpf_map_lookup_elem(&words, &at);
	if (!word)
		return XDP_ABORTED;
	named = *word;
	line = bpf_map_lookup_elem(&lines, &named);
	at = named / 64;
	page = bpf_map_lookup_elem(&tallies, &at);
	if (!line || !page || line->word[0])
		return XDP_ABORTED;
	page->of[named % 64].word[0]++;
	return XDP_TX;
}

char _license[] SEC("license") = "Apache-2.0";
