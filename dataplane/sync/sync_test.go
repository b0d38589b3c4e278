// SPDX-License-Identifier: Apache-2.0

package sync

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"pgregory.net/rapid"

	"cairn/cloud/join"
	"cairn/cloud/wire"
	"cairn/dataplane/table"
	agentv1 "cairn/proto/agent/v1"
)

func host(id byte) wire.Host {
	return wire.Host{ID: uint32(id), Name: "hv", Endpoint: netip.AddrFrom4([4]byte{10, 64, 0, id}), MTU: 1600}
}

func TestJoinsOnceThenResumes(t *testing.T) {
	c, folder := newControl(t), t.TempDir()
	a := startAgent(t, c, folder, c.token())
	k := c.stream()
	if k.hello.Agent != "hv1" || k.hello.Revision != 0 || k.hello.Endpoint != "10.64.0.1" || k.hello.Mtu != 1600 {
		t.Errorf("hello %v", k.hello)
	}
	k.send(snapshot(7, item(t, host(1)), item(t, host(2)))...)
	if ack := k.ack(); ack.Revision != 7 || ack.ProgrammedNs != 42 {
		t.Errorf("ack %v", ack)
	}
	k.send(delta(7, 8, item(t, host(3))))
	if ack := k.ack(); ack.Revision != 8 {
		t.Errorf("ack %v", ack)
	}
	k.end <- errEnd
	k = c.stream()
	if k.hello.Epoch != 1 || k.hello.Revision != 8 || len(k.hello.Digests) != len(wire.Kinds()) || k.hello.Digests[0].Count != 3 {
		t.Errorf("hello of the second stream %v", k.hello)
	}
	if ack := k.ack(); ack.Revision != 8 {
		t.Errorf("what was programmed before is not acknowledged again: %v", ack)
	}
	a.stop()
	startOver(t, c, folder, "", a.table) // a restart, without the token
	c.stream()
	if c.enrolled != 1 {
		t.Errorf("enrolled %d times", c.enrolled)
	}
	info, err := os.Stat(filepath.Join(folder, "credentials.pem"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("credentials %v %v", info, err)
	}
}

func TestAForeignAuthorityIsNotJoined(t *testing.T) {
	c, other := newControl(t), newControl(t)
	token := join.Token{Name: "hv1", Secret: secret, Pin: join.Pin(other.ca)}.String()
	a := startAgent(t, c, t.TempDir(), token)
	a.waitFor(t, "no complaint", func() bool { return a.State().Error != "" })
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.enrolled != 0 {
		t.Error("the secret was told to a foreign control plane")
	}
}

func TestALargeDeltaIsAppliedAsOne(t *testing.T) {
	c := newControl(t)
	a := startAgent(t, c, t.TempDir(), c.token())
	k := c.stream()
	k.send(snapshot(7, item(t, host(1)))...)
	k.ack()
	k.send(delta(7, 7, item(t, host(2))))
	k.send(delta(7, 7, item(t, host(3))))
	a.Observe(Report{Key: wire.Key{Kind: wire.KindInstance, ID: "x"}, State: "running"})
	k.reports() // both parts have been received by the time the agent's answer comes
	if got := a.table.View(); got.Mark().Revision != 7 || got.Count(wire.KindHost) != 1 {
		t.Errorf("a part was applied: revision %d, %d hosts", got.Mark().Revision, got.Count(wire.KindHost))
	}
	k.send(delta(7, 9, item(t, host(4))))
	if ack := k.ack(); ack.Revision != 9 || a.table.View().Count(wire.KindHost) != 4 {
		t.Errorf("ack %v, %d hosts", ack, a.table.View().Count(wire.KindHost))
	}
}

func TestPoisonIsNamedBeforeTheAck(t *testing.T) {
	c := newControl(t)
	startAgent(t, c, t.TempDir(), c.token())
	k := c.stream()
	k.send(snapshot(7, item(t, host(1)))...)
	k.ack()
	bad := item(t, host(1))
	bad.Body = []byte{0xff}
	k.send(delta(7, 8, bad, item(t, host(2))))
	nack := k.nack()
	if nack.Revision != 8 || nack.Kind != agentv1.Kind_KIND_HOST || nack.Key != "1" || nack.Reason == "" {
		t.Errorf("nack %v", nack)
	}
	if ack := k.ack(); ack.Revision != 8 {
		t.Errorf("ack %v", ack)
	}
}

// A revision is programmed by others, as soon as the table has it: none of many
// is acknowledged before what it lacks is named.
func TestNoAckOvertakesItsNack(t *testing.T) {
	c := newControl(t)
	startAgent(t, c, t.TempDir(), c.token())
	k := c.stream()
	k.send(snapshot(7, item(t, host(1)))...)
	k.ack()
	bad := item(t, host(1))
	bad.Body = []byte{0xff}
	for revision := uint64(8); revision < 1000; revision++ {
		k.send(delta(revision-1, revision, bad, item(t, host(2+byte(revision%2)))))
		first := next(k, func(m *agentv1.FromAgent) (*agentv1.FromAgent, bool) { return m, m.GetStatus() == nil })
		if first.GetNack().GetRevision() != revision {
			t.Fatalf("revision %d: first came %v", revision, first)
		}
		if ack := k.ack(); ack.Revision != revision {
			t.Fatalf("ack %v", ack)
		}
	}
}

func TestARefusedSnapshotKeepsTheOldOne(t *testing.T) {
	c := newControl(t)
	a := startAgent(t, c, t.TempDir(), c.token())
	k := c.stream()
	k.send(snapshot(7, item(t, host(1)), item(t, host(2)))...)
	k.ack()
	k.send(snapshot(9)...)
	if nack := k.nack(); nack.Key != "" || nack.Revision != 9 {
		t.Errorf("nack %v", nack)
	}
	if v := a.table.View(); v.Mark().Revision != 7 || v.Count(wire.KindHost) != 2 {
		t.Errorf("revision %d, %d hosts", v.Mark().Revision, v.Count(wire.KindHost))
	}
	k.send(delta(7, 10, item(t, host(3))))
	if ack := k.ack(); ack.Revision != 10 {
		t.Errorf("the stream does not go on: %v", ack)
	}
}

func TestIntentsArrive(t *testing.T) {
	c := newControl(t)
	a := startAgent(t, c, t.TempDir(), c.token())
	k := c.stream()
	var items []*agentv1.Item
	for id := range byte(40) {
		items = append(items, item(t, host(id+1)))
	}
	k.send(snapshot(7, items...)...)
	k.ack()
	d := delta(7, 8)
	for _, i := range items {
		d.GetDelta().Tombstones = append(d.GetDelta().Tombstones, &agentv1.Tombstone{Kind: i.Kind, Key: i.Key, Operation: "op"})
	}
	k.send(&agentv1.ToAgent{Message: &agentv1.ToAgent_Intent{Intent: &agentv1.Intent{Operation: "op", Kind: agentv1.Kind_KIND_HOST, Count: 40}}}, d)
	if ack := k.ack(); ack.Revision != 8 || a.table.View().Count(wire.KindHost) != 0 {
		t.Errorf("ack %v, %d hosts left", ack, a.table.View().Count(wire.KindHost))
	}
}

func TestReportsAllAtFirstThenChanges(t *testing.T) {
	c := newControl(t)
	a := startAgent(t, c, t.TempDir(), c.token())
	one, two := wire.Key{Kind: wire.KindInstance, ID: "1"}, wire.Key{Kind: wire.KindCheck, ID: "2/3"}
	k := c.stream()
	a.Observe(Report{Key: one, Generation: 1, State: "running"})
	if r := k.reports(); len(r) != 1 || r[0].Key != "1" || r[0].State != "running" || r[0].Generation != 1 {
		t.Errorf("reports %v", r)
	}
	a.Observe(Report{Key: one, Generation: 1, State: "running"}) // nothing new
	a.Observe(Report{Key: two, Generation: 5, State: "failure", Reason: "connect: refused"})
	if r := k.reports(); len(r) != 1 || r[0].Key != "2/3" || r[0].Reason != "connect: refused" {
		t.Errorf("reports %v", r)
	}
	k.end <- errEnd
	k = c.stream()
	if r := k.reports(); len(r) != 2 {
		t.Errorf("a new stream begins with %v", r)
	}
	a.Forget(one)
	k.end <- errEnd
	if r := c.stream().reports(); len(r) != 1 || r[0].Key != "2/3" {
		t.Errorf("a forgotten object is told of: %v", r)
	}
	a.Uplink(true)
}

func TestStatusIsASignOfLifeWithDigests(t *testing.T) {
	c := newControl(t)
	a := startAgent(t, c, t.TempDir(), c.token())
	k := c.stream()
	first := next(k, func(m *agentv1.FromAgent) (*agentv1.Status, bool) { return m.GetStatus(), m.GetStatus() != nil })
	if len(first.Digests) != len(wire.Kinds()) {
		t.Errorf("first status %v", first)
	}
	began := time.Now()
	next(k, func(m *agentv1.FromAgent) (*agentv1.Status, bool) { return m.GetStatus(), m.GetStatus() != nil })
	if took := time.Since(began); took > 1500*time.Millisecond {
		t.Errorf("the next status came after %s", took)
	}
	a.Uplink(true)
	down := next(k, func(m *agentv1.FromAgent) (*agentv1.Status, bool) { return m.GetStatus(), m.GetStatus() != nil })
	if !down.UplinkDown {
		t.Errorf("status %v", down)
	}
}

func TestDrainedComesBackLater(t *testing.T) {
	c := newControl(t)
	startAgent(t, c, t.TempDir(), c.token())
	k := c.stream()
	began := time.Now()
	k.send(&agentv1.ToAgent{Message: &agentv1.ToAgent_Drain{Drain: &agentv1.Drain{ReconnectAfterMs: 300}}})
	c.stream()
	if took := time.Since(began); took < 300*time.Millisecond {
		t.Errorf("came back after %s", took)
	}
}

func TestAnExpiredLeafRenewsAndGoesOn(t *testing.T) {
	c := newControl(t)
	c.life = -time.Minute
	startAgent(t, c, t.TempDir(), c.token())
	c.stream()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.renewed != 1 || c.enrolled != 1 {
		t.Errorf("renewed %d times, enrolled %d times", c.renewed, c.enrolled)
	}
}

func TestCacheKeepsTheWholeState(t *testing.T) {
	folder := t.TempDir()
	cache := NewCache(folder)
	if _, _, err := cache.Load(); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("no cache: %v", err)
	}
	from, err := table.New(table.Mark{})
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	s := table.Snapshot{At: table.Mark{Epoch: 3, Revision: 9}}
	for id := range byte(5) {
		body, err := wire.Encode(host(id + 1))
		if err != nil {
			t.Fatal(err)
		}
		s.Upserts = append(s.Upserts, table.Upsert{Key: host(id + 1).Key(), Generation: uint64(id), Body: body})
	}
	s.Upserts[4].Body = []byte{0xff} // poison is kept, so that digests agree after a restart
	for _, up := range s.Upserts {
		s.Digests[up.Key.Kind].Add(up.Key, up.Body)
	}
	if _, err := from.Replace(s); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	cache.Offer(from.View())
	cache.Run(ctx, time.Hour, func(err error) { t.Error(err) })
	at, ups, err := cache.Load()
	if err != nil {
		t.Fatal(err)
	}
	to, err := table.New(table.Mark{})
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	if faults, err := to.Restore(at, ups); err != nil || len(faults) != 1 {
		t.Fatal(faults, err)
	}
	if to.View().Mark() != s.At || to.View().Digests() != from.View().Digests() {
		t.Errorf("restored %v %v", to.View().Mark(), to.View().Digests())
	}
}

func TestADamagedCacheIsNotTrusted(t *testing.T) {
	from, err := table.New(table.Mark{})
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	body, err := wire.Encode(host(1))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := from.Restore(table.Mark{Epoch: 1, Revision: 1}, []table.Upsert{{Key: host(1).Key(), Body: body}}); err != nil {
		t.Fatal(err)
	}
	cache := NewCache(t.TempDir())
	if err := cache.write(from.View()); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(cache.path)
	if err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(t *rapid.T) {
		bad := bytes.Clone(good)
		bad[rapid.IntRange(0, len(bad)-1).Draw(t, "at")] ^= byte(rapid.IntRange(1, 255).Draw(t, "by"))
		bad = bad[:rapid.IntRange(0, len(bad)).Draw(t, "len")]
		if _, _, err := decode(bad); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("trusted: %v", err)
		}
	})
	if _, _, err := decode(good); err != nil {
		t.Errorf("the good one: %v", err)
	}
}
