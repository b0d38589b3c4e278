// SPDX-License-Identifier: Apache-2.0

package meter

import (
	"encoding/json"
	"fmt"
	"math/rand"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"cairn/cloud"
)

var noon = time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)

func at(text string) time.Time {
	d, err := time.ParseDuration(text)
	if err != nil {
		panic(err)
	}
	return noon.Add(d)
}

func report(when string, boot string, bytes uint64) Report {
	return Report{
		Resource: "i", Org: "org", Port: 1, Boot: boot, At: at(when),
		Counters: Counters{PacketsIn: bytes / 100, BytesIn: bytes, PacketsOut: 1, BytesOut: 2 * bytes},
	}
}

// sums are bytes in by window, in hours since noon.
func sums(list []Usage) map[int]uint64 {
	out := map[int]uint64{}
	for _, u := range list {
		out[int(u.Start.Sub(noon)/time.Hour)] += u.BytesIn
	}
	return out
}

func TestWindows(t *testing.T) {
	tests := []struct {
		what    string
		reports []Report
		said    []Verdict
		want    map[int]uint64
	}{
		{"the first report counts from 0", []Report{report("1m", "a", 700)}, []Verdict{Counted}, map[int]uint64{0: 700}},
		{
			"what was counted from one report to the next is of the later one's window",
			[]Report{report("1m", "a", 100), report("59m", "a", 300), report("61m", "a", 1000), report("121m", "a", 1001)},
			[]Verdict{Counted, Counted, Counted, Counted},
			map[int]uint64{0: 300, 1: 700, 2: 1},
		},
		{
			"twice is once",
			[]Report{report("1m", "a", 100), report("1m", "a", 100), report("2m", "a", 100)},
			[]Verdict{Counted, Stale, Counted},
			map[int]uint64{0: 100},
		},
		{
			"late is in time",
			[]Report{report("61m", "a", 1000), report("59m", "a", 300), report("58m", "a", 200)},
			[]Verdict{Counted, Counted, Stale},
			map[int]uint64{0: 300, 1: 700},
		},
		{
			"another boot begins at 0",
			[]Report{report("1m", "a", 100), report("2m", "b", 900), report("3m", "b", 1000)},
			[]Verdict{Counted, Counted, Counted},
			map[int]uint64{0: 1100},
		},
		{
			"the boot before is heard of after the next one",
			[]Report{report("1m", "a", 100), report("3m", "b", 50), report("2m", "a", 130)},
			[]Verdict{Counted, Counted, Counted},
			map[int]uint64{0: 180},
		},
		{
			"lower counters have begun anew",
			[]Report{report("1m", "a", 100), report("2m", "a", 40), report("61m", "a", 60)},
			[]Verdict{Counted, Reset, Counted},
			map[int]uint64{0: 140, 1: 20},
		},
		{
			"late, of before they began anew",
			[]Report{report("1m", "a", 100), report("61m", "a", 40), report("59m", "a", 110), report("60m", "a", 110)},
			[]Verdict{Counted, Reset, Abandoned, Stale},
			map[int]uint64{0: 100, 1: 40},
		},
		{"nothing used is no sum", []Report{{Resource: "i", At: noon}}, []Verdict{Counted}, map[int]uint64{}},
	}
	for _, test := range tests {
		m := New(noon, time.Hour, time.Minute)
		for i, r := range test.reports {
			if got := m.Take(r); got != test.said[i] {
				t.Errorf("%s: report %d: verdict %d, want %d", test.what, i, got, test.said[i])
			}
		}
		if open := sums(m.Open("i")); !reflect.DeepEqual(open, test.want) && len(test.want) > 0 {
			t.Errorf("%s: open %v, want %v", test.what, open, test.want)
		}
		if got := sums(m.Close(at("5h"))); !reflect.DeepEqual(got, test.want) {
			t.Errorf("%s: %v, want %v", test.what, got, test.want)
		}
		if again := m.Close(at("9h")); len(again) != 0 {
			t.Errorf("%s: closed again: %v", test.what, again)
		}
	}
}

func TestAWindowIsClosedOnceAndLate(t *testing.T) {
	m := New(noon, time.Hour, time.Minute)
	m.Take(report("1m", "a", 100))
	if got := m.Close(at("60m59s")); got != nil {
		t.Errorf("closed before its grace is over: %v", got)
	}
	first := m.Close(at("61m"))
	if len(first) != 1 || first[0].ID != UsageID("i", Network, noon) || first[0].Start != noon || first[0].End != at("1h") ||
		first[0].Counters != (Counters{1, 100, 1, 200}) || first[0].Org != "org" || first[0].Resource != "i" {
		t.Fatalf("closed %+v", first)
	}
	// What comes of it afterwards is nothing new, or of the next one.
	if got := m.Take(report("1m", "a", 100)); got != Stale {
		t.Errorf("again: %d", got)
	}
	m.Take(report("50m", "a", 130))
	if got := sums(m.Close(at("3h"))); !reflect.DeepEqual(got, map[int]uint64{1: 30}) {
		t.Errorf("too late: %v", got)
	}
}

func TestALostStateIsNotBilledAgain(t *testing.T) {
	m := New(noon, time.Hour, 0)
	m.Blind(at("5m"))
	m.Take(report("1m", "a", 5000))
	m.Take(report("2m", "a", 5010))
	fresh := report("6m", "a", 70)
	fresh.Port = 2
	m.Take(fresh)
	if got := sums(m.Close(at("1h"))); !reflect.DeepEqual(got, map[int]uint64{0: 80}) {
		t.Errorf("got %v", got)
	}
}

func TestLivesAreForgotten(t *testing.T) {
	m := New(noon, time.Hour, 0)
	for i := range 50 {
		m.Take(report(fmt.Sprintf("%ds", 2*i), "a", 100))
		m.Take(report(fmt.Sprintf("%ds", 2*i+1), "a", 50)) // it begins anew each time
	}
	m.Take(report("200s", "b", 1))
	if got := len(m.State().Lives); got != 2 {
		t.Errorf("%d lives, want one a boot", got)
	}
	m = Restore(m.State(), time.Hour, 0)
	if got := sums(m.Open("i")); got[0] != 50*100+50+1 {
		t.Errorf("so far %d bytes in", got[0])
	}
	if got := sums(m.Close(at("2h"))); got[0] != 50*100+50+1 || len(m.State().Ended) != 0 {
		t.Errorf("%d bytes in, %d sums left", got[0], len(m.State().Ended))
	}
	m.Close(at("30h"))
	if got := len(m.State().Lives); got != 1 {
		t.Errorf("%d lives a day later", got)
	}
	m.Close(at("1000h"))
	if got := len(m.State().Lives); got != 0 {
		t.Errorf("%d lives after six weeks of silence", got)
	}
}

// A host may say of each report that it has booted: what it says is counted, but
// remembered within bounds.
func TestBootsWithoutEnd(t *testing.T) {
	m := New(noon, time.Hour, 0)
	for i := range 500 {
		m.Take(report(fmt.Sprintf("%ds", 10*i), fmt.Sprint(i), 100)) // into the second hour
	}
	if s := m.State(); len(s.Lives) > mostLives || len(s.Ended) != 2 {
		t.Errorf("%d lives and %d sums are remembered", len(s.Lives), len(s.Ended))
	}
	if got := sums(m.Close(at("2h"))); got[0] != 36000 || got[1] != 14000 {
		t.Errorf("bytes in: %v", got)
	}
}

func TestWindowsOfAnotherLength(t *testing.T) {
	m := New(noon, time.Hour, 0)
	m.Take(report("10m", "a", 100))
	m.Take(report("10m5s", "a", 10)) // begins anew
	m = Restore(m.State(), time.Minute, 0)
	m.Take(report("11m", "a", 60))
	total := uint64(0)
	for _, u := range m.Close(at("2h")) {
		total += u.BytesIn
	}
	if total != 160 {
		t.Errorf("%d bytes", total)
	}
}

// history is what one interface did and what was reported of it, in order.
type history struct {
	reports []Report
	truth   map[int64]Counters // by start of the window, in Unix seconds, of the reports in it
	total   Counters
}

// draw a history of boots. Within a boot counters only rise, unless resets says
// that they may begin anew too.
func draw(t *rapid.T, resource cloud.ID, port uint32, resets bool) history {
	h := history{truth: map[int64]Counters{}}
	when, boot := noon, 0
	var now Counters
	for range rapid.IntRange(1, 40).Draw(t, "reports") {
		when = when.Add(time.Duration(rapid.IntRange(1, 1500).Draw(t, "pause")) * time.Second)
		switch rapid.IntRange(0, 9).Draw(t, "event") {
		case 0:
			boot, now = boot+1, Counters{}
		case 1:
			if resets && now != (Counters{}) {
				now = Counters{} // and less is counted until the next report than before
				h.add(&now, resource, port, boot, when, Counters{})
				continue
			}
		}
		h.add(&now, resource, port, boot, when, Counters{
			PacketsIn: rapid.Uint64Range(0, 9).Draw(t, "packets in"), BytesIn: rapid.Uint64Range(0, 9000).Draw(t, "bytes in"),
			PacketsOut: rapid.Uint64Range(0, 9).Draw(t, "packets out"), BytesOut: rapid.Uint64Range(0, 9000).Draw(t, "bytes out"),
		})
	}
	return h
}

func (h *history) add(now *Counters, resource cloud.ID, port uint32, boot int, when time.Time, more Counters) {
	*now = now.Add(more)
	h.total = h.total.Add(more)
	window := when.Truncate(time.Hour).Unix()
	h.truth[window] = h.truth[window].Add(more)
	h.reports = append(h.reports, Report{
		Resource: resource, Org: "org", Port: port, Boot: fmt.Sprint(boot), At: when, Counters: *now,
	})
}

// ledger is what was told of windows, by id; telling one twice must not change it.
type ledger map[string]Usage

func (l ledger) tell(t *rapid.T, list []Usage) {
	for _, u := range list {
		if had, told := l[u.ID]; told && had != u {
			t.Fatalf("window %s was told as %+v and as %+v", u.ID, had, u)
		}
		l[u.ID] = u
		for _, n := range []uint64{u.PacketsIn, u.BytesIn, u.PacketsOut, u.BytesOut} {
			if n > 1<<40 {
				t.Fatalf("a sum below 0: %+v", u)
			}
		}
	}
}

func (l ledger) total() (sum Counters) {
	for _, u := range l {
		sum = sum.Add(u.Counters)
	}
	return sum
}

// TestAnyOrderGivesEachWindowOnce: while windows are open, reports may come in
// any order and any number of times.
func TestAnyOrderGivesEachWindowOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		one, other := draw(t, "i", 1, false), draw(t, "i", 2, false)
		reports := slices.Concat(one.reports, other.reports)
		for range rapid.IntRange(0, 20).Draw(t, "repeated") {
			reports = append(reports, rapid.SampledFrom(reports).Draw(t, "again"))
		}
		shuffle := rand.New(rand.NewSource(rapid.Int64().Draw(t, "order")))
		shuffle.Shuffle(len(reports), func(a, b int) { reports[a], reports[b] = reports[b], reports[a] })
		m := New(noon, time.Hour, 0)
		for i, r := range reports {
			m.Take(r)
			if i == len(reports)/2 {
				m = reopened(t, m.State())
			}
		}
		told := ledger{}
		told.tell(t, m.Close(noon.Add(1000*time.Hour)))
		for _, h := range []history{one, other} {
			for start, want := range h.truth {
				u := told[UsageID("i", Network, time.Unix(start, 0))]
				if want = one.truth[start].Add(other.truth[start]); u.Counters != want {
					t.Fatalf("window of %s: %+v, want %+v", time.Unix(start, 0).UTC(), u.Counters, want)
				}
			}
		}
		if got, want := told.total(), one.total.Add(other.total); got != want {
			t.Fatalf("in all %+v, want %+v", got, want)
		}
	})
}

// TestNothingIsBilledTwice: windows are closed while reports come, the state is
// kept now and then and the process killed, between any two steps. Every byte is
// in exactly one window, and a window that is told again is the same.
func TestNothingIsBilledTwice(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := draw(t, "i", 1, true)
		told := ledger{}
		m := New(noon, time.Hour, time.Minute)
		// What is kept: the state together with the sums that are still to be told.
		kept, untold := m.State(), []Usage(nil)
		crash := func() bool { return rapid.IntRange(0, 11).Draw(t, "crash") == 0 }
		restart := func() {
			m = reopened(t, kept)
			told.tell(t, untold)
		}
		for i, r := range h.reports {
			m.Take(r)
			if i > 0 && rapid.Bool().Draw(t, "repeat") {
				m.Take(h.reports[rapid.IntRange(max(0, i-3), i).Draw(t, "which")])
			}
			if crash() {
				restart()
				continue
			}
			if !rapid.Bool().Draw(t, "keep") {
				continue
			}
			closed := m.Close(r.At)
			if crash() { // before it is kept: nobody has been told
				restart()
				continue
			}
			kept, untold = m.State(), closed
			if crash() { // half told
				told.tell(t, closed[:rapid.IntRange(0, len(closed)).Draw(t, "told")])
				restart()
				continue
			}
			told.tell(t, closed)
		}
		last := h.reports[len(h.reports)-1]
		last.At = last.At.Add(time.Second)
		m.Take(last) // whoever counts goes on telling
		told.tell(t, m.Close(noon.Add(1000*time.Hour)))
		got, want := told.total(), h.total
		if !want.covers(got) {
			t.Fatalf("%+v were billed, %+v used", got, want)
		}
		// A crash forgets reports. The next one tells the same, unless the counters
		// have begun anew in between.
		if boots := countLives(h); boots == 1 && got != want {
			t.Fatalf("%+v were billed, %+v used", got, want)
		}
	})
}

func countLives(h history) int {
	lives := 1
	for i := 1; i < len(h.reports); i++ {
		if h.reports[i].Boot != h.reports[i-1].Boot || !h.reports[i].covers(h.reports[i-1].Counters) {
			lives++
		}
	}
	return lives
}

// reopened is a meter after the process was ended and its state read again.
func reopened(t *rapid.T, s State) *Meter {
	text, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	var back State
	if err := json.Unmarshal(text, &back); err != nil {
		t.Fatal(err)
	}
	return Restore(back, time.Hour, time.Minute)
}
