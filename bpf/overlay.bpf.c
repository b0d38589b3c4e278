// SPDX-License-Identifier: Apache-2.0
//go:build ignore

#include "export.h"
#include "multicast.h"
#include "toobig.h" /* for its map alone: all objects declare the same ones */

/*
 * The vxlan device: frames of private networks from other hosts. The kernel has
 * taken the tunnel's headers off and keeps what they said beside the frame.
 */

/* A test run has no tunnel: there network and sender lie in skb->cb. */
const volatile bool tunnel_in_cb = false;

/* What the tunnel's headers said. */
struct arrival {
	__u32 vni;
	__be32 sender;
};

static __always_inline bool tunnel_read(struct __sk_buff *skb, struct arrival *a)
{
	struct bpf_tunnel_key key = {};

	if (tunnel_in_cb) {
		a->vni = skb->cb[0];
		a->sender = skb->cb[1];
		return true;
	}
	if (bpf_skb_get_tunnel_key(skb, &key, sizeof(key), 0))
		return false;
	a->vni = key.tunnel_id;
	a->sender = bpf_htonl(key.remote_ipv4);
	return true;
}

/* Is the sender a host, and the frame from a MAC that is at that host? A host
 * that is taken over cannot speak for the ports of others. */
static __always_inline enum reason check_arrival(const struct work *w, const struct cfg *c, const struct arrival *a)
{
	struct station *from;

	if (a->vni == c->lb_vni)
		return REASON_OVERLAY_LB;
	if (!bpf_map_lookup_elem(&vteps, &a->sender))
		return REASON_UNKNOWN_ENDPOINT;
	from = station_of(a->vni, w->f.src);
	if (!from || from->port || from->endpoint != a->sender)
		return REASON_WRONG_HOST;
	if (w->f.reason)
		return w->f.reason;
	if (w->f.ip.family == 4 && is_host_source(ip16_v4(&w->f.ip.src)))
		return REASON_BAD_SOURCE;
	return REASON_NONE;
}

static __always_inline int to_many(struct __sk_buff *skb, struct work *w, const struct cfg *c, const struct arrival *a)
{
	struct speaker from = { .vni = a->vni, .host = a->sender };
	struct bum *list = bpf_map_lookup_elem(&bum, &from.vni);

	if (!list)
		return drop(&w->f, REASON_NO_NETWORK);
	return replicate(skb, w, c, list, from);
}

static __always_inline int to_one(struct __sk_buff *skb, struct work *w, const struct arrival *a)
{
	struct station *to = station_of(a->vni, w->f.dst);

	if (!to || !to->port)
		return drop(&w->f, REASON_UNKNOWN_MAC);
	return to_station(skb, w, a->vni, to->port);
}

SEC("tcx/ingress")
int overlay_in(struct __sk_buff *skb)
{
	struct work *w = begin_work();
	struct cfg *c = config();
	struct arrival a = {};
	enum reason reason;

	if (!c || !w)
		return drop_blind(REASON_NO_CONFIG);
	if (!tunnel_read(skb, &a))
		return drop_blind(REASON_UNKNOWN_ENDPOINT);
	if (!read_frame(skb, &w->f))
		return drop_blind(REASON_MALFORMED);
	if (skb->vlan_present)
		return drop(&w->f, REASON_VLAN);
	reason = check_arrival(w, c, &a);
	if (reason)
		return drop(&w->f, reason);
	return is_group_mac(w->f.dst) ? to_many(skb, w, c, &a) : to_one(skb, w, &a);
}

char _license[] SEC("license") = "Apache-2.0";
