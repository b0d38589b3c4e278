// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"cairn/cloud/wire"
	"cairn/dataplane/host"
	dsync "cairn/dataplane/sync"
	"cairn/dataplane/table"
)

// How often an LB node asks a host through the tunnel, a little more at random,
// and how many questions without an answer make it one that is missed.
const (
	askPeriod = 200 * time.Millisecond
	askJitter = 20 * time.Millisecond
	askMisses = 3
)

// What an LB node says of a host.
const (
	hostReached = "reached"
	hostMissed  = "missed"
	hostUnasked = "unasked" // no backend there any more
)

// sight is which hosts this one reaches.
type sight map[uint32]*glance

// glance at one host.
type glance struct {
	asked  time.Time // last; zero: not yet
	misses int       // questions in a row
	state  string
	said   string // to the control plane
}

// turn to these hosts and no others. Of the others, those of which something
// was said are returned.
func (s sight) turn(hosts map[uint32]netip.Addr) (left []uint32) {
	for id, g := range s {
		if _, asks := hosts[id]; !asks {
			delete(s, id)
			if g.said != "" {
				left = append(left, id)
			}
		}
	}
	for id := range hosts {
		if s[id] == nil {
			s[id] = &glance{}
		}
	}
	return left
}

// close the eyes: what was asked so far does not count.
func (s sight) close() {
	for _, g := range s {
		g.asked, g.misses = time.Time{}, 0
	}
}

// ask notes a question, and what became of the one before: the latest answer
// came so long ago, if there ever was one.
func (g *glance) ask(now time.Time, ago time.Duration, answered bool) {
	switch {
	case g.asked.IsZero():
	case answered && ago <= now.Sub(g.asked):
		g.misses, g.state = 0, hostReached
	default:
		if g.misses++; g.misses >= askMisses {
			g.state = hostMissed
		}
	}
	g.asked = now
}

// news lists the hosts of which something else is to be said than was. When
// more than half of all look missed, this one is who is cut off, and says
// nothing.
func (s sight) news() []uint32 {
	missed := 0
	var news []uint32
	for id, g := range s {
		if g.state == hostMissed {
			missed++
		}
		if g.state != g.said {
			news = append(news, id)
		}
	}
	if 2*missed > len(s)+1 { // and itself, which it reaches
		return nil
	}
	slices.Sort(news)
	return news
}

// look asks the hosts of backends whether packets reach them, and tells the
// control plane. It judges nobody: a host that is missed is one's word.
func (a *Agent) look(ctx context.Context) {
	if !slices.Contains(a.cfg.Roles, RoleBalancer) {
		return
	}
	var r *host.Reacher
	for r == nil {
		var err error
		if r, err = a.host.Reacher(); err == nil {
			break
		}
		a.log.Warn("other hosts are not asked", "error", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(retryPeriod):
		}
	}
	defer r.Close()
	s := sight{}
	var of table.Mark
	var hosts map[uint32]netip.Addr
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(askPeriod + rand.N(askJitter)):
		}
		if view := a.table.View(); hosts == nil || view.Mark() != of {
			of, hosts = view.Mark(), asked(view, a.self(view))
			for _, id := range s.turn(hosts) {
				a.client.Observe(sighted(id, hostUnasked))
			}
		}
		if _, down := a.senses.Uplink(); down {
			s.close()
			continue
		}
		for id, endpoint := range hosts {
			ago, _, answered, err := r.Seen(id)
			if err != nil {
				a.log.Warn("answer of a host", "error", err)
				continue
			}
			s[id].ask(time.Now(), ago, answered)
			_ = r.Ask(endpoint, 0) // no way to it is no answer from it
		}
		for _, id := range s.news() {
			s[id].said = s[id].state
			a.log.Info("host", "host", id, "state", s[id].said)
			a.client.Observe(sighted(id, s[id].said))
		}
	}
}

func sighted(id uint32, state string) dsync.Report {
	return dsync.Report{Key: wire.Key{Kind: wire.KindHost, ID: fmt.Sprint(id)}, State: state}
}

// asked are the hosts of backends but this one, with the ends of their tunnels.
func asked(view table.View, self uint32) map[uint32]netip.Addr {
	endpoints := map[uint32]netip.Addr{}
	for h := range table.All[wire.Host](view) {
		endpoints[h.ID] = h.Endpoint
	}
	hosts := map[uint32]netip.Addr{}
	for b := range table.All[wire.Backend](view) {
		if e, ok := endpoints[b.Host]; ok && b.Host != self {
			hosts[b.Host] = e
		}
	}
	return hosts
}
