/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include "maps.h"

/* What a policy is asked about a flow's first packet, and what it says. */

struct question {
	__u32 policy; /* judge sets it */
	__u32 direction;
	__u32 proto;
	__u32 match;   /* destination port, ICMP type << 8 | code, 0 without ports */
	__u32 scope;   /* SCOPE_PUBLIC, else the network's VNI */
	bool fragment; /* match is not known: only rules for all ports admit */
	struct ip16 peer;
};

enum verdict_flag {
	VERDICT_KEEP = 1, /* the flow outlives the rule */
};

struct verdict {
	__u32 rule;  /* its id in the zone; 0: none was needed, or none admits */
	__u32 flags; /* enum verdict_flag */
};
