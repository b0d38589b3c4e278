// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"cairn/cloud"
	capi "cairn/cloud/api"
	"cairn/controlplane/antiaffinity"
	"cairn/controlplane/api"
	"cairn/controlplane/dist"
	"cairn/controlplane/instance"
	"cairn/controlplane/instance/hosttest"
	"cairn/controlplane/loadbalancer"
	"cairn/controlplane/operation"
	"cairn/controlplane/program"
	"cairn/controlplane/securitygroup"
	"cairn/controlplane/sshkey"
	"cairn/controlplane/store"
)

const org = cloud.ID("0c000000-0000-4000-8000-000000000001")

// waits bounds how long a test waits for what happens by itself.
const waits = 20 * time.Second

var (
	tiny = cloud.Ref{ID: cloud.InstanceTypes[1].ID}
	echo = cloud.Ref{ID: cloud.Images[0].ID}
)

// bench is a control plane with a worker, and hosts that live longer than it.
type bench struct {
	t     *testing.T
	path  string
	now   time.Time
	clock func() time.Time // says now, unless set
	hosts *hosttest.Hosts
	front *front

	store     *store.Store
	gate      *operation.Gate
	instances *instance.Instances
	pools     *Pools
	balancers *loadbalancer.Balancers // nil without load balancers
	stop      func()
	api.Handlers
}

// front is what stands in front of pools.
type front struct {
	mu    sync.Mutex
	calls map[cloud.ID]int
}

func (f *front) PoolChanged(_ context.Context, tx *store.Tx, pool, _ cloud.ID) error {
	if _, err := Members(tx, pool); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls[pool]++
	return nil
}

func (f *front) Drains(*store.Tx, cloud.ID) ([]cloud.ID, error) { return nil, nil }

func (f *front) count(pool cloud.ID) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[pool]
}

// newBench has an organisation's default group, n hypervisors, and addresses.
func newBench(t *testing.T, n int) *bench {
	b := unborn(t)
	b.open()
	t.Cleanup(func() { b.close() })
	_, err := b.store.Init(t.Context(), "ch-gva-2", func(tx *store.Tx) error { return zoneOf(tx, n) })
	if err != nil {
		t.Fatal(err)
	}
	b.connect()
	return b
}

// unborn is a bench before its control plane is started.
func unborn(t *testing.T) *bench {
	b := &bench{t: t, path: filepath.Join(memory(t), "cairn.db"), hosts: hosttest.New("ch-gva-2"), now: time.Now(),
		front: &front{calls: map[cloud.ID]int{}}}
	b.clock = func() time.Time { return b.now }
	return b
}

// memory is a folder that costs no disk, where there is one: each commit waits for
// it.
func memory(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "cairn-pool-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// newFront has load balancers in front of its pools, and a clock that goes.
func newFront(t *testing.T, n int) *bench {
	b := unborn(t)
	b.clock = time.Now
	b.openFront()
	t.Cleanup(func() { b.close() })
	_, err := b.store.Init(t.Context(), "ch-gva-2", func(tx *store.Tx) error { return zoneOf(tx, n) })
	if err != nil {
		t.Fatal(err)
	}
	b.connect()
	return b
}

// openFront starts a control plane that has load balancers too.
func (b *bench) openFront(options ...store.Option) {
	b.t.Helper()
	b.open(options...)
	b.gate.Register(loadbalancer.Nouns...)
	b.balancers = loadbalancer.New(b.store, b.gate, slog.New(slog.DiscardHandler))
	b.pools.Follower, b.balancers.Drained = b.balancers, b.pools.Drained
	b.Handlers = api.Merge(b.Handlers, b.balancers.Handlers())
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() { b.balancers.Run(ctx) })
	worker := b.stop
	b.stop = func() { cancel(); done.Wait(); worker() }
}

// zoneOf fills a zone with n hypervisors.
func zoneOf(tx *store.Tx, n int) error {
	err := errors.Join(securitygroup.AddDefault(tx, org),
		tx.AddPool(store.AddressInstance, netip.MustParsePrefix("198.51.100.0/24")),
		tx.AddPool(store.AddressVIP, netip.MustParsePrefix("203.0.113.0/24")))
	for k := range n {
		d := store.Doc[store.HypervisorDoc]{ID: cloud.NewID(), Generation: 1}
		number, e := tx.Allocate(store.NumberHost, string(d.ID))
		d.Body = store.HypervisorDoc{ID: d.ID, Name: fmt.Sprintf("hv%d", k+1), Number: number, Joined: true,
			Endpoint: netip.AddrFrom4([4]byte{10, 64, 0, byte(number)}), MTU: 1600, Roles: []string{store.RoleCompute, store.RoleLB},
			Drivers: []string{"netns"}, CPUs: 2, Memory: 8 << 30}
		err = errors.Join(err, e, store.Put(tx, "", d))
	}
	return err
}

// open starts a control plane on the store.
func (b *bench) open(options ...store.Option) {
	b.t.Helper()
	s, err := store.Open(b.t.Context(), b.path, append(options, store.WithClock(b.clock))...)
	if err != nil {
		b.t.Fatal(err)
	}
	quiet := slog.New(slog.DiscardHandler)
	b.store, b.gate = s, operation.New(s, quiet, securitygroup.Noun)
	b.instances = instance.New(s, b.gate)
	b.pools = New(s, b.gate, b.instances)
	worker := program.NewWorker(program.Config{Tasks: s.Tasks(), Owner: "cairnd", Actions: b.pools.Actions(), Done: b.pools.Done, Log: quiet, Poll: 50 * time.Millisecond})
	b.pools.Follower, b.pools.Wake = b.front, worker.Wake
	b.Handlers = api.Merge(b.pools.Handlers(), b.instances.Handlers(), antiaffinity.Handlers(s, b.gate), sshkey.Handlers(s, b.gate), b.gate.Handlers())
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() { worker.Run(ctx) })
	b.stop = func() { cancel(); done.Wait() }
}

func (b *bench) close() {
	b.stop()
	b.store.Close()
}

func (b *bench) connect() {
	b.t.Helper()
	if err := b.tryConnect(); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) tryConnect() error {
	reported := b.instances.Report
	if b.balancers != nil {
		reported = func(ctx context.Context, host string, reports []dist.Report) error {
			return errors.Join(b.balancers.Reported(ctx, host, reports), b.instances.Report(ctx, host, reports))
		}
	}
	return b.hosts.Connect(b.t.Context(), hosttest.Cairnd{Store: b.store, Settler: b.gate, Reported: reported})
}

func (b *bench) restart() {
	b.t.Helper()
	b.close()
	if b.balancers != nil {
		b.openFront()
	} else {
		b.open()
	}
	if err := b.instances.Recover(b.t.Context()); err != nil {
		b.t.Fatal(err)
	}
	b.connect()
}

// deliver lets the hosts catch up; they must never lose what no intent covers.
func (b *bench) deliver() {
	b.t.Helper()
	if err := b.hosts.Deliver(b.t.Context()); err != nil {
		b.t.Fatal(err)
	}
	if len(b.hosts.Faults) > 0 {
		b.t.Fatalf("faults: %s", strings.Join(b.hosts.Faults, "\n"))
	}
}

func (b *bench) call(id string, body any, args ...string) (any, error) {
	c := api.Call{Operation: capi.Find(capi.Operations, id), Org: org, Body: body, Args: map[string]string{}, Query: map[string][]string{}}
	for i := 0; i < len(args); i += 2 {
		c.Args[args[i]] = args[i+1]
	}
	return b.Handlers[id](b.t.Context(), c)
}

func (b *bench) do(id string, body any, args ...string) *cloud.Operation {
	b.t.Helper()
	op, err := b.call(id, body, args...)
	if err != nil {
		b.t.Fatalf("%s: %v", id, err)
	}
	return op.(*cloud.Operation)
}

func (b *bench) refused(kind cloud.Kind, text, id string, body any, args ...string) {
	b.t.Helper()
	_, err := b.call(id, body, args...)
	var e *cloud.Error
	if !errors.As(err, &e) || e.Kind != kind || !strings.Contains(e.Message, text) {
		b.t.Errorf("%s: %v, want %v with %q", id, err, kind, text)
	}
}

func (b *bench) operation(id cloud.ID) cloud.Operation {
	b.t.Helper()
	got, err := b.call("get-operation", nil, "id", string(id))
	if err != nil {
		b.t.Fatal(err)
	}
	return *got.(*cloud.Operation)
}

// ends delivers until an operation has ended, and checks how.
func (b *bench) ends(op *cloud.Operation, state cloud.OperationState, reason cloud.Reason, text string) {
	b.t.Helper()
	for limit := time.Now().Add(waits); ; {
		b.deliver()
		ctx, cancel := context.WithTimeout(b.t.Context(), 20*time.Millisecond)
		o, err := b.gate.Wait(ctx, op.ID)
		cancel()
		switch {
		case err != nil:
			b.t.Fatal(err)
		case o.State.Final():
			if o.State != state || o.Reason != reason || !strings.Contains(o.Message, text) {
				b.t.Errorf("operation: %+v, want %s %s %q", *o, state, reason, text)
			}
			b.deliver()
			return
		case time.Now().After(limit):
			b.t.Fatalf("operation still pending: %+v", *o)
		}
	}
}

func (b *bench) succeeds(op *cloud.Operation) {
	b.t.Helper()
	b.ends(op, cloud.OperationSuccess, "", "")
}

func request(size int) *cloud.CreateInstancePoolRequest {
	return &cloud.CreateInstancePoolRequest{Name: "web", Size: size, InstanceType: tiny, Template: echo, DiskSize: 10}
}

// create makes a pool whose members run.
func (b *bench) create(size int) cloud.ID {
	b.t.Helper()
	op := b.do("create-instance-pool", request(size))
	b.succeeds(op)
	return op.Reference.ID
}

func (b *bench) scale(id cloud.ID, size int) *cloud.Operation {
	b.t.Helper()
	return b.do("scale-instance-pool", &cloud.ScaleInstancePoolRequest{Size: size}, "id", string(id))
}

func (b *bench) pool(id cloud.ID) cloud.InstancePool {
	b.t.Helper()
	p, err := b.call("get-instance-pool", nil, "id", string(id))
	if err != nil {
		b.t.Fatal(err)
	}
	return p.(cloud.InstancePool)
}

func (b *bench) want(id cloud.ID, state cloud.InstancePoolState, size, members int) cloud.InstancePool {
	b.t.Helper()
	p := b.pool(id)
	if p.State != state || p.Size != size || len(p.Instances) != members {
		b.t.Errorf("pool is %s, size %d with %d members; want %s, %d, %d", p.State, p.Size, len(p.Instances), state, size, members)
	}
	return p
}

func (b *bench) members(id cloud.ID) (members []instance.Doc) {
	b.t.Helper()
	err := b.store.Read(b.t.Context(), func(tx *store.Tx) (err error) { members, err = Members(tx, id); return err })
	if err != nil {
		b.t.Fatal(err)
	}
	return members
}

// held lists what is allocated, without the numbers of hosts and groups.
func (b *bench) held() (all []string) {
	b.t.Helper()
	if err := b.store.Read(b.t.Context(), func(tx *store.Tx) (err error) { all, err = heldIn(tx); return err }); err != nil {
		b.t.Fatal(err)
	}
	return all
}

func heldIn(tx *store.Tx) (all []string, err error) {
	list, err := tx.Allocations()
	for _, a := range list {
		if !slices.Contains([]string{store.NumberHost, store.NumberGroup}, a.Kind) {
			all = append(all, a.Kind+" "+a.What)
		}
	}
	return all, err
}

// pass lets time go by and deadlines be noticed.
func (b *bench) pass(d time.Duration) {
	b.t.Helper()
	b.now = b.now.Add(d)
	if err := b.gate.Expire(b.t.Context()); err != nil {
		b.t.Fatal(err)
	}
}

// put updates a pool with a body as it was sent.
func (b *bench) put(id cloud.ID, r *cloud.UpdateInstancePoolRequest, keys map[string]json.RawMessage) (*cloud.Operation, error) {
	c := api.Call{Operation: capi.Find(capi.Operations, "update-instance-pool"), Org: org, Body: r, Keys: keys, Args: map[string]string{"id": string(id)}}
	op, err := b.Handlers["update-instance-pool"](b.t.Context(), c)
	if err != nil {
		return nil, err
	}
	return op.(*cloud.Operation), nil
}

func asInvalid(err error, e **cloud.Error) bool {
	return errors.As(err, e) && (*e).Kind == cloud.Invalid
}
