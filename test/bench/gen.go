// SPDX-License-Identifier: Apache-2.0

package bench

//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -no-global-types -type shape drive drive.bpf.c -- -std=gnu11 -O2 -mcpu=v3 -Wall -Wextra -Werror -fno-strict-aliasing -ffile-prefix-map=$PWD=. -idirafter /usr/include/x86_64-linux-gnu
