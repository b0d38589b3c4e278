/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include "packet.h"

/* What kind of address an ip16 is. */

static __always_inline __u32 word_of(const struct ip16 *ip, int i)
{
	return ((const __u32 *)ip->b)[i];
}

static __always_inline bool same_ip(const struct ip16 *a, const struct ip16 *b)
{
	return word_of(a, 3) == word_of(b, 3) && word_of(a, 2) == word_of(b, 2) && word_of(a, 1) == word_of(b, 1) &&
	       word_of(a, 0) == word_of(b, 0);
}

static __always_inline bool is_v4(const struct ip16 *ip)
{
	return !word_of(ip, 0) && !word_of(ip, 1) && word_of(ip, 2) == bpf_htonl(0xffff);
}

static __always_inline bool is_unspecified(const struct ip16 *ip)
{
	return !word_of(ip, 0) && !word_of(ip, 1) && !word_of(ip, 2) && !word_of(ip, 3);
}

/* One of the host's own services has, beside its address of IPv4, fe80:: with the
 * same last four bytes. */
static __always_inline bool is_twin(const struct ip16 *ip, __be32 v4)
{
	return word_of(ip, 3) == v4 && !word_of(ip, 2) && !word_of(ip, 1) && word_of(ip, 0) == bpf_htonl(0xfe800000);
}

/* fe80::/10 */
static __always_inline bool is_link_local(const struct ip16 *ip)
{
	return ip->b[0] == 0xfe && (ip->b[1] & 0xc0) == 0x80;
}

static __always_inline bool is_multicast6(const struct ip16 *ip)
{
	return ip->b[0] == 0xff;
}

/* ::/96: unspecified, loopback and the long deprecated IPv4-compatible ones. */
static __always_inline bool is_low6(const struct ip16 *ip)
{
	return !word_of(ip, 0) && !word_of(ip, 1) && !word_of(ip, 2);
}
