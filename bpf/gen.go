// SPDX-License-Identifier: Apache-2.0

package bpf

// The types of maps come from the uplink object; the port object declares the
// same maps and needs no second set. Objects are the same from any folder.
//
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -type reason -type note -type direction -type scope -type svc_flag -type backend_flag -type nexthop_flag -type local_flag -type port_flag -type verdict_flag -type prefix_flag -type ct_state -type ct_flag -type ct_heard -type note_flag -type bum_flag -type punt -type reach_op -type cut -type inquiry -type event_kind -type event_audience -type event -type capture -type trace_stage -type trace_step -type trace_log -type ct_key -type ct uplink uplink.bpf.c -- -std=gnu11 -O2 -mcpu=v3 -Wall -Wextra -Werror -fno-strict-aliasing -ffile-prefix-map=$PWD=. -idirafter /usr/include/x86_64-linux-gnu -Iinclude
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -no-global-types -type sweep port port.bpf.c -- -std=gnu11 -O2 -mcpu=v3 -Wall -Wextra -Werror -fno-strict-aliasing -ffile-prefix-map=$PWD=. -idirafter /usr/include/x86_64-linux-gnu -Iinclude
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -no-global-types overlay overlay.bpf.c -- -std=gnu11 -O2 -mcpu=v3 -Wall -Wextra -Werror -Wno-unused-function -fno-strict-aliasing -ffile-prefix-map=$PWD=. -idirafter /usr/include/x86_64-linux-gnu -Iinclude
