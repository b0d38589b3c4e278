/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include "port.h"

/* How often a port may do what costs others. */

/*
 * Take one of rate a second, saving up a second's worth. *due is when the saved
 * ones are back in full. Of two CPUs at the same moment one may go for free.
 */
static __noinline bool keeps_pace(__u64 *due, __u32 rate)
{
	__u64 now = bpf_ktime_get_ns(), was, from;

	if (!due || !rate)
		return false;
	was = READ_ONCE(*due);
	from = was > now ? was : now;
	if (from - now >= SECOND)
		return false;
	if (trace)
		return true;
	__sync_val_compare_and_swap(due, was, from + SECOND / rate);
	return true;
}
