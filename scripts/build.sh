#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds every command and the demo into bin/, statically.
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p bin
CGO_ENABLED=0 go build -o bin/ ./cmd/... ./test/demo
