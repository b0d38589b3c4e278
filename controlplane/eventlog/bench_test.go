// SPDX-License-Identifier: Apache-2.0

package eventlog

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"
)

// BenchmarkOfferAndWrite is what an event costs from the stream to the file, with
// a sync a second.
func BenchmarkOfferAndWrite(b *testing.B) {
	l, err := Open(Config{Folder: b.TempDir(), MaxBytes: 256 << 20, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	page := flows(0, 500)
	began, synced := time.Now(), time.Now()
	for b.Loop() {
		if l.Offer(page) != len(page) {
			b.Fatal("full")
		}
		l.write()
		if time.Since(synced) > syncGap {
			l.sync()
			synced = time.Now()
		}
	}
	l.sync()
	took := time.Since(began)
	b.ReportMetric(float64(l.Stats.Written.Load())/took.Seconds(), "events/s")
	b.ReportMetric(float64(l.writer.to.size.Load())/float64(l.writer.next-l.writer.to.base), "B/event")
}

// BenchmarkFollow is what an event costs a reader, such as a relay.
func BenchmarkFollow(b *testing.B) {
	l, err := Open(Config{Folder: b.TempDir(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	l.put(flows(0, 200_000))
	over := errors.New("over")
	began, read := time.Now(), 0
	for b.Loop() {
		_ = Follow(context.Background(), l, 0, 1000, func(page []Event) error {
			if read += len(page); page[len(page)-1].Offset == 199_999 {
				return over
			}
			return nil
		})
	}
	b.ReportMetric(float64(read)/time.Since(began).Seconds(), "events/s")
}

// BenchmarkLatest is a customer's question for the last 100 flows of one of three
// instances in a full log, the first time and later.
func BenchmarkLatest(b *testing.B) {
	l, err := Open(Config{Folder: b.TempDir(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	l.put(flows(0, 400_000))
	all := func(*Event) bool { return true }
	rare := flow(0)
	rare.Instance = "rare"
	l.put([]Event{rare})
	l.put(flows(0, 400_000))
	for _, s := range l.segments.list[:len(l.segments.list)-1] {
		s.index = nil
	}
	began := time.Now()
	if got, err := l.Latest("rare", 100, all); err != nil || len(got) != 1 {
		b.Fatal(len(got), err)
	}
	first := time.Since(began)
	for b.Loop() {
		if got, err := l.Latest(instance(1), 100, all); err != nil || len(got) != 100 {
			b.Fatal(len(got), err)
		}
	}
	b.ReportMetric(float64(first.Milliseconds()), "ms/first")
}
