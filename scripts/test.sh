#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs the checks and the three rings of tests and prints what each stage took.
# usage: test.sh [pure|program|lab]   one ring, or everything
#        test.sh crash               every crash point, of which the lab ring tries a few
set -euo pipefail
cd "$(dirname "$0")/.."
export CGO_ENABLED=0 # one set of flags, so that everything is compiled once

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

# Temporary files go to memory where there is enough of it: the tests' databases
# wait for the disk otherwise. The name is the same each time, because results
# of tests are cached by it; whoever ends last removes it.
scratch=
if [ "$(stat -fc %T /dev/shm 2>/dev/null)" = tmpfs ] && [ "$(df --output=avail -k /dev/shm | tail -n1)" -gt 4000000 ]; then
	scratch=/dev/shm/cairn-$(id -u)-$(pwd | cksum | cut -d' ' -f1)
	mkdir -p -m 755 $scratch # other users start there too: postgres, frr
	exec {scratch_lock}<$scratch
	flock -s $scratch_lock
	export TMPDIR=$scratch
fi
clean() {
	scripts/sweep.sh
	if [ -n "$scratch" ] && flock -xn $scratch_lock; then rm -rf $scratch; fi
}
trap clean EXIT
trap 'echo "interrupted: cleaning up" >&2; exit 130' INT TERM

# Files, folders and tests of a ring: those behind its build tag.
files() { git ls-files --cached --others --exclude-standard '*_test.go' | xargs grep -lE "^//go:build $1\$"; }
folders() { xargs -n1 dirname | sort -u | sed 's,^,./,'; }
tests() { printf '^(%s)$' "$(xargs awk "$1" | paste -sd'|')"; }
all='match($0, /^func Test[A-Za-z0-9_]+/) && !/TestMain/ { print substr($0, 6, RLENGTH-5) }'

# The tests of these folders that do not begin with t.Parallel() judge times, or
# lose requests when the machine is busy, and so have it for themselves.
judges='^(test/e2e|dataplane/speaker)/'
alone='name != "" { if (!/t\.Parallel\(\)/) print name; name = "" } match($0, /^func Test[A-Za-z0-9_]+/) && !/TestMain/ { name = substr($0, 6, RLENGTH-5) }'

# The checks have run vet. Lines of verbose tests carry package and test, since
# several run at a time.
gotest() { go test -vet=off "$@"; }
verbose() {
	local log status=0
	log=$(mktemp)
	gotest -json "$@" | jq -rR --unbuffered '
		(fromjson? // {Action: "output", Output: .}) | select(.Action == "output" or .Action == "build-output")
		| (.Output | rtrimstr("\n")) as $line
		| select($line | test("^$|^=== |^PASS$|^ *--- PASS.*\\(0\\.0|lab: (network|control|daemons|settled)") | not)
		| if .Test == null then $line else (.Package | sub("^cairn/"; "")) + " "
			+ if $line | test("^ *--- ") then $line else .Test + ": " + ($line | sub("^ +"; "")) end end' | tee "$log" || status=$?
	if [ $status != 0 ] && grep -q -e '--- FAIL' "$log"; then
		printf '\nfailed:\n'
		grep -e '--- FAIL' "$log"
	fi >&2
	rm -f "$log"
	return $status
}

# both runs the second also when the first has failed, and fails if either has.
both() {
	local failed=0
	eval "$1" || failed=1
	eval "$2" || failed=1
	return $failed
}

# The race detector slows the database, which is Go too, tenfold: packages whose
# tests open one run without it. `make race` runs all of them with it. More
# packages than there are cores run at a time, since some wait.
pure() {
	local with without
	without=$(go list -test -f '{{if .ForTest}}{{.ForTest}} {{.Deps}}{{end}}' ./... | awk '/ modernc\.org\/sqlite / {print $1}' | sort -u)
	with=$(go list ./... | grep -vxF "$without")
	both 'CGO_ENABLED=1 gotest -race -p 4 -timeout 10m $with 2>&1 | { grep -v "no test files" || true; }' \
		'gotest -p 4 -timeout 10m $without'
}
program() { gotest -tags program -p 2 -timeout 10m -run "$(files program | tests "$all")" $(files program | folders); }
lab() {
	local one_by_one
	one_by_one=$(files lab | grep -E "$judges" | tests "$alone")
	both 'verbose -tags lab -p 2 -parallel 4 -count=1 -timeout 20m -run "$(files lab | tests "$all")" -skip "$one_by_one" $(files lab | folders)' \
		'verbose -tags lab -p 2 -count=1 -timeout 20m -run "$one_by_one" $(files lab | grep -E "$judges" | folders)'
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
