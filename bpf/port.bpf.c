//go:build ignore
/* SPDX-License-Identifier: Apache-2.0 */

#include "export.h"

SEC("tcx/ingress")
int vm_in(struct __sk_buff *skb __attribute__((unused)))
{
	return 0;
}

char _license[] SEC("license") = "Apache-2.0";
