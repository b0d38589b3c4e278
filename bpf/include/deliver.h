/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include "examine.h"
#include "mss.h"
#include "requote.h"
#include "toobig.h"

/* Into a VM, whoever brings the packet. */

/* What the VM sees instead of what was on the wire. */
static __always_inline enum reason mend_in(struct __sk_buff *skb, struct work *w)
{
	if (w->error)
		return rewrite_error_in(skb, w);
	if (w->v.tcp_flags & TCP_SYN && w->v.service) {
		enum reason reason = fit_mss(skb, &w->f, &w->v);

		if (reason)
			return reason;
	}
	if (w->v.service && is_hairpin(&w->v.key.peer) && write_address(skb, &w->f, &w->v.key.peer, true))
		return REASON_MALFORMED;
	if (!w->v.translated)
		return REASON_NONE;
	return write_port(skb, &w->f, offsetof(struct tcphdr, source), w->v.wire_port, w->v.key.peer_port)
		       ? REASON_MALFORMED
		       : REASON_NONE;
}

/* Out of the host's side of the port's device, if the port takes the packet. The
 * visit has begun. Only who may send it is told that it is too large; back is the
 * mark that an answer needs where the packet has come from. */
static __always_inline int deliver_to(struct __sk_buff *skb, struct work *w, const struct port_cfg *pc, __u32 back)
{
	enum reason reason = examine(skb, w, pc);

	if (!reason && is_too_big(skb, &w->f, pc))
		return too_big_in(skb, w, pc, back);
	if (!reason)
		reason = mend_in(skb, w);
	if (reason)
		return drop(&w->f, reason);
	if (write_macs(skb, pc->mac, pc->gateway_mac))
		return drop(&w->f, REASON_MALFORMED);
	skb->mark = GUARD_MARK;
	return redirected(&w->f, bpf_redirect(pc->ifindex, 0),
			  w->v.translated ? REASON_TO_PORT_TRANSLATED : REASON_TO_PORT);
}
