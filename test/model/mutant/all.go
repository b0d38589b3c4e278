// SPDX-License-Identifier: Apache-2.0

package mutant

import "slices"

// All mutants. The first three are the smoke that every run of the tests looks
// at.
func All() []Mutant {
	return slices.Concat(smoke, policy, flows, connections, ports, door, headers, fragments, quotes)
}

// Smoke is what there is always time for.
func Smoke() []Mutant { return smoke }

var smoke = []Mutant{
	{"generation is ignored", "include/conntrack.h", "if (f->generation != generation && ", "if (0 && "},
	{"a RST's number is not looked at", "include/conntrack.h", "v->tcp_flags & TCP_RST && !may_reset(f, v)", "0"},
	{"masks are swapped", "include/policy.h", "port->word[i] & (member->word[i] | prefix->word[i])", "prefix->word[i] & (member->word[i] | port->word[i])"},
}

var policy = []Mutant{
	{"members of another network are asked", "include/policy.h", ".scope = q->scope, .ip = q->peer };", ".scope = q->scope + 1, .ip = q->peer };"},
	{"prefixes are not asked", "include/policy.h", "(member->word[i] | prefix->word[i])", "member->word[i]"},
	{"a prefix is one bit short", "include/policy.h", ".bits = 32 + 128,", ".bits = 32 + 127,"},
	{"another rule is named", "include/policy.h", "return i * 64 + first_bit(both);", "return i * 64 + (first_bit(both) ^ 1);"},
	{"the lower half of a word is not searched", "include/policy.h", "for (int width = 32; width; width >>= 1) {", "for (int width = 16; width; width >>= 1) {"},
	{"a range begins one late", "include/policy.h", ".from <= match)", ".from < match)"},
	{"the last step of the search is missing", "include/policy.h", "for (__u32 step = CUTS_MAX / 2; step; step >>= 1) {", "for (__u32 step = CUTS_MAX / 2; step > 1; step >>= 1) {"},
	{"leaves are not entered", "include/policy.h", "if (b->leaves) {", "if (0) {"},
	{"ports of the other direction", "include/policy.h",
		"struct bm_key key = { .policy = q->policy, .direction = q->direction };\n\tstruct bounds *b",
		"struct bm_key key = { .policy = q->policy, .direction = !q->direction };\n\tstruct bounds *b"},
	{"the protocol is not looked at", "include/policy.h", ".proto = q->proto };\n\tstruct bm_key", ".proto = 6 };\n\tstruct bm_key"},
	{"rules for every protocol are forgotten", "include/policy.h", "bounds_key.proto = ANY_PROTOCOL;", "return NULL;"},
	{"egress is always open", "include/policy.h", "if (q->direction == DIRECTION_OUT && pc->flags & PORT_EGRESS_OPEN)", "if (q->direction == DIRECTION_OUT)"},
	{"ingress is as open as egress", "include/policy.h", "if (q->direction == DIRECTION_OUT && pc->flags & PORT_EGRESS_OPEN)", "if (pc->flags & PORT_EGRESS_OPEN)"},
	{"keep is not said", "include/policy.h", "v->flags |= VERDICT_KEEP;", "v->flags |= 0;"},
	{"a closed port is open", "include/policy.h", "\tif (!q->policy)\n\t\treturn REASON_NO_POLICY;", "\tif (!q->policy)\n\t\treturn REASON_NONE;"},
}

var flows = []Mutant{
	{"own port is missing in the key", "include/visit.h", "v->key.own_port = direction", "v->key.own_port = 0 && direction"},
	{"protocol is missing in the key", "include/visit.h", "v->key.proto = p->proto;", "v->key.proto = 17;"},
	{"own address is missing in the key", "include/visit.h", "v->key.own = direction == DIRECTION_IN ? p->dst : p->src;", ""},
	{"keep is not heeded", "include/conntrack.h", "if (reason && !(f->flags & CT_KEEP))", "if (reason)"},
	{"everything is kept", "include/conntrack.h", "if (reason && !(f->flags & CT_KEEP))", "if (0)"},
	{"a flow is judged as its last packet went", "include/conntrack.h", "permit(pc, v, f->direction, f->match)", "permit(pc, v, v->direction, f->match)"},
	{"a flow is judged by its last packet's port", "include/conntrack.h", "permit(pc, v, f->direction, f->match)", "permit(pc, v, f->direction, v->match)"},
	{"the new rule is not noted", "include/conntrack.h", "\t\tf->rule = v->verdict.rule;\n", ""},
	{"a flow that is refused stays", "include/conntrack.h", "if (reason == REASON_CT_INVALID_RST)", "if (reason)"},
	{"promoted at the second packet", "include/conntrack.h", "v->direction == f->direction && f->state == CT_ESTABLISHED)", "f->state == CT_REPLIED)"},
	{"never promoted", "include/conntrack.h", "v->direction == f->direction && f->state == CT_ESTABLISHED)", "0)"},
	{"expiry is ignored", "include/flow.h", "return is_past(f->seen, lifetime(f, proto), now);", "return false;"},
	{"a packet does not keep its flow", "include/conntrack.h", "\tf->seen = now;\n\tf->idle", "\tf->idle"},
	{"an established UDP flow lives as long as a new one", "include/flow.h", "return established ? 180 * SECOND : 60 * SECOND;", "return 60 * SECOND;"},
	{"ICMP lives as long as UDP", "include/flow.h", "if (proto == IPPROTO_ICMP || proto == IPPROTO_ICMPV6)", "if (0)"},
	{"a half open connection lives for an hour", "include/flow.h", "\tcase CT_NEW:\n", ""},
	{"a reset one too", "include/flow.h", "\tcase CT_RESET:\n\t\treturn 10 * SECOND;\n", ""},
	{"services are not told apart", "include/conntrack.h", "return f->service == v->service && f->vip_port == v->vip_port;", "return true;"},
	{"an established flow is taken over", "include/conntrack.h", "return v->opening && (is_ending(f) || f->state == CT_NEW);", "return v->opening;"},
	{"the alias is not remembered", "include/conntrack.h", "return v->new_alias ? renew_alias(est, fresh, v) : REASON_NONE;", "return REASON_NONE;"},
	{"a strict port is not", "include/conntrack.h", "if (is_out_of_place(pc, v, now))", "if (0)"},
	{"the door is open for whoever answers nothing", "include/conntrack.h", "if (v->answer_only)", "if (0)"},
	{"a health check needs a rule", "include/conntrack.h", "\tif (!v->host) {\n\t\treason = permit", "\t{\n\t\treason = permit"},
	{"mail may leave", "include/conntrack.h", "match == SMTP_PORT && ", "0 && "},
	{"packets are not counted by rule", "include/conntrack.h", "s->packets += v->packets;", ""},
	{"bytes are not counted by rule", "include/conntrack.h", "s->bytes += v->bytes;", ""},
}

var connections = []Mutant{
	{"the window's edge is outside", "include/tcp.h", "return v->seq - to->ack <= to->edge - to->ack;", "return v->seq - to->ack < to->edge - to->ack;"},
	{"any answer confirms", "include/conntrack.h", "(!tcp || confirms(f, v))", "1"},
	{"a reset flow lives again", "include/tcp.h", "\tif (f->state == CT_RESET)\n\t\treturn true;\n", ""},
	{"a refused connection can be reset by anybody", "include/tcp.h", "return v->ack == to->end;", "return true;"},
	{"one FIN closes", "include/tcp.h", "if ((f->flags & (CT_FIN_IN | CT_FIN_OUT)) == (CT_FIN_IN | CT_FIN_OUT))", "if (f->flags & (CT_FIN_IN | CT_FIN_OUT))"},
	{"FINs are not told apart", "include/tcp.h", "f->flags |= v->direction == DIRECTION_IN ? CT_FIN_IN : CT_FIN_OUT;", "f->flags |= CT_FIN_IN;"},
	{"a window is not scaled", "include/tcp.h", "(syn ? 0 : f->scale[me] & 15)", "0"},
	{"a SYN's window is scaled", "include/tcp.h", "(syn ? 0 : f->scale[me] & 15)", "(f->scale[me] & 15)"},
	{"one side alone scales", "include/tcp.h", "if (v->scale == SCALE_NONE || f->scale[you] == SCALE_NONE)", "if (0)"},
	{"what does not fit is believed", "include/conntrack.h", "} else if (v->tcp_flags & TCP_RST || fits(f, v)) {", "} else {"},
	{"a SYN has no number", "include/visit.h", "v->end += !!(p->tcp_flags & TCP_SYN) + ", "v->end += "},
	{"an ended flow swallows the next SYN", "include/conntrack.h", " || (v->tcp_flags & TCP_SYN && v->opening && is_ending(f));", ";"},
}

var ports = []Mutant{
	{"any source address", "include/vm.h", "if (reason != REASON_MALFORMED && !owns(port, &f->ip.src))", "if (0)"},
	{"a foreign MAC is named otherwise", "port.bpf.c", "return drop(&w->f, REASON_SPOOFED_MAC);", "return drop(&w->f, REASON_SPOOFED_IP);"},
	{"the host can be reached", "include/vm.h", "if (prefix_flags(&f->ip.dst) & PREFIX_HOST)", "if (0)"},
	{"special destinations can be reached", "include/vm.h", "if (is_bad_destination(&f->ip))", "if (0)"},
	{"multicast is no special destination", "include/packet.h", " || within(ip, 0xe0000000, 3)", ""},
	{"half of the host's own range can be a source", "include/packet.h", "within(ip, 0xc6120000, 15)", "within(ip, 0xc6120000, 16)"},
	{"special sources come in", "uplink.bpf.c", "if (is_bad_source(&w->f.ip))", "if (0)"},
	{"any MTU", "include/toobig.h", "if (!pc->mtu)\n\t\treturn false;", "return false;"},
	{"one byte more than the MTU", "include/toobig.h", "return f->ip.length > pc->mtu;", "return f->ip.length > pc->mtu + 1;"},
	{"what may be cut is answered", "include/toobig.h", "if (!p->dont_fragment || ", "if ("},
	{"an error is answered", "include/toobig.h", "p->icmp_type != ICMP_ECHO && p->icmp_type != ICMP_ECHOREPLY", "0"},
	{"a balanced packet is answered", "include/toobig.h", "if (w->v.service)", "if (0)"},
	{"the answer's checksum is not written", "include/toobig.h", "b->icmp.checksum = ~csum_fold(bpf_csum_diff(NULL, 0, (__be32 *)&b->icmp, message, 0));", ""},
	{"the last hop goes on", "port.bpf.c", "if (w->f.ip.ttl <= 1)", "if (w->f.ip.ttl < 1)"},
	{"a range is eight bits short", "include/vm.h", ".bits = 32 + 128, .port", ".bits = 32 + 120, .port"},
	{"ranges are of all ports", "include/vm.h", ".bits = 32 + 128, .port = port", ".bits = 32 + 128, .port = 5"},
	{"ranges come to nobody", "include/port.h", "bpf_map_lookup_elem(&addr_port, ip) ?: range_at(ip)", "bpf_map_lookup_elem(&addr_port, ip)"},
	{"hops are not counted", "include/vm.h", "__u8 ttl = f->ip.ttl - 1;", "__u8 ttl = f->ip.ttl;"},
	{"whoever comes in is not examined", "include/deliver.h", "enum reason reason = examine(skb, w, pc);", "enum reason reason = REASON_NONE;"},
	{"the service's address is not put back", "include/vm.h", "\tif (v->service)\n\t\treason = rewrite_source", "\tif (0)\n\t\treason = rewrite_source"},
	{"the client's port is not put back", "include/vm.h", "if (!reason && v->peer_port != f->ip.dport)", "if (0)"},
	{"the frame keeps its MACs", "include/deliver.h", "if (write_macs(skb, pc->mac, pc->gateway_mac))", "if (0)"},
	{"the host's checks are forged", "port.bpf.c", "if (!is_prober(&w->f.ip, &w->f.ip.src, c))", "if (0)"},
	{"rules are asked about the address in place of the caller's", "include/conntrack.h", "!pc->vni && is_hairpin(&v->key.peer) ? v->key.own : v->key.peer", "v->key.peer"},
	{"an instance's answer to itself stays on the link", "include/vm.h", "if (!reason && is_hairpin(&v->key.peer))", "if (0)"},
	{"frames for others are taken", "uplink.bpf.c", "if (!same_mac(w->f.dst, c->uplink_mac))", "if (0)"},
}

var door = []Mutant{
	{"anybody opens the metadata door", "include/door.h", "if (!find_asker(v))", "if (0)"},
	{"the metadata service opens flows", "include/door.h", "\tv->answer_only = true;\n", ""},
	{"a request begins anywhere", "include/door.h", "v->answer_only = !v->opening;", ""},
	{"everybody is one", "include/door.h", "v->vip = identity_of(port);", "v->vip = identity_of(5);"},
	{"any port of the metadata service", "include/door.h", "|| f->ip.dport != bpf_htons(METADATA_PORT)", ""},
	{"an answer from any port", "include/door.h", "|| f->ip.sport != bpf_htons(METADATA_PORT)", ""},
	{"the guest is not found again", "include/door.h", "v->key.own = f->vip;", ""},
	{"the identity stays in the answer", "include/door.h", "track(v, pc) ?: rewrite_receiver(skb, f, &v->key.own)", "track(v, pc)"},
	{"an older flow's address is found", "include/conntrack.h", "\tbpf_map_delete_elem(est, &alias);\n\treturn remember_alias", "\treturn remember_alias"},
	{"requests are confirmed at once", "include/conntrack.h", "v->host && v->direction == DIRECTION_IN && confirm", "v->host && confirm"},
}

var headers = []Mutant{
	{"an IPv4 source in disguise", "include/inet.h", "if (is_v4(&p->src))", "if (0)"},
	{"an IPv4 destination in disguise", "include/inet.h", "if (is_v4(&p->dst))", "if (0)"},
	{"one extension header more", "include/extension.h", "#define EXTENSIONS_MAX\t     6", "#define EXTENSIONS_MAX\t     7"},
	{"source routes are served", "include/extension.h", "(proto == IPPROTO_ROUTING && (bpf_ntohs(h->offset) >> 8) == 0)", "0"},
	{"hop-by-hop options anywhere", "include/extension.h", "(proto == IPPROTO_HOPOPTS && !first)", "0"},
	{"odd flags pass", "include/inet.h", "if (is_odd_tcp(p->tcp_flags))", "if (0)"},
	{"a SYN with a FIN passes", "include/inet.h", " || (flags & TCP_SYN && flags & (TCP_FIN | TCP_RST))", ""},
	{"the length is not looked at", "include/inet.h", " || p->length < sizeof(*ip) + options || p->l3 + p->length > skb->len)", ")"},
	{"an echo has no id", "include/inet.h", "\t\tp->sport = id;\n", "\t\tp->sport = 0;\n"},
	{"who answers an echo may ask", "include/inet.h", "\t\tp->sport = id;\n", "\t\tp->sport = p->dport = id;\n"},
	{"one type of ICMP opens all others", "include/inet.h", "p->sport = p->dport = bpf_htons(p->match);", "p->sport = p->dport = 0;"},
	{"ICMP's code is not looked at", "include/inet.h", "p->match = (__u16)icmp->type << 8 | icmp->code;", "p->match = (__u16)icmp->type << 8;"},
	{"a later fragment is a first one", "include/inet.h", "p->fragment = offset ? FRAGMENT_LATER : FRAGMENT_FIRST;", "p->fragment = FRAGMENT_FIRST;"},
	{"fragments are not seen", "include/inet.h", "if (!(frag & IP_FRAGMENTED))", "if (1)"},
	{"ICMP of the other family", "include/inet.h", "return p->family == 4 ? read_icmp(&c, p, room) : REASON_PROTOCOL;", "return read_icmp(&c, p, room);"},
}

var fragments = []Mutant{
	{"fragments overlap", "include/fragment.h", "if (d->spoilt || overlaps(d, from, to, p->more)) {", "if (0) {"},
	{"the rest of what overlapped passes", "include/fragment.h", "if (d->spoilt || overlaps", "if (overlaps"},
	{"a datagram begins twice", "include/fragment.h", "if (there && !is_past(there->seen, FRAGMENTS_LIFETIME, now)) {", "if (0) {"},
	{"a later fragment needs no first one", "include/fragment.h", "return REASON_FRAGMENT_EARLY;", "return REASON_NONE;"},
	{"a fragment's number is ignored", "include/fragment.h", ".id = p->frag_id,", ".id = 0,"},
	{"a fragment's sender is ignored", "include/fragment.h", "\t\t.src = p->src,\n", ""},
	{"the last one ends before others", "include/fragment.h", "any |= !more && to < d->piece[i].to;", ""},
	{"something lies behind the last one", "include/fragment.h", "d->total && (to > d->total || !more)", "0"},
	{"pieces are waited for for ever", "include/fragment.h", "is_past(d->seen, FRAGMENTS_LIFETIME, bpf_ktime_get_ns())", "0"},
	{"a number is not free again", "include/fragment.h", "if (d->total && d->piece[0].to == d->total)", "if (0)"},
	{"a fragment changes TCP's header", "include/inet.h", "if (offset && offset < sizeof(struct tcphdr) && p->proto == IPPROTO_TCP)", "if (0)"},
	{"later fragments are not counted by rule", "include/fragment.h", "\tcount_rule(v);\n", ""},
}

var quotes = []Mutant{
	{"an error is for anybody", "include/quote.h", "if (!reason && !same_ip(&p->dst, &q->src))", "if (0)"},
	{"the quoted ports are ignored", "include/quote.h", "v->key.peer_port = sent ? q->dport : q->sport;", "v->key.peer_port = 0;"},
	{"the quoted ports are the wrong way round", "include/quote.h", "v->key.own_port = sent ? q->sport : q->dport;", "v->key.own_port = sent ? q->dport : q->sport;"},
	{"the quoted protocol is ignored", "include/quote.h", "v->key.proto = q->proto;", "v->key.proto = IPPROTO_UDP;"},
	{"a tiny path is believed", "include/quote.h", "bpf_ntohs(icmp.sequence) < MTU_MIN4)", "0)"},
	{"a tiny path of IPv6 is believed", "include/quote.h", "bpf_ntohs(icmp.sequence) < MTU_MIN6)", "0)"},
	{"routers are obeyed", "include/quote.h", "if (p->family == 4 && p->icmp_type == ICMP_REDIRECT)", "if (0)"},
	{"a revoked flow's errors pass", "include/quote.h", "is_revoked(f, pc, v) || ", ""},
	{"an error about another service's flow passes", "include/quote.h", "if (!f || v->direction == DIRECTION_OUT || is_same_service(f, v))", "if (1)"},
	{"the quote stays as it is, going in", "include/deliver.h", "return rewrite_error_in(skb, w);", "return REASON_NONE;"},
	{"the quote stays as it is, going out", "include/vm.h", "return rewrite_error_out(skb, w);", "return REASON_NONE;"},
	{"the quote's checksum stays", "include/requote.h", "is = csum_swap(csum_swap(was, r->from_ip, r->to_ip), r->from_port, r->to_port);", "is = was;"},
	{"errors are packets like others", "include/examine.h", "if (is_icmp_error(&w->f.ip)) {", "if (0) {"},
}
