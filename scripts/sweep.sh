#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Removes what interrupted tests and labs left behind: processes inside network
# namespaces of ours, the namespaces, their pins. Labs whose test has ended are
# taken down from their own state; a lab that somebody keeps stays. Other tests
# name their namespaces with one of the prefixes below.
set -uo pipefail
cd "$(dirname "$0")/.."
[ "$(id -u)" = 0 ] || exit 0
prefixes='ct|cbpf|cbgp|cagt|cchk'

[ -x bin/cairn ] && bin/cairn lab down --stale >/dev/null 2>&1
ip netns list 2>/dev/null | awk '{print $1}' | grep -E "^($prefixes)-" | while read -r ns; do
	ip netns pids "$ns" 2>/dev/null | xargs -r kill -9 2>/dev/null
	ip netns del "$ns" 2>/dev/null
done
ls -d /sys/fs/bpf/* 2>/dev/null | grep -E "/($prefixes)-" | xargs -r rm -rf
# Tests of the dataplane mount one of their own in their temporary folder.
awk '$3 == "bpf" && $2 ~ "/Test[^/]*/[0-9]+/bpf$" { print $2 }' /proc/mounts | xargs -r -n 1 umount 2>/dev/null
exit 0
