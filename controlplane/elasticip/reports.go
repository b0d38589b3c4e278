// SPDX-License-Identifier: Apache-2.0

package elasticip

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"cairn/cloud"
	"cairn/cloud/wire"
	"cairn/controlplane/dist"
	"cairn/controlplane/store"
)

const (
	// pace is the least time between two looks at what was said.
	pace = 100 * time.Millisecond
	// retryAfter is when what could not be written is tried again.
	retryAfter = 500 * time.Millisecond
)

// said is the latest that was said of one place.
type said struct {
	host       string
	generation uint64
	state      string
}

// news keeps reports until they are committed. What it forgets in a crash is said
// again by the agents, on their next stream.
type news struct {
	wake chan struct{}

	mu    sync.Mutex
	heard map[uint32]map[uint32]said // by number of the elastic IP, then by port
	ids   map[uint32]cloud.ID        // of elastic IPs, by number, as last seen
}

func makeNews() news {
	return news{wake: make(chan struct{}, 1), heard: map[uint32]map[uint32]said{}, ids: map[uint32]cloud.ID{}}
}

// Reported takes in what agents say of the checks of elastic IPs; it is committed
// soon. Other reports are not its business.
func (e *Elastics) Reported(_ context.Context, host string, reports []dist.Report) error {
	n := &e.news
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, r := range reports {
		var number, port uint32
		if r.Kind != wire.KindCheck || r.State != store.VerdictSuccess && r.State != store.VerdictFailure {
			continue
		}
		if _, err := fmt.Sscanf(r.Key, "elastic/%d/%d", &number, &port); err != nil {
			continue
		}
		if n.heard[number] == nil {
			n.heard[number] = map[uint32]said{}
		}
		n.heard[number][port] = said{host, r.Generation, r.State}
		n.stir()
	}
	return nil
}

func (n *news) stir() {
	select {
	case n.wake <- struct{}{}:
	default: // it is awake
	}
}

// Run commits what was reported until ctx ends.
func (e *Elastics) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-e.news.wake:
		}
		wait := pace
		if err := e.Flush(ctx); err != nil && ctx.Err() == nil {
			e.log.Warn("reports of elastic IPs wait", "error", err)
			wait = retryAfter
			e.news.stir()
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
	}
}

// Flush commits what was reported since the last time. What could not be
// committed is kept.
func (e *Elastics) Flush(ctx context.Context) error {
	n := &e.news
	n.mu.Lock()
	heard := n.heard
	n.heard = map[uint32]map[uint32]said{}
	n.mu.Unlock()
	var faults []error
	for _, number := range slices.Sorted(maps.Keys(heard)) {
		err := e.commit(ctx, number, heard[number])
		if err == nil {
			continue
		}
		faults = append(faults, fmt.Errorf("elastic IP %d: %w", number, err))
		n.mu.Lock()
		later := n.heard[number]
		n.heard[number] = heard[number]
		maps.Copy(n.heard[number], later)
		n.mu.Unlock()
	}
	return errors.Join(faults...)
}

// commit stores what was said of an elastic IP, with what follows. Most of it is
// known already: that is found out without queueing to write.
func (e *Elastics) commit(ctx context.Context, number uint32, heard map[uint32]said) error {
	var news bool
	look := func(tx *store.Tx) (Doc, store.ElasticIPDoc, error) {
		d, err := e.byNumber(tx, number)
		if err != nil {
			return d, d.Body, err
		}
		before := d.Body
		news, err = hear(tx, &d, heard)
		return d, before, err
	}
	err := e.store.Read(ctx, func(tx *store.Tx) error { _, _, err := look(tx); return err })
	if err == nil && news {
		_, err = e.store.Write(ctx, func(tx *store.Tx) error {
			d, before, err := look(tx)
			if err != nil || !news {
				return err
			}
			return e.revise(tx, "", before, d)
		})
	}
	if errors.Is(err, store.ErrNotFound) {
		return nil // it is gone
	}
	return err
}

// byNumber finds an elastic IP. Numbers come back after their rest, so one that
// is known is looked at again.
func (e *Elastics) byNumber(tx *store.Tx, number uint32) (Doc, error) {
	e.news.mu.Lock()
	id := e.news.ids[number]
	e.news.mu.Unlock()
	if id != "" {
		d, err := store.Get[store.ElasticIPDoc](tx, "", id)
		if err == nil && d.Body.Number == number {
			return d, nil
		}
	}
	all, err := store.List[store.ElasticIPDoc](tx, "")
	if err != nil {
		return Doc{}, err
	}
	ids, found := map[uint32]cloud.ID{}, Doc{}
	for _, d := range all {
		if ids[d.Body.Number] = d.ID; d.Body.Number == number {
			found = d
		}
	}
	e.news.mu.Lock()
	e.news.ids = ids
	e.news.mu.Unlock()
	if found.ID == "" {
		return found, store.ErrNotFound
	}
	return found, nil
}

// hear notes what was said: only the host of a place is heard, and only of what
// is checked now.
func hear(tx *store.Tx, d *Doc, heard map[uint32]said) (news bool, err error) {
	h, err := readHosts(tx)
	if err != nil {
		return false, err
	}
	d.Body.Attached = slices.Clone(d.Body.Attached)
	for i := range d.Body.Attached {
		p := &d.Body.Attached[i]
		s, ok := heard[p.Port]
		if ok && d.Body.Healthcheck != nil && h.numbers[s.host] == p.Host && s.generation == p.Generation && s.state != p.Verdict {
			p.Verdict, news = s.state, true
		}
	}
	return news, nil
}
