#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs the checks and the three rings of tests and prints what each stage took.
# usage: test.sh [pure|program|lab]   one ring, or everything
#        test.sh crash               every crash point, of which the lab ring tries a few
set -euo pipefail
cd "$(dirname "$0")/.."

case "${1:-all}" in
all | pure | program | lab | crash) ;;
-h | --help)
	echo "usage: $0 [pure|program|lab|crash]"
	exit 0
	;;
*)
	echo "$0: ring '$1' is not one of pure, program, lab, crash" >&2
	exit 2
	;;
esac
ring=${1:-all}

times=()
stage() { # stage NAME COMMAND...
	local name=$1 start=$SECONDS
	shift
	printf '\n== %s\n' "$name"
	"$@" || {
		printf '\n== %s did not pass after %d s\n' "$name" $((SECONDS - start)) >&2
		return 1
	}
	times+=("$(printf '%-9s %4d s' "$name" $((SECONDS - start)))")
}

trap scripts/sweep.sh EXIT
trap 'echo "interrupted: cleaning up" >&2; exit 130' INT TERM

tagged() { # folders that hold tests of a ring
	git ls-files --cached --others --exclude-standard '*_test.go' | xargs grep -lE "^//go:build $1\$" | xargs -r -n1 dirname | sort -u | sed 's,^,./,'
}
verbose() { go test -v "$@" 2>&1 | grep --line-buffered -vE '^(=== (RUN|PAUSE|CONT|NAME)|\s*--- PASS.*\(0\.0)'; }

pure() { go test -race -timeout 10m ./...; }
program() {
	local dirs
	dirs=$(tagged program)
	[ -z "$dirs" ] || go test -tags program -p 1 -timeout 10m $dirs
}
lab() {
	local dirs
	dirs=$(tagged lab)
	[ -z "$dirs" ] || verbose -tags lab -p 1 -count=1 -timeout 20m $dirs
}
crash() { CAIRN_CRASH_ALL=1 verbose -tags lab -count=1 -timeout 20m -run '^TestEveryCommitIsACrashPoint$' ./test/e2e; }

if [ "$ring" = all ] || [ "$(id -u)" = 0 ]; then stage install scripts/packages.sh; fi
stage download go mod download
if [ "$ring" = all ] || [ "$ring" = lab ] || [ "$ring" = crash ]; then stage compile scripts/build.sh; fi
if [ "$ring" = all ]; then stage check scripts/check.sh; fi
for r in pure program lab; do
	if [ "$ring" = all ] || [ "$ring" = $r ]; then stage $r $r; fi
done
if [ "$ring" = crash ]; then stage crash crash; fi

printf '\n== passed in %d s\n' $SECONDS
printf '   %s\n' "${times[@]}"
