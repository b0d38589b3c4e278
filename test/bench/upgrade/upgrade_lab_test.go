// SPDX-License-Identifier: Apache-2.0

//go:build lab

package main

import (
	"testing"

	"github.com/cilium/ebpf/rlimit"

	"cairn/test/bench"
	"cairn/test/rig"
)

func TestMain(m *testing.M) { rig.TestAlone(m.Run) }

// Programs are replaced under traffic: nothing is lost, and nothing meets no
// program. The short form of the benchmark, with its control.
func TestUpgradeUnderTraffic(t *testing.T) {
	_ = rlimit.RemoveMemlock()
	b := upgradeBench{Report: &bench.Report{Out: t.Output()}, upgrades: 2}
	if err := b.run(t.TempDir()); err != nil {
		t.Fatal(err)
	}
	if !b.Close() {
		t.Error("a bar is missed")
	}
}
