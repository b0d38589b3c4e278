#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs the Debian packages that building and testing Cairn needs, and only
# those that are missing. Nothing it installs is started: a policy-rc.d that
# answers 101 keeps Debian's maintainer scripts from launching BIRD or FRR on
# the machine itself.
set -euo pipefail

packages=(
	clang-19 llvm-19 clang-format-19 # BPF programs and their format
	libbpf-dev linux-libc-dev        # BPF headers
	protobuf-compiler                # the wire
	gcc libc6-dev make               # the race detector, this Makefile
	bird2 frr                        # the lab's routers
	postgresql-15                    # the store's other database
	iproute2 nftables ethtool        # the lab's links and filters
	curl jq ca-certificates          # the demo
)

missing() {
	local p
	for p in "${packages[@]}"; do
		dpkg-query -W -f='${db:Status-Status}\n' "$p" 2>/dev/null | grep -qx installed || echo "$p"
	done
}

case "${1:-}" in
-h | --help)
	echo "usage: $0 [--list]   install missing packages, or list all that are needed"
	exit 0
	;;
--list)
	printf '%s\n' "${packages[@]}"
	exit 0
	;;
esac

mapfile -t want < <(missing)
[ ${#want[@]} -eq 0 ] && exit 0
if [ "$(id -u)" != 0 ]; then
	echo "packages missing: ${want[*]}; run $0 as root" >&2
	exit 1
fi

policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
	printf '#!/bin/sh\nexit 101\n' >$policy
	chmod 755 $policy
	trap 'rm -f $policy' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
echo "installing ${#want[@]} packages: ${want[*]}"
log=$(mktemp)
apt_get() { apt-get -qq -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300 "$@" >>"$log" 2>&1; }
if ! { apt_get update && apt_get install -y --no-install-recommends "${want[@]}"; }; then
	tail -n 40 "$log" >&2
	exit 1
fi
rm -f "$log"
