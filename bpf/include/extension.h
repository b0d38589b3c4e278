/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include "address.h"

/* The headers between IPv6's and L4's: as many as any honest stack sends. */

#define EXTENSIONS_MAX	     6	 /* headers */
#define EXTENSIONS_BYTES_MAX 256 /* and what they take together */

/* RFC 8200, 4.5. Of the others too it is the beginning. */
struct fraghdr {
	__u8 next;
	__u8 reserved; /* of the others: their length − 8, in units of 8 bytes */
	__be16 offset; /* in bits 3 to 15; bit 0: more */
	__be32 id;
};

static __always_inline bool is_extension(__u8 proto)
{
	return proto == IPPROTO_HOPOPTS || proto == IPPROTO_ROUTING || proto == IPPROTO_FRAGMENT ||
	       proto == IPPROTO_DSTOPTS;
}

/* One that may not be there: hop-by-hop options behind another header, or a
 * routing header of type 0 (RFC 5095). */
static __always_inline bool is_odd_extension(const struct fraghdr *h, __u8 proto, bool first)
{
	return (proto == IPPROTO_HOPOPTS && !first) || (proto == IPPROTO_ROUTING && (bpf_ntohs(h->offset) >> 8) == 0);
}
