#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Puts one fault after the other into the C of the port programs and has the
# tables of verdicts and the fuzzer look for it. Prints killed/total; a mutant
# that survives makes it fail. Needs root.
# usage: mutants.sh [--smoke | NAME...]   all of them, the three that every test run
# looks at, or those whose names contain one of the words
set -euo pipefail
cd "$(dirname "$0")/.."
export CGO_ENABLED=0 MUTANTS=all

case "${1:-}" in
'') ;;
--smoke) MUTANTS=smoke ;;
-*)
	echo "usage: $0 [--smoke | NAME...]" >&2
	exit 2
	;;
*)
	MUTANTS=$(printf 'name:%s\n' "$@")
	;;
esac
nice -n 10 go test -tags program -count=1 -timeout 90m -run '^TestMutantsAreFound$' -v ./test/model/mutant
