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

trap scripts/sweep.sh EXIT
trap 'echo "interrupted: cleaning up" >&2; exit 130' INT TERM

# Files, folders and tests of a ring: those behind its build tag.
files() { git ls-files --cached --others --exclude-standard '*_test.go' | xargs grep -lE "^//go:build $1\$"; }
folders() { files "$1" | xargs -n1 dirname | sort -u | sed 's,^,./,'; }
tests() { printf '^(%s)$' "$(files "$1" | xargs grep -hoE '^func Test[A-Za-z0-9_]+' | grep -v TestMain | cut -c6- | paste -sd'|')"; }
verbose() { go test -v "$@" 2>&1 | grep --line-buffered -vE '^(=== (RUN|PAUSE|CONT|NAME)|\s*--- PASS.*\(0\.0)'; }

# The race detector slows the database, which is Go too, tenfold: packages whose
# tests open one run without it. `make race` runs all of them with it.
pure() {
	local with without
	without=$(go list -test -f '{{if .ForTest}}{{.ForTest}} {{.Deps}}{{end}}' ./... | awk '/ modernc\.org\/sqlite / {print $1}' | sort -u)
	with=$(go list ./... | grep -vxF "$without")
	CGO_ENABLED=1 go test -race -timeout 10m $with 2>&1 | { grep -v 'no test files' || true; } &&
		go test -timeout 10m $without
}
program() { go test -tags program -p 1 -timeout 10m -run "$(tests program)" $(folders program); }
lab() { verbose -tags lab -p 1 -count=1 -timeout 20m -run "$(tests lab)" $(folders lab); }
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
