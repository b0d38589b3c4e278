// SPDX-License-Identifier: Apache-2.0

package loadbalancer

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"cairn/cloud"
	capi "cairn/cloud/api"
	"cairn/cloud/wire"
	"cairn/controlplane/api"
	"cairn/controlplane/dist"
	"cairn/controlplane/operation"
	"cairn/controlplane/store"
	"cairn/lb/slots"
)

const org = cloud.ID("0c000000-0000-4000-8000-000000000001")

// tb is what tests and properties share.
type tb interface {
	Helper()
	Fatal(...any)
	Fatalf(string, ...any)
	Errorf(string, ...any)
}

// bench is the orchestrator on a store of its own, with three hypervisors, a
// pool without members and a clock that stands.
type bench struct {
	tb
	t     *testing.T // whose context and folder are used
	path  string
	now   time.Time
	store *store.Store
	gate  *operation.Gate
	*Balancers
	pool    cloud.ID
	members []cloud.ID
}

func newBench(t *testing.T) *bench { return newBenchFor(t, t) }
func newBenchFor(t *testing.T, on tb) *bench {
	b := &bench{tb: on, t: t, path: filepath.Join(memory(t), string(cloud.NewID())+".db"), now: time.Unix(1_800_000_000, 0)}
	b.begin()
	_, err := b.store.Init(t.Context(), "ch-gva-2", func(tx *store.Tx) error {
		err := tx.AddPool(store.AddressVIP, netip.MustParsePrefix("203.0.113.0/29"))
		for n := uint32(1); n <= 3; n++ {
			id := cloud.NewID()
			number, err2 := tx.Allocate(store.NumberHost, string(id))
			err = errors.Join(err, err2, store.Put(tx, "", store.Doc[store.HypervisorDoc]{ID: id, Body: store.HypervisorDoc{
				ID: id, Name: fmt.Sprintf("hv%d", number), Number: number, Joined: true,
				Endpoint: netip.AddrFrom4([4]byte{10, 64, 0, byte(number)}), MTU: 1600, Roles: []string{store.RoleCompute, store.RoleLB}}}))
		}
		return err
	})
	if err != nil {
		on.Fatal(err)
	}
	b.addPool()
	return b
}

// memory is a folder that costs no disk, where there is one: tests commit some
// thousand times, and each commit waits for the disk.
func memory(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "cairn-loadbalancer-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// begin is a new process on the same store, which has done nothing yet.
func (b *bench) begin(options ...store.Option) {
	b.Helper()
	if b.store != nil {
		b.store.Close()
	}
	s, err := store.Open(b.t.Context(), b.path, append(options, store.WithClock(func() time.Time { return b.now }))...)
	if err != nil {
		b.Fatal(err)
	}
	b.t.Cleanup(func() { s.Close() })
	quiet := slog.New(slog.DiscardHandler)
	b.store, b.gate = s, operation.New(s, quiet, Nouns...)
	b.Balancers = New(s, b.gate, quiet)
}

// reopen is a new process that has taken up what it found.
func (b *bench) reopen() {
	b.Helper()
	b.begin()
	if err := b.takeUp(b.t.Context()); err != nil {
		b.Fatal(err)
	}
	b.flush(b.t.Context())
}

func (b *bench) write(fn func(*store.Tx) error) {
	b.Helper()
	if _, err := b.store.Write(b.t.Context(), fn); err != nil {
		b.Fatal(err)
	}
}

func (b *bench) read(fn func(*store.Tx) error) {
	b.Helper()
	if err := b.store.Read(b.t.Context(), fn); err != nil {
		b.Fatal(err)
	}
}

func (b *bench) addPool() {
	b.Helper()
	d := store.Doc[store.PoolDoc]{ID: cloud.NewID(), Org: org, Generation: 1}
	d.Body.ID, d.Body.Name, d.Body.State = d.ID, "pool", cloud.PoolRunning
	b.write(func(tx *store.Tx) error { return store.Put(tx, "", d) })
	b.pool = d.ID
}

func (b *bench) call(id string, body any, args ...string) (any, error) {
	return b.Handlers()[id](b.t.Context(), b.request(id, body, args...))
}

func (b *bench) request(id string, body any, args ...string) api.Call {
	c := api.Call{Operation: capi.Find(capi.Operations, id), Org: org, Body: body, Args: map[string]string{}}
	for i := 0; i < len(args); i += 2 {
		c.Args[args[i]] = args[i+1]
	}
	if body != nil {
		text, err := json.Marshal(body)
		if err == nil {
			err = json.Unmarshal(text, &c.Keys)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	return c
}

func (b *bench) do(id string, body any, args ...string) *cloud.Operation {
	b.Helper()
	op, err := b.call(id, body, args...)
	if err != nil {
		b.Fatalf("%s: %v", id, err)
	}
	return op.(*cloud.Operation)
}

func (b *bench) refused(kind cloud.Kind, text, id string, body any, args ...string) {
	b.Helper()
	_, err := b.call(id, body, args...)
	var e *cloud.Error
	if !errors.As(err, &e) || e.Kind != kind || !strings.Contains(e.Message, text) {
		b.Errorf("%s: %v, want %v with %q", id, err, kind, text)
	}
}

// create makes a load balancer.
func (b *bench) create(name string) cloud.ID {
	b.Helper()
	op := b.do("create-load-balancer", &cloud.CreateLoadBalancerRequest{Name: name})
	if op.State != cloud.OperationSuccess {
		b.Fatalf("create: %+v", op)
	}
	return op.Reference.ID
}

func web(pool cloud.ID, name string, port uint16) *cloud.AddServiceRequest {
	return &cloud.AddServiceRequest{
		Name: name, InstancePool: cloud.Ref{ID: pool}, Protocol: cloud.TCP, Strategy: cloud.RoundRobin,
		Port: port, TargetPort: 8080, Healthcheck: cloud.Healthcheck{Mode: cloud.CheckHTTP, Port: 8080, URI: "/"},
	}
}

// add makes a service and returns its id and its pending operation.
func (b *bench) add(nlb cloud.ID, r *cloud.AddServiceRequest) (cloud.ID, *cloud.Operation) {
	b.Helper()
	op := b.do("add-service-to-load-balancer", r, "id", string(nlb))
	for _, s := range b.nlb(nlb).Services {
		if s.Name == r.Name {
			return s.ID, op
		}
	}
	b.Fatalf("service %s is not there", r.Name)
	return "", nil
}

func (b *bench) nlb(id cloud.ID) cloud.LoadBalancer {
	b.Helper()
	l, err := b.call("get-load-balancer", nil, "id", string(id))
	if err != nil {
		b.Fatal(err)
	}
	return l.(cloud.LoadBalancer)
}

func (b *bench) settled(op *cloud.Operation, ok bool) {
	b.Helper()
	o := operation.Outcome{OK: ok}
	if !ok {
		o.Message = "hv1: slots: no space left"
	}
	if err := b.gate.Settled(b.t.Context(), op.ID, o); err != nil {
		b.Fatal(err)
	}
}

func (b *bench) service(id cloud.ID) (s service) {
	b.Helper()
	b.read(func(tx *store.Tx) (err error) { s, err = store.Get[store.ServiceDoc](tx, org, id); return err })
	return s
}

func (b *bench) table(id cloud.ID) (t slots.Table) {
	b.Helper()
	b.read(func(tx *store.Tx) error {
		stored, err := tx.Slots(id)
		if err != nil {
			return err
		}
		t, err = slots.Decode(stored.Cells)
		if s := b.service(id); s.Body.SlotsGeneration != stored.Generation {
			b.Errorf("service says generation %d, its slots %d", s.Body.SlotsGeneration, stored.Generation)
		}
		return err
	})
	return t
}

// owners of a service's slots, ascending.
func (b *bench) owners(id cloud.ID) string {
	b.Helper()
	var owners []uint32
	for owner := range b.table(id).Shares() {
		owners = append(owners, owner)
	}
	slices.Sort(owners)
	return fmt.Sprint(owners)
}

// runs makes members of the pool run, on the hypervisors in turn, and the load
// balancers follow.
func (b *bench) runs(n int) {
	b.Helper()
	fresh := make([]cloud.ID, n)
	for i := range fresh {
		fresh[i] = cloud.NewID()
	}
	b.write(func(tx *store.Tx) error {
		for _, id := range fresh {
			if err := b.arrives(tx, id); err != nil {
				return err
			}
		}
		return b.PoolChanged(b.t.Context(), tx, b.pool, "")
	})
	b.members = append(b.members, fresh...)
}

func (b *bench) arrives(tx *store.Tx, id cloud.ID) (err error) {
	d := store.Doc[store.InstanceDoc]{ID: id, Org: org, Generation: 1}
	d.Body.ID, d.Body.Name, d.Body.State, d.Body.Pool, d.Body.Class = id, string(id), cloud.InstanceRunning, b.pool, 1
	if d.Body.Port, err = tx.Allocate(store.NumberPort, string(id)); err != nil {
		return err
	}
	n := d.Body.Port - 1
	d.Body.Address = netip.AddrFrom4([4]byte{198, 51, byte(n >> 8), byte(n)})
	d.Body.HostNumber = n%3 + 1
	d.Body.MAC, d.Body.Driver, d.Body.Wanted = fmt.Sprintf("02:ca:00:00:%02x:%02x", n>>8, n&255), "netns", store.WantedRunning
	return store.Put(tx, "", d)
}

// goes removes members of the pool, in one transaction with what follows.
func (b *bench) goes(op cloud.ID, ids ...cloud.ID) {
	b.Helper()
	b.write(func(tx *store.Tx) error {
		for _, id := range ids {
			if err := b.departs(tx, op, id); err != nil {
				return err
			}
		}
		return b.PoolChanged(b.t.Context(), tx, b.pool, op)
	})
	b.members = slices.DeleteFunc(b.members, func(id cloud.ID) bool { return slices.Contains(ids, id) })
}

func (b *bench) departs(tx *store.Tx, op, id cloud.ID) error {
	return errors.Join(tx.Delete(op, store.Ref{Kind: store.KindInstance, ID: id}), tx.Free(store.NumberPort, string(id)))
}

// turns brings a member into a state.
func (b *bench) turns(id cloud.ID, state cloud.InstanceState) {
	b.Helper()
	b.write(func(tx *store.Tx) error {
		d, err := store.Get[store.InstanceDoc](tx, org, id)
		if err != nil {
			return err
		}
		d.Body.State = state
		return errors.Join(store.Put(tx, "", d), b.PoolChanged(b.t.Context(), tx, b.pool, ""))
	})
}

// host finds a hypervisor reachable or not.
func (b *bench) host(name string, unreachable bool) {
	b.Helper()
	b.write(func(tx *store.Tx) error {
		d, err := store.Named[store.HypervisorDoc](tx, "", name)
		if err != nil {
			return err
		}
		d.Body.Unreachable = unreachable
		return errors.Join(store.Put(tx, "", d), b.HostsChanged(tx, []store.Doc[store.HypervisorDoc]{d}))
	})
}

// says reports a verdict on a backend from its own host.
func (b *bench) says(id cloud.ID, n uint32, verdict string) {
	b.Helper()
	s := b.service(id)
	for _, one := range s.Body.Backends {
		if one.Number == n {
			b.report(one.Host, wire.KindCheck, s.Body.Number, n, one.Generation, verdict)
			return
		}
	}
	b.Fatalf("no backend %d", n)
}

func (b *bench) report(host uint32, kind wire.Kind, service, backend uint32, generation uint64, state string) {
	b.Helper()
	err := b.Reported(b.t.Context(), fmt.Sprintf("hv%d", host), []dist.Report{{
		Kind: kind, Key: fmt.Sprintf("%d/%d", service, backend), Generation: generation, State: state,
	}})
	if err != nil {
		b.Fatal(err)
	}
}

// pass lets time go by and commits what is due.
func (b *bench) pass(d time.Duration) {
	b.Helper()
	b.now = b.now.Add(d)
	b.flush(b.t.Context())
}

// left lists what is allocated besides hypervisors and ports.
func (b *bench) left() (kinds []string) {
	b.Helper()
	b.read(func(tx *store.Tx) error {
		held, err := tx.Allocations()
		for _, a := range held {
			if a.Kind != store.NumberHost && a.Kind != store.NumberPort {
				kinds = append(kinds, a.Kind)
			}
		}
		return err
	})
	return kinds
}

func (b *bench) states(id cloud.ID) string {
	b.Helper()
	var words []string
	for _, one := range b.service(id).Body.Backends {
		words = append(words, fmt.Sprintf("%d %s", one.Number, one.State))
	}
	return strings.Join(words, ", ")
}

func (b *bench) stored(op *cloud.Operation) (o store.Operation) {
	b.Helper()
	b.read(func(tx *store.Tx) (err error) { o, err = tx.Operation(org, op.ID); return err })
	return o
}

func (b *bench) intents(op cloud.ID) (text string) {
	b.Helper()
	b.read(func(tx *store.Tx) error {
		all, err := tx.Intents(op)
		for _, i := range all {
			text += fmt.Sprintf("%s %d;", i.Class, i.Count)
		}
		return err
	})
	return text
}
