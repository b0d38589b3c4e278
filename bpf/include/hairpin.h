/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include "address.h"

/*
 * An instance behind a VIP that calls this VIP and is chosen itself: no stack takes a
 * packet from its own address. So it sees such a client at a link-local address that
 * nobody has, and its answers to that go back as the VIP's. The client's address is the
 * instance's own, so that nothing need be remembered of it.
 */

#define HAIRPIN_ADDRESS 0xa9fea9fc /* 169.254.169.252, and fe80::a9fe:a9fc */

static __always_inline struct ip16 hairpin_of(const struct ip16 *of)
{
	struct ip16 ip = {};
	__be32 *word = (__be32 *)ip.b;

	if (is_v4(of))
		word[2] = bpf_htonl(0xffff);
	else
		word[0] = bpf_htonl(0xfe800000);
	word[3] = bpf_htonl(HAIRPIN_ADDRESS);
	return ip;
}

static __always_inline bool is_hairpin(const struct ip16 *ip)
{
	if (word_of(ip, 3) != bpf_htonl(HAIRPIN_ADDRESS))
		return false;
	return is_v4(ip) || (word_of(ip, 0) == bpf_htonl(0xfe800000) && !word_of(ip, 1) && !word_of(ip, 2));
}
