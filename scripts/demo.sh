#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs what is missing, builds, and gives the tour of Cairn (test/demo).
# Everything happens in network namespaces of its own and is removed at the end,
# also after Ctrl-C.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
	cat <<-END
		usage: $0 [--keep] [--router bird|frr]

		  --keep     leave the cloud running at the end (also KEEP=1), and print how to
		             look at it and how to end it
		  --router   what the router runs (default bird)

		Exit status: 0 when all promises of function were kept, 1 when one was not, 130
		after Ctrl-C. A missed bar of speed is printed as missed and changes nothing.
	END
}

args=()
[ -z "${KEEP:-}" ] || args+=(--keep)
while [ $# -gt 0 ]; do
	case "$1" in
	-h | --help)
		usage
		exit 0
		;;
	--keep) args+=(--keep) ;;
	--router)
		case "${2:-}" in
		bird | frr) args+=(--router "$2") ;;
		*)
			echo "$0: --router is bird or frr" >&2
			exit 2
			;;
		esac
		shift
		;;
	*)
		usage >&2
		exit 2
		;;
	esac
	shift
done
if [ "$(id -u)" != 0 ]; then
	echo "$0: network namespaces and BPF need root" >&2
	exit 1
fi

trap 'exit 130' INT TERM
stage() { # stage NAME COMMAND...
	local name=$1 start=$SECONDS
	shift
	printf '%-10s' "$name"
	"$@"
	printf '%4d s\n' $((SECONDS - start))
}
stage packages scripts/packages.sh
stage download go mod download
stage build scripts/build.sh
trap - INT TERM
exec bin/demo ${args[@]+"${args[@]}"}
