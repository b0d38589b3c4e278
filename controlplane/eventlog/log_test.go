// SPDX-License-Identifier: Apache-2.0

package eventlog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"cairn/cloud"
)

var noon = time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)

func instance(n int) cloud.ID { return cloud.ID(fmt.Sprintf("0b6eb34a-0000-4000-8000-%012d", n)) }

// flow number n, of instance n % 3.
func flow(n int) Event {
	return Event{
		Time: noon.Add(time.Duration(n) * time.Second), Kind: FlowOpened, Zone: "z", Host: "hv1", Org: "org", Instance: instance(n % 3), Port: 7,
		Flow: &cloud.Flow{
			At: noon, Event: cloud.FlowOpened, Direction: cloud.Ingress, Protocol: "tcp", Source: netip.MustParseAddr("192.0.2.1"),
			SourcePort: uint16(n), Destination: netip.MustParseAddr("198.51.100.1"), DestinationPort: 80, Rule: &cloud.FlowRule{Number: 9},
		},
	}
}

func flows(from, to int) (out []Event) {
	for n := from; n < to; n++ {
		out = append(out, flow(n))
	}
	return out
}

// T is a testing.T or a rapid.T.
type T interface {
	Helper()
	Fatal(...any)
	Fatalf(string, ...any)
}

func open(t T, cfg Config) *Log {
	t.Helper()
	cfg.Log = slog.New(slog.DiscardHandler)
	l, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// all that a reader finds, and that the offsets ascend.
func all(t T, r Reader) (out []Event) {
	t.Helper()
	for from := uint64(0); ; {
		page, next, err := r.Read(from, 7)
		if err != nil {
			t.Fatal(err)
		}
		if len(page) == 0 {
			return out
		}
		for _, e := range page {
			if e.Offset < from {
				t.Fatalf("offset %d behind %d", e.Offset, from)
			}
			from = e.Offset + 1
		}
		if next != from {
			t.Fatalf("goes on at %d, the last one was %d", next, from-1)
		}
		out = append(out, page...)
	}
}

// ports are the numbers of flows.
func ports(events []Event) (out []int) {
	for _, e := range events {
		out = append(out, int(e.Flow.SourcePort))
	}
	return out
}

func numbers(from, to int) (out []int) {
	for n := from; n < to; n++ {
		out = append(out, n)
	}
	return out
}

func TestWhatIsWrittenIsRead(t *testing.T) {
	folder := t.TempDir()
	l := open(t, Config{Folder: folder, SegmentBytes: 4 << 10})
	written := flows(0, 100)
	l.put(written)
	for _, r := range []Reader{l, Folder(folder)} {
		got := all(t, r)
		if len(got) != 100 || got[99].Offset != 99 {
			t.Fatalf("%T: %d events", r, len(got))
		}
		for i := range got {
			if !reflect.DeepEqual(got[i], written[i]) {
				t.Fatalf("%T: event %d:\n got %+v\nwant %+v", r, i, got[i], written[i])
			}
		}
		for from := range uint64(101) {
			page, next, err := r.Read(from, 1)
			if err != nil || from < 100 && (len(page) != 1 || page[0].Offset != from || next != from+1) || from == 100 && (len(page) != 0 || next != 100) {
				t.Fatalf("%T: from %d: %d events, next %d, %v", r, from, len(page), next, err)
			}
		}
	}
	if n := len(l.segments.list); n < 5 {
		t.Errorf("%d segments: the test is about several", n)
	}
	if page, next, _ := l.Read(1000, 10); len(page) != 0 || next != 100 {
		t.Errorf("behind the end: %d events, next %d", len(page), next)
	}
}

// TestTornAtEveryByte: whatever a killed process has left of its last write, what
// is whole is read, the rest is cut and counted, and the log goes on.
func TestTornAtEveryByte(t *testing.T) {
	folder := t.TempDir()
	l := open(t, Config{Folder: folder})
	l.put(flows(0, 3))
	path := l.writer.to.path
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for cut := range len(whole) + 1 {
		for _, tail := range []string{"", "\x00\x00\x00\x00", "garbage\n"} {
			if err := os.WriteFile(path, append(slices.Clone(whole[:cut]), tail...), 0o600); err != nil {
				t.Fatal(err)
			}
			lines := bytes.Count(whole[:cut], []byte("\n"))
			rest := cut - bytes.LastIndexByte(whole[:cut], '\n') - 1 + len(tail)
			if tail == "garbage\n" && cut < len(whole) && whole[cut] == '\n' {
				continue // it completes nothing: the line is whole but for its end
			}
			l := open(t, Config{Folder: folder})
			if got := l.Stats.Torn.Load(); got != uint64(rest) {
				t.Fatalf("cut at %d of %d, tail %q: %d bytes torn, want %d", cut, len(whole), tail, got, rest)
			}
			l.put(flows(lines, lines+2))
			if got := ports(all(t, l)); !slices.Equal(got, numbers(0, lines+2)) {
				t.Fatalf("cut at %d, tail %q: read %v", cut, tail, got)
			}
			if l.Stats.Damaged.Load() != 0 {
				t.Fatalf("cut at %d, tail %q: damaged lines stay", cut, tail)
			}
			l.Close()
		}
	}
}

func TestADamagedLineCostsItself(t *testing.T) {
	folder := t.TempDir()
	l := open(t, Config{Folder: folder})
	l.put(flows(0, 50))
	path := l.writer.to.path
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := bytes.SplitAfter(text, []byte("\n"))
	lines[20][60] ^= 1
	lines[31] = append(bytes.Repeat([]byte("x"), 3*maxLine), '\n')
	if err := os.WriteFile(path, bytes.Join(lines, nil), 0o600); err != nil {
		t.Fatal(err)
	}
	l = open(t, Config{Folder: folder})
	want := slices.DeleteFunc(numbers(0, 50), func(n int) bool { return n == 20 || n == 31 })
	if got := ports(all(t, l)); !slices.Equal(got, want) {
		t.Errorf("read %v", got)
	}
	if l.Stats.Damaged.Load() == 0 || l.Stats.Torn.Load() != 0 {
		t.Errorf("damaged %d, torn %d", l.Stats.Damaged.Load(), l.Stats.Torn.Load())
	}
	for _, from := range []uint64{20, 31} {
		if page, _, err := l.Read(from, 1); err != nil || len(page) != 1 || page[0].Offset != from+1 {
			t.Errorf("from the damaged %d: %v, %v", from, page, err)
		}
	}
	// Damage at the end of what is no longer written to holds no reader up.
	if err := os.WriteFile(path, append(bytes.Join(lines[:30], nil), bytes.Repeat([]byte("y\n"), 20)...), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, next, err := l.Read(40, 10); err != nil || next != 50 {
		t.Errorf("next %d, %v", next, err)
	}
}

func TestAFullQueueIsCounted(t *testing.T) {
	l := open(t, Config{Folder: t.TempDir(), Queue: 10})
	for _, c := range []struct{ offered, taken int }{{4, 4}, {4, 4}, {4, 2}, {4, 0}} {
		if got := l.Offer(flows(0, c.offered)); got != c.taken {
			t.Errorf("%d offered, %d taken, want %d", c.offered, got, c.taken)
		}
	}
	ctx, stop := context.WithCancel(t.Context())
	stop()
	l.Run(ctx)
	if l.Stats.Full.Load() != 6 || l.Stats.Written.Load() != 10 || len(all(t, l)) != 10 {
		t.Errorf("full %d, written %d", l.Stats.Full.Load(), l.Stats.Written.Load())
	}
	if l.Offer(flows(0, 1)) != 0 {
		t.Error("taken after the end")
	}
	if err := l.Append(t.Context(), flows(0, 1)); err == nil {
		t.Error("appended after the end")
	}
}

// TestAFullDisk: what cannot be written is counted as lost, offsets stay without
// a gap, and the log goes on when there is room again.
func TestAFullDisk(t *testing.T) {
	l := open(t, Config{Folder: t.TempDir()})
	l.put(flows(0, 5))
	file := l.writer.file
	full, err := os.OpenFile("/dev/full", os.O_RDWR, 0)
	if err != nil {
		t.Skip("no /dev/full")
	}
	l.writer.file = full
	if err := l.put(flows(5, 8)); err == nil {
		t.Error("written to a full disk")
	}
	l.writer.file = file
	big := flow(8)
	big.Flow.Reason = string(bytes.Repeat([]byte("r"), 2*maxLine))
	if err := l.put([]Event{flow(8), big, flow(9)}); err == nil {
		t.Error("an event that is too long was written")
	}
	got := all(t, l)
	if !slices.Equal(ports(got), []int{0, 1, 2, 3, 4, 8, 9}) || got[6].Offset != 6 {
		t.Errorf("read %v, the last at %d", ports(got), got[6].Offset)
	}
	if l.Stats.Failed.Load() != 3+1 || l.Stats.Written.Load() != 7 {
		t.Errorf("failed %d, written %d", l.Stats.Failed.Load(), l.Stats.Written.Load())
	}
}

func TestOldSegmentsGo(t *testing.T) {
	now := noon
	cfg := Config{Folder: t.TempDir(), SegmentBytes: 4 << 10, MaxBytes: 20 << 10, MaxAge: 8 * time.Hour, Now: func() time.Time { return now }}
	l := open(t, cfg)
	for n := range 200 {
		l.put(flows(n, n+1))
	}
	var size int64
	for _, s := range l.segments.list {
		size += s.size.Load()
	}
	got := all(t, l)
	if size > cfg.MaxBytes || size < cfg.MaxBytes/2 || len(got) == 200 || got[len(got)-1].Offset != 199 {
		t.Errorf("%d bytes, events %d to %d", size, got[0].Offset, got[len(got)-1].Offset)
	}
	if !slices.Equal(ports(got), numbers(int(got[0].Offset), 200)) {
		t.Errorf("read %v", ports(got))
	}
	now = now.Add(2 * time.Hour)
	l.put(flows(200, 201)) // in a segment of its own
	now = now.Add(7 * time.Hour)
	l.trim()
	if got := all(t, l); !slices.Equal(ports(got), []int{200}) {
		t.Errorf("after the others have become too old: %v", ports(got))
	}
	files, _ := filepath.Glob(filepath.Join(cfg.Folder, "*"))
	if len(files) != len(l.segments.list) {
		t.Errorf("%d files of %d segments", len(files), len(l.segments.list))
	}
}

func TestEventsOfAnInstance(t *testing.T) {
	folder := t.TempDir()
	cfg := Config{Folder: folder, SegmentBytes: 4 << 10}
	l := open(t, cfg)
	l.put(flows(0, 60))
	l.Close()
	l = open(t, cfg) // its older segments have no index
	l.put(flows(60, 90))
	third := func(n int) bool { return n%3 == 1 }
	keep := func(e *Event) bool { return e.Flow.SourcePort%2 == 1 }
	var want []int
	for n := range 90 {
		if third(n) && n%2 == 1 {
			want = append(want, n)
		}
	}
	for most := 1; most < 20; most++ {
		got, err := l.Latest(instance(1), most, keep)
		if err != nil || !slices.Equal(ports(got), want[max(0, len(want)-most):]) {
			t.Fatalf("latest %d: %v, %v, want of %v", most, ports(got), err, want)
		}
		for from := range 91 {
			rest := slices.DeleteFunc(slices.Clone(want), func(n int) bool { return n < from })
			got, err := l.From(instance(1), uint64(from), most, keep)
			if err != nil || !slices.Equal(ports(got), rest[:min(most, len(rest))]) {
				t.Fatalf("from %d, %d: %v, %v, want of %v", from, most, ports(got), err, rest)
			}
		}
	}
	if got, err := l.Latest("of nobody", 10, keep); err != nil || len(got) != 0 {
		t.Errorf("of nobody: %v, %v", got, err)
	}
}

// Who reads on does not pay for what was before.
func TestReadingOnIsShort(t *testing.T) {
	l := open(t, Config{Folder: t.TempDir()})
	l.put(flows(0, 3000))
	for _, from := range []uint64{0, 1, 1500, 2990, 3000} {
		read, before := 0, 0
		err := l.writer.to.each(instance(1), from, false, func(e Event) bool {
			if read++; e.Offset < from {
				before++
			}
			return true
		})
		if want := int(3000-from) / 3; err != nil || read-before < want || before > 20 {
			t.Errorf("from %d: %d events of %d, and %d before them: %v", from, read-before, want, before, err)
		}
	}
}

// TestFollowersMissNothing: several readers follow while two write and old
// segments stay.
func TestFollowersMissNothing(t *testing.T) {
	const each = 3000
	folder := t.TempDir()
	l := open(t, Config{Folder: folder, SegmentBytes: 64 << 10, Queue: 2 * each})
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { l.Run(ctx) })
	done := errors.New("done")
	for _, r := range []Reader{l, l, Folder(folder)} {
		wg.Go(func() {
			seen := uint64(0)
			err := Follow(t.Context(), r, 0, 100, func(page []Event) error {
				for _, e := range page {
					if e.Offset != seen {
						return fmt.Errorf("offset %d, want %d", e.Offset, seen)
					}
					seen++
				}
				if seen == 2*each+10 {
					return done
				}
				return nil
			})
			if !errors.Is(err, done) {
				t.Errorf("%T: %v after %d", r, err, seen)
			}
		})
	}
	var writers sync.WaitGroup
	for range 2 {
		writers.Go(func() {
			for n := range each {
				l.Offer(flows(n, n+1))
			}
		})
	}
	if err := l.Append(t.Context(), flows(0, 10)); err != nil {
		t.Error(err)
	}
	writers.Wait()
	timeout := time.AfterFunc(20*time.Second, stop)
	defer timeout.Stop()
	if err := l.Wait(t.Context(), 2*each+9); err != nil {
		t.Error(err)
	}
	stop()
	wg.Wait()
	if n := l.Stats.Full.Load(); n != 0 {
		t.Errorf("%d lost", n)
	}
}

// TestAnyLife: writes, restarts with torn ends, and reads, beside a list.
func TestAnyLife(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		folder, err := os.MkdirTemp("", "events")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(folder)
		cfg := Config{Folder: folder, SegmentBytes: 2 << 10}
		l := open(t, cfg)
		var want []int
		for range rapid.IntRange(1, 12).Draw(t, "steps") {
			n := rapid.IntRange(0, 20).Draw(t, "events")
			l.put(flows(len(want), len(want)+n))
			want = append(want, numbers(len(want), len(want)+n)...)
			if rapid.Bool().Draw(t, "killed") {
				if extra := rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "tail"); len(extra) > 0 {
					f, err := os.OpenFile(l.writer.to.path, os.O_WRONLY|os.O_APPEND, 0)
					if err != nil {
						t.Fatal(err)
					}
					f.Write(extra)
					f.Close()
				}
				l.Close()
				l = open(t, cfg)
			}
			if got := ports(all(t, l)); !slices.Equal(got, want) {
				t.Fatalf("read %v, want %v", got, want)
			}
		}
		l.Close()
	})
}
