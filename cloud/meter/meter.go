// SPDX-License-Identifier: Apache-2.0

// Package meter turns what counters say into what was used: the sums of
// resources in windows of an hour. It is pure: reports in, sums out, and a state
// that can be kept and gone on with. It knows nothing of prices and keeps
// nothing itself. Start at Meter.Take, then Meter.Close.
package meter

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"slices"
	"time"

	"cairn/cloud"
)

// Network is the meter of a resource's packets and bytes.
const Network = "network"

// Counters of an interface, as seen from its instance. Bytes are of IP.
type Counters struct {
	PacketsIn  uint64 `json:"packets-in"`
	BytesIn    uint64 `json:"bytes-in"`
	PacketsOut uint64 `json:"packets-out"`
	BytesOut   uint64 `json:"bytes-out"`
}

// Add the counters of o.
func (c Counters) Add(o Counters) Counters {
	return Counters{c.PacketsIn + o.PacketsIn, c.BytesIn + o.BytesIn, c.PacketsOut + o.PacketsOut, c.BytesOut + o.BytesOut}
}

// sub is what was counted since o, which c covers.
func (c Counters) sub(o Counters) Counters {
	return Counters{c.PacketsIn - o.PacketsIn, c.BytesIn - o.BytesIn, c.PacketsOut - o.PacketsOut, c.BytesOut - o.BytesOut}
}

// covers: no counter is lower than in o.
func (c Counters) covers(o Counters) bool {
	return c.PacketsIn >= o.PacketsIn && c.BytesIn >= o.BytesIn && c.PacketsOut >= o.PacketsOut && c.BytesOut >= o.BytesOut
}

// Report is what the counters of one interface of a resource are at a time.
// They count from 0 in each Boot of the host, and may begin anew within one.
type Report struct {
	Resource cloud.ID
	Org      cloud.ID
	Port     uint32
	Boot     string
	At       time.Time
	Counters
}

// Usage is what a resource has used in the window from Start to End. ID is the
// same whenever and wherever this window of the resource is closed.
type Usage struct {
	ID       string    `json:"id"`
	Resource cloud.ID  `json:"resource"`
	Org      cloud.ID  `json:"organization"`
	Meter    string    `json:"meter"`
	Start    time.Time `json:"start"`
	End      time.Time `json:"end"`
	Counters
}

// UsageID is the identity of a sum: of a meter of a resource in the window that
// begins at start.
func UsageID(resource cloud.ID, meter string, start time.Time) string {
	sum := sha256.Sum256([]byte(string(resource) + "\x00" + meter + "\x00" + start.UTC().Format(time.RFC3339)))
	return hex.EncodeToString(sum[:16])
}

// Verdict on a report.
type Verdict int

// Verdicts.
const (
	Counted   Verdict = iota
	Reset             // counted, from 0: the counters have begun anew
	Stale             // said nothing new
	Abandoned         // of counters that have begun anew since
)

// How long lives are remembered: one that was heard of last so long ago would be
// counted from 0 again.
const (
	remember = 30 * 24 * time.Hour
	replaced = 24 * time.Hour // of a boot before the last one
)

// mostLives of an interface are remembered: no host reboots more often in a day
// than its reports are worth it.
const mostLives = 16

// Meter is the sums of windows that are not closed yet. It is not safe for
// concurrent use.
type Meter struct {
	window, grace time.Duration
	until         time.Time         // windows before it are closed
	blind         time.Time         // counters that are met before it were counted by somebody who has forgotten it
	lives         map[key][]*life   // the last one begun is the last
	ended         map[sumKey]*Usage // of lives of which no report can come, in open windows
}

type key struct {
	resource cloud.ID
	port     uint32
}

// life of an interface's counters: from their beginning at 0 until they begin
// anew.
type life struct {
	Resource cloud.ID  `json:"resource"`
	Org      cloud.ID  `json:"organization"`
	Port     uint32    `json:"port"`
	Boot     string    `json:"boot"`
	Last     time.Time `json:"last"` // report
	Base     Counters  `json:"base"` // when the last closed window ended
	Marks    []mark    `json:"marks,omitempty"`
}

// mark is the last report in an open window.
type mark struct {
	Window time.Time `json:"window"`
	At     time.Time `json:"at"`
	Counters
}

// New makes a meter of windows of a length. A window is closed grace after its
// end: until then reports may be late.
func New(now time.Time, window, grace time.Duration) *Meter {
	return &Meter{window: window, grace: grace, until: now.UTC().Truncate(window), lives: map[key][]*life{}, ended: map[sumKey]*Usage{}}
}

// Blind says that an earlier state was lost: of counters that are met until then
// it is not known what was counted before, so nothing of it is counted again.
func (m *Meter) Blind(until time.Time) { m.blind = until.UTC() }

// Take a report. Reports may come late, in any order and more than once.
func (m *Meter) Take(r Report) Verdict {
	r.At = r.At.UTC()
	k := key{r.Resource, r.Port}
	l := newest(m.lives[k], r.Boot)
	verdict := Counted
	switch {
	case l == nil:
		l = m.begin(k, r)
		if r.At.Before(m.blind) {
			l.Base = r.Counters
		}
	case !r.At.After(l.Last):
		return m.late(l, r)
	case !r.covers(l.highest()):
		m.end(k, l)
		l, verdict = m.begin(k, r), Reset
	}
	l.Last, l.Org = r.At, r.Org
	window := m.windowOf(r.At)
	if n := len(l.Marks); n > 0 && !l.Marks[n-1].Window.Before(window) {
		l.Marks[n-1].At, l.Marks[n-1].Counters = r.At, r.Counters
	} else {
		l.Marks = append(l.Marks, mark{window, r.At, r.Counters})
	}
	return verdict
}

// newest life in a boot, nil if there is none.
func newest(lives []*life, boot string) *life {
	for _, l := range slices.Backward(lives) {
		if l.Boot == boot {
			return l
		}
	}
	return nil
}

func (m *Meter) begin(k key, r Report) *life {
	if lives := m.lives[k]; len(lives) >= mostLives {
		m.end(k, slices.MinFunc(lives, func(a, b *life) int { return a.Last.Compare(b.Last) }))
	}
	l := &life{Resource: r.Resource, Org: r.Org, Port: r.Port, Boot: r.Boot}
	m.lives[k] = append(m.lives[k], l)
	return l
}

// end a life: what it has counted in open windows stays. However often counters
// begin anew, no more is kept than that.
func (m *Meter) end(k key, l *life) {
	m.count(l, m.ended)
	m.lives[k] = slices.DeleteFunc(m.lives[k], func(o *life) bool { return o == l })
}

// count what a life has used in open windows.
func (m *Meter) count(l *life, sums map[sumKey]*Usage) {
	before := l.Base
	for _, at := range l.Marks {
		m.add(sums, l.Resource, l.Org, at.Window, at.sub(before))
		before = at.Counters
	}
}

// late takes a report that is older than one that came before it. It can only
// move a border between two open windows: what it counts, the later one has
// counted too, unless the counters began anew in between.
func (m *Meter) late(l *life, r Report) Verdict {
	window := r.At.Truncate(m.window)
	if window.Before(m.until) {
		return Stale
	}
	i, found := slices.BinarySearchFunc(l.Marks, window, func(k mark, w time.Time) int { return k.Window.Compare(w) })
	if found && !r.At.After(l.Marks[i].At) {
		return Stale
	}
	before, after := l.Base, l.highest()
	if i > 0 {
		before = l.Marks[i-1].Counters
	}
	next := i
	if found {
		before, next = l.Marks[i].Counters, i+1
	}
	if next < len(l.Marks) {
		after = l.Marks[next].Counters
	}
	switch {
	case !r.covers(before) || !after.covers(r.Counters):
		return Abandoned
	case found:
		l.Marks[i].At, l.Marks[i].Counters = r.At, r.Counters
	default:
		l.Marks = slices.Insert(l.Marks, i, mark{window, r.At, r.Counters})
	}
	return Counted
}

// highest that the counters have been.
func (l *life) highest() Counters {
	if n := len(l.Marks); n > 0 {
		return l.Marks[n-1].Counters
	}
	return l.Base
}

// windowOf a report: the one that it was made in or, if that is closed, the
// first that is not.
func (m *Meter) windowOf(at time.Time) time.Time {
	if window := at.Truncate(m.window); window.After(m.until) {
		return window
	}
	return m.until
}

// Close the windows that ended grace ago, and return their sums, each of which
// is final. A resource that used nothing has none.
func (m *Meter) Close(now time.Time) []Usage {
	until := now.UTC().Add(-m.grace).Truncate(m.window)
	if !until.After(m.until) {
		return nil
	}
	sums := map[sumKey]*Usage{}
	for k, u := range m.ended {
		if k.start.Before(until) {
			sums[k] = u
			delete(m.ended, k)
		}
	}
	for k, lives := range m.lives {
		for _, l := range lives {
			m.close(l, until, sums)
		}
		m.forget(k, now)
	}
	m.until = until
	out := make([]Usage, 0, len(sums))
	for _, u := range sums {
		if u.Counters != (Counters{}) {
			out = append(out, *u)
		}
	}
	slices.SortFunc(out, func(a, b Usage) int {
		return cmp.Or(a.Start.Compare(b.Start), cmp.Compare(a.Resource, b.Resource))
	})
	return out
}

type sumKey struct {
	resource cloud.ID
	start    time.Time
}

func (m *Meter) close(l *life, until time.Time, sums map[sumKey]*Usage) {
	for len(l.Marks) > 0 && l.Marks[0].Window.Before(until) {
		at := l.Marks[0]
		m.add(sums, l.Resource, l.Org, at.Window, at.sub(l.Base))
		l.Base, l.Marks = at.Counters, l.Marks[1:]
	}
}

func (m *Meter) add(sums map[sumKey]*Usage, resource, org cloud.ID, start time.Time, used Counters) {
	k := sumKey{resource, start}
	u := sums[k]
	if u == nil {
		u = &Usage{
			ID: UsageID(resource, Network, start), Resource: resource, Org: org, Meter: Network,
			Start: start, End: start.Add(m.window),
		}
		sums[k] = u
	}
	u.Counters = u.Add(used)
}

// forget lives that cannot go on, and those not heard of for too long.
func (m *Meter) forget(k key, now time.Time) {
	lives := m.lives[k]
	last := lives[len(lives)-1]
	var kept []*life
	for _, l := range lives {
		over := now.Sub(l.Last) > remember || l != last && now.Sub(l.Last) > replaced
		if len(l.Marks) > 0 || !over {
			kept = append(kept, l)
		}
	}
	if len(kept) == 0 {
		delete(m.lives, k)
		return
	}
	m.lives[k] = kept
}

// Open are the sums of a resource so far, of the windows that are not closed.
func (m *Meter) Open(resource cloud.ID) []Usage {
	sums := map[sumKey]*Usage{}
	for k, lives := range m.lives {
		if k.resource != resource {
			continue
		}
		for _, l := range lives {
			m.count(l, sums)
		}
	}
	for k, u := range m.ended {
		if k.resource == resource {
			m.add(sums, resource, u.Org, k.start, u.Counters)
		}
	}
	out := make([]Usage, 0, len(sums))
	for _, u := range slices.SortedFunc(maps.Values(sums), func(a, b *Usage) int { return a.Start.Compare(b.Start) }) {
		out = append(out, *u)
	}
	return out
}
