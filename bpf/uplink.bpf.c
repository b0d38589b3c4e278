//go:build ignore
/* SPDX-License-Identifier: Apache-2.0 */

#include "export.h"

SEC("xdp")
int uplink(struct xdp_md *ctx __attribute__((unused)))
{
	return XDP_PASS;
}

char _license[] SEC("license") = "Apache-2.0";
