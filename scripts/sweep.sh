#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Removes what interrupted tests and labs left behind: processes inside network
# namespaces of ours, the namespaces, their pins. Labs are taken down from their
# own state; tests name their namespaces with one of the prefixes below.
set -uo pipefail
cd "$(dirname "$0")/.."
[ "$(id -u)" = 0 ] || exit 0
prefixes='ct|cbpf|cbgp|clab|cagt'

if [ -x bin/cairn ]; then
	for state in /run/cairn/lab/*/; do
		[ -d "$state" ] && bin/cairn lab down --name "$(basename "$state")" >/dev/null 2>&1
	done
fi
ip netns list 2>/dev/null | awk '{print $1}' | grep -E "^($prefixes)-" | while read -r ns; do
	ip netns pids "$ns" 2>/dev/null | xargs -r kill -9 2>/dev/null
	ip netns del "$ns" 2>/dev/null
done
ls -d /sys/fs/bpf/* 2>/dev/null | grep -E "/($prefixes)-" | xargs -r rm -rf
exit 0
