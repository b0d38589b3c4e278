// SPDX-License-Identifier: Apache-2.0

package traffic

import (
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"cairn/cloud/meter"
	"cairn/controlplane/dist"
	"cairn/controlplane/eventlog"
	"cairn/controlplane/replica"
	"cairn/controlplane/store"

	"cairn/cloud"
)

func benchTraffic(b *testing.B, instances int) *Traffic {
	b.Helper()
	quiet := slog.New(slog.DiscardHandler)
	events, err := eventlog.Open(eventlog.Config{Folder: b.TempDir(), Queue: 1 << 40, Log: quiet})
	if err != nil {
		b.Fatal(err)
	}
	r, err := replica.New()
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(r.Close)
	rows := replica.Rows{Revision: 1, Groups: []*replica.Group{{ID: group, Body: store.SecurityGroupDoc{Number: 3, RuleNumbers: map[cloud.ID]uint32{rule: 7}}}}}
	for n := range instances {
		rows.Instances = append(rows.Instances, instanceOf(n+2, "a"))
	}
	r.Commit(rows)
	now := noon
	t, err := New(Config{
		Zone: "z", Events: events, Snapshot: r.Snapshot, File: filepath.Join(b.TempDir(), "usage.json"), Log: quiet,
		Now: func() time.Time { now = now.Add(100 * time.Millisecond); return now },
	})
	if err != nil {
		b.Fatal(err)
	}
	return t
}

// BenchmarkFlows is what a message of 500 flows costs the goroutine that reads a
// host's stream.
func BenchmarkFlows(b *testing.B) {
	t := benchTraffic(b, 1000)
	batch := dist.FlowBatch{}
	for n := range 500 {
		f := flow(uint32(n+2), dist.FlowOpened)
		f.Rule = 7
		batch.Flows = append(batch.Flows, f)
	}
	for b.Loop() {
		t.Flows("hv1", batch)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/500, "ns/flow")
}

// BenchmarkUsage is what the counters of a host's 1,000 ports cost, and
// BenchmarkKeep what it costs to keep those of 100,000.
func BenchmarkUsage(b *testing.B) {
	t := benchTraffic(b, 1000)
	var ports []dist.PortUsage
	for n := range 1000 {
		ports = append(ports, counted(uint32(n+2), uint64(n)))
	}
	for b.Loop() {
		t.Usage("hv1", "boot", t.cfg.Now(), ports)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/1000, "ns/port")
}

func BenchmarkKeep(b *testing.B) {
	t := benchTraffic(b, 1)
	for n := range 100_000 {
		t.meter.Take(meter.Report{Resource: id(n), Org: "a", Port: uint32(n), Boot: "hv1/boot", At: noon, Counters: meter.Counters{BytesIn: 5}})
	}
	for b.Loop() {
		if err := t.keep(); err != nil {
			b.Fatal(err)
		}
	}
	began := time.Now()
	t.mu.Lock()
	_ = t.meter.State()
	t.mu.Unlock()
	b.ReportMetric(float64(time.Since(began).Microseconds())/1000, "ms/locked")
}
