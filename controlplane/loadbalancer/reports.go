// SPDX-License-Identifier: Apache-2.0

package loadbalancer

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"cairn/cloud"
	"cairn/cloud/wire"
	"cairn/controlplane/dist"
	"cairn/controlplane/store"
)

const (
	// pace is the least time between two commits of reports for one service.
	pace = time.Second
	// retryAfter is when a service that could not be written is tried again.
	retryAfter = 500 * time.Millisecond
	// drained is what an agent says of a former owner of slots without flows.
	drained = "drained"
)

// said is the latest that was said of one backend.
type said struct {
	host       string
	generation uint64
	state      string
}

// heard is what was said of a service's backends, by their numbers.
type heard struct {
	verdicts map[uint32]said
	drained  map[uint32]said
}

// news keeps reports until they are committed, and when services are to be
// looked at again. What it forgets in a crash is said again by the agents, on
// their next stream.
type news struct {
	wake chan struct{}

	mu     sync.Mutex
	heard  map[uint32]heard       // by number of the service
	ids    map[uint32]cloud.ID    // of services, by number, as last seen
	last   map[cloud.ID]time.Time // commit of reports
	lookAt map[cloud.ID]time.Time
}

func makeNews() news {
	return news{
		wake: make(chan struct{}, 1), heard: map[uint32]heard{}, ids: map[uint32]cloud.ID{},
		last: map[cloud.ID]time.Time{}, lookAt: map[cloud.ID]time.Time{},
	}
}

func (n *news) stir() {
	select {
	case n.wake <- struct{}{}:
	default: // it is awake
	}
}

// look at a service again at a time; zero: not before there is news of it.
func (n *news) look(id cloud.ID, at time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if at.IsZero() {
		delete(n.lookAt, id)
		return
	}
	n.lookAt[id] = at
	n.stir()
}

// Reported takes in what agents say of checks and of draining slots; it is
// committed soon. Other reports are not its business.
func (b *Balancers) Reported(_ context.Context, host string, reports []dist.Report) error {
	b.news.mu.Lock()
	defer b.news.mu.Unlock()
	for _, r := range reports {
		if r.Kind != wire.KindCheck && (r.Kind != wire.KindSlots || r.State != drained) {
			continue
		}
		service, backend, ok := numbers(r.Key)
		if !ok {
			continue
		}
		h, ok := b.news.heard[service]
		if !ok {
			h = heard{map[uint32]said{}, map[uint32]said{}}
			b.news.heard[service] = h
		}
		to := h.verdicts
		if r.Kind == wire.KindSlots {
			to = h.drained
		}
		to[backend] = said{host, r.Generation, r.State}
		b.news.stir()
	}
	return nil
}

// numbers reads a key "service/backend".
func numbers(key string) (service, backend uint32, ok bool) {
	first, second, _ := strings.Cut(key, "/")
	s, err := strconv.ParseUint(first, 10, 32)
	t, err2 := strconv.ParseUint(second, 10, 32)
	return uint32(s), uint32(t), err == nil && err2 == nil
}

// Run commits what was reported, and looks at services when their time has
// come, until ctx ends.
func (b *Balancers) Run(ctx context.Context) error {
	for {
		err := b.takeUp(ctx)
		if err == nil || ctx.Err() != nil {
			break
		}
		b.log.Error("take up load balancers", "error", err)
		if !sleep(ctx, retryAfter) {
			return nil
		}
	}
	for ctx.Err() == nil {
		next := b.flush(ctx)
		timer := time.NewTimer(time.Hour)
		if !next.IsZero() {
			timer.Reset(max(next.Sub(b.store.Now()), time.Millisecond))
		}
		select {
		case <-ctx.Done():
		case <-b.news.wake:
		case <-timer.C:
		}
		timer.Stop()
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// flush commits what is due, service by service, and says when more will be.
func (b *Balancers) flush(ctx context.Context) (next time.Time) {
	for {
		due, soon, err := b.due(ctx)
		if err != nil {
			if ctx.Err() == nil {
				b.log.Warn("reports wait", "error", err)
			}
			return b.store.Now().Add(retryAfter)
		}
		if len(due) == 0 {
			return soon
		}
		for _, d := range due {
			if err := b.commit(ctx, d); err != nil && ctx.Err() == nil {
				b.log.Warn("reports not committed", "service", d.id, "error", err)
				b.putBack(d)
			}
		}
	}
}

// dueOne is a service to be looked at, with what was said of it.
type dueOne struct {
	id     cloud.ID
	number uint32
	heard  heard
}

// due takes the services whose time has come out of the news.
func (b *Balancers) due(ctx context.Context) (list []dueOne, soon time.Time, err error) {
	if err := b.learn(ctx); err != nil {
		return nil, soon, err
	}
	n := &b.news
	n.mu.Lock()
	defer n.mu.Unlock()
	now := b.store.Now()
	byID := map[cloud.ID]*dueOne{}
	for number, h := range n.heard {
		id := n.ids[number]
		if at := n.last[id].Add(pace); at.After(now) {
			soon = sooner(soon, at)
			continue
		}
		delete(n.heard, number)
		if id != "" {
			byID[id] = &dueOne{id, number, h}
		}
	}
	for id, at := range n.lookAt {
		switch {
		case at.After(now):
			soon = sooner(soon, at)
		case byID[id] == nil:
			byID[id] = &dueOne{id: id}
			fallthrough
		default:
			delete(n.lookAt, id)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(byID)) {
		list = append(list, *byID[id])
	}
	return list, soon, nil
}

// learn finds out which services the numbers in the news are. Numbers come
// back after their rest, so one that is known is looked up again at commit.
func (b *Balancers) learn(ctx context.Context) error {
	b.news.mu.Lock()
	unknown := false
	for number := range b.news.heard {
		if _, ok := b.news.ids[number]; !ok {
			unknown = true
		}
	}
	b.news.mu.Unlock()
	if !unknown {
		return nil
	}
	ids := map[uint32]cloud.ID{}
	err := b.store.Read(ctx, func(tx *store.Tx) error {
		services, err := store.List[store.ServiceDoc](tx, "")
		for _, s := range services {
			ids[s.Body.Number] = s.ID
		}
		return err
	})
	if err != nil {
		return err
	}
	b.news.mu.Lock()
	defer b.news.mu.Unlock()
	for number := range b.news.heard {
		if _, ok := ids[number]; !ok {
			delete(b.news.heard, number) // of no service any more
		}
	}
	b.news.ids = ids
	return nil
}

// putBack keeps what could not be committed, unless something later was said.
func (b *Balancers) putBack(d dueOne) {
	b.news.look(d.id, b.store.Now().Add(retryAfter))
	if d.heard.verdicts == nil {
		return
	}
	n := &b.news
	n.mu.Lock()
	defer n.mu.Unlock()
	later, ok := n.heard[d.number]
	if ok {
		maps.Copy(d.heard.verdicts, later.verdicts)
		maps.Copy(d.heard.drained, later.drained)
	}
	n.heard[d.number] = d.heard
	n.last[d.id] = b.store.Now().Add(retryAfter - pace)
}

// commit stores what was said of a service, with what follows. Most of it is
// known already: that is found out without queueing to write.
func (b *Balancers) commit(ctx context.Context, d dueOne) error {
	var news bool
	err := b.store.Read(ctx, func(tx *store.Tx) error {
		o, changed, err := hear(tx, d)
		if news = changed; err == nil && !changed {
			b.news.look(d.id, o.again)
		}
		return err
	})
	if errors.Is(err, store.ErrNotFound) {
		b.lost(d)
		return nil
	}
	if err != nil || !news {
		return err
	}
	_, err = b.store.Write(ctx, func(tx *store.Tx) error {
		o, changed, err := hear(tx, d)
		if errors.Is(err, store.ErrNotFound) || err == nil && !changed {
			return nil
		}
		if err != nil {
			return err
		}
		return b.put(tx, "", o)
	})
	if err == nil {
		b.news.mu.Lock()
		b.news.last[d.id] = b.store.Now()
		b.news.mu.Unlock()
	}
	return err
}

// lost: a service is gone. Its number may have gone to another one, which what
// was said is then of.
func (b *Balancers) lost(d dueOne) {
	n := &b.news
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.last, d.id)
	if d.heard.verdicts == nil {
		return
	}
	delete(n.ids, d.number)
	if _, later := n.heard[d.number]; !later {
		n.heard[d.number] = d.heard
	}
}

// hear works out what a service becomes by what was said of it. Only the host
// of a backend is heard, only of what is checked now, and only of the table in
// force.
func hear(tx *store.Tx, d dueOne) (outcome, bool, error) {
	s, err := store.Get[store.ServiceDoc](tx, "", d.id)
	if err != nil || !serves(s) {
		return outcome{}, false, err
	}
	h, err := readHosts(tx)
	if err != nil {
		return outcome{}, false, err
	}
	before := s.Body
	s.Body.Backends = slices.Clone(before.Backends)
	var empty []uint32
	for i := range s.Body.Backends {
		if s.Body.Number != d.number {
			break // nothing was said, or of an earlier holder of the number
		}
		one := &s.Body.Backends[i]
		if v, ok := d.heard.verdicts[one.Number]; ok && h.numbers[v.host] == one.Host && v.generation == one.Generation {
			tell(one, v.state)
		}
		if leaves(*one) && one.State == store.BackendActive {
			continue // it still takes new flows; its host will say it again
		}
		if v, ok := d.heard.drained[one.Number]; ok && h.numbers[v.host] == one.Host && v.generation == s.Body.SlotsGeneration {
			empty = append(empty, one.Number)
			if s.Body.Rotating {
				one.Empty = v.generation
			}
		}
	}
	rotated(&s.Body)
	o, err := weigh(tx, s, h, empty...)
	after := o.service.Body
	return o, o.moved || after.Panic != before.Panic || after.Rotating != before.Rotating || !slices.Equal(after.Backends, before.Backends), err
}

// tell a backend what its host has found. A host that has just begun to look
// takes no verdict back.
func tell(b *store.BackendDoc, state string) {
	if state == store.VerdictSuccess || state == store.VerdictFailure {
		b.Verdict = state
	}
}
