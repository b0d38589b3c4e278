#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Everything that is judged without running the code: format, vet, static
# analysis, tidy modules, generated code equal to what the sources give. The
# laws of the tree are a test of the pure ring (test/arch). Two steps run at a
# time, the slow ones first; each says nothing unless it has something to say.
# usage: check.sh [STEP...]   all steps, or those named
set -euo pipefail
cd "$(dirname "$0")/.."
export CGO_ENABLED=0
tags=program,lab

quiet() { # quiet NAME COMMAND...: silent unless it prints or fails
	local name=$1 out
	shift
	if ! out=$("$@" 2>&1) || [ -n "$out" ]; then
		printf '%s:\n%s\n' "$name" "$out" >&2
		return 1
	fi
}

unformatted_go() { gofmt -l $(git ls-files '*.go' | grep -v '\.pb\.go$'); }

unformatted_c() {
	local files
	files=$(git ls-files '*.c' '*.h')
	[ -z "$files" ] || clang-format-19 --dry-run -Werror $files
}

regenerated() {
	local copy
	copy=$(mktemp -d)
	trap 'rm -rf "$copy"' RETURN
	git ls-files -z --cached --others --exclude-standard | xargs -0 -r ls -d 2>/dev/null | tar -cf - -T - | tar -xf - -C "$copy"
	(cd "$copy" && go generate ./... >/dev/null 2>"$copy/.generate.log") || { cat "$copy/.generate.log"; return 1; }
	local f
	for f in $(git ls-files '*.pb.go' '*_bpfel.go' '*_bpfel.o'); do
		cmp "$f" "$copy/$f" || echo "run make generate"
	done
}

# With an empty module cache it tells what it downloads, which is no difference.
tidied() {
	local out status=0
	out=$(go mod tidy -diff 2>&1) || status=$?
	grep -v '^go: downloading ' <<<"$out" || true
	return $status
}

step() {
	case $1 in
	staticcheck) quiet staticcheck go tool staticcheck -tags $tags ./... ;;
	generated) quiet "generated code differs" regenerated ;;
	vet) quiet "go vet" go vet -tags $tags ./... ;;
	fix) quiet "go fix would change" go fix -diff -tags $tags ./... ;;
	gofmt) quiet "gofmt would change" unformatted_go ;;
	clang-format) quiet "clang-format would change" unformatted_c ;;
	tidy) quiet "go mod tidy would change" tidied ;;
	*)
		echo "$0: step '$1' is not one of ${steps[*]}" >&2
		return 2
		;;
	esac
}

steps=(staticcheck generated vet fix gofmt clang-format tidy)
if [ $# = 1 ]; then
	step "$1"
else # xargs, since Ctrl-C reaches its children
	[ $# != 0 ] || set -- "${steps[@]}"
	printf '%s\n' "$@" | xargs -P 2 -n 1 ./scripts/check.sh
fi
