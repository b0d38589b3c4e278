// SPDX-License-Identifier: Apache-2.0

package check

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"cairn/cloud/wire"
	"cairn/dataplane/table"
)

// backends answer or refuse, by address and port.
type backends struct {
	mu sync.Mutex
	up map[string]bool
}

func (b *backends) set(address string, up bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.up[address] = up
}

func (b *backends) dial(_ context.Context, _, address string) (net.Conn, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.up[address] {
		return nil, errors.New("refused")
	}
	here, there := net.Pipe()
	there.Close()
	return here, nil
}

func aCheck(backend uint32, generation uint64) wire.Check {
	return wire.Check{
		Service: 4, Backend: backend, Mode: "tcp", Address: netip.AddrFrom4([4]byte{198, 51, 100, byte(backend)}), Port: 8080,
		Interval: 10 * time.Second, Timeout: 2 * time.Second, Retries: 1, Generation: generation,
	}
}

type verdict struct {
	generation uint64
	state      string
}

func TestVerdictsAreToldWithTheirGeneration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		desired, err := table.New(table.Mark{})
		if err != nil {
			t.Fatal(err)
		}
		defer desired.Close()
		b := &backends{up: map[string]bool{"198.51.100.1:8080": true, "198.51.100.2:8080": true}}
		var mu sync.Mutex
		told, forgotten := map[string]verdict{}, map[string]bool{}
		c := New(b.dial, func(key wire.Key, generation uint64, state, _ string) {
			mu.Lock()
			defer mu.Unlock()
			told[key.ID] = verdict{generation, state}
		}, func(key wire.Key) {
			mu.Lock()
			defer mu.Unlock()
			forgotten[key.ID] = true
		})
		defer c.Close()
		revision := uint64(0)
		apply := func(gone []wire.Check, checks ...wire.Check) {
			t.Helper()
			d := table.Delta{From: revision, To: table.Mark{Revision: revision + 1}}
			revision++
			for _, check := range checks {
				body, err := wire.Encode(check)
				if err != nil {
					t.Fatal(err)
				}
				d.Upserts = append(d.Upserts, table.Upsert{Key: check.Key(), Generation: check.Generation, Body: body})
			}
			for _, check := range gone {
				d.Tombstones = append(d.Tombstones, table.Tombstone{Key: check.Key()})
			}
			if _, err := desired.Apply(d); err != nil {
				t.Fatal(err)
			}
			c.Set(desired.View())
		}
		expect := func(id string, want verdict) {
			t.Helper()
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if told[id] != want {
				t.Errorf("%s: %+v, want %+v", id, told[id], want)
			}
		}
		apply(nil, aCheck(1, 1), aCheck(2, 1))
		expect("4/1", verdict{1, "initial"})
		<-time.After(time.Second)
		expect("4/1", verdict{1, "success"})
		b.set("198.51.100.2:8080", false)
		<-time.After(20 * time.Second)
		expect("4/2", verdict{1, "failure"})
		expect("4/1", verdict{1, "success"})
		apply(nil, aCheck(2, 5)) // the same check under another generation: the verdict is told again
		expect("4/2", verdict{5, "failure"})
		apply([]wire.Check{aCheck(1, 1)})
		synctest.Wait()
		if !forgotten["4/1"] {
			t.Error("a check that is gone was not forgotten")
		}
		if s := c.Status(); len(s) != 1 {
			t.Errorf("checks left %v", s)
		}
	})
}
