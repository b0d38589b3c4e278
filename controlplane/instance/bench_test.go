// SPDX-License-Identifier: Apache-2.0

package instance

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cairn/cloud"
	capi "cairn/cloud/api"
	"cairn/controlplane/antiaffinity"
	"cairn/controlplane/api"
	"cairn/controlplane/instance/hosttest"
	"cairn/controlplane/operation"
	"cairn/controlplane/securitygroup"
	"cairn/controlplane/sshkey"
	"cairn/controlplane/store"
)

const (
	org      = cloud.ID("0c000000-0000-4000-8000-000000000001")
	stranger = cloud.ID("0c000000-0000-4000-8000-000000000002")
	gib      = 1 << 30
)

var (
	tiny = cloud.Ref{ID: cloud.InstanceTypes[1].ID}
	echo = cloud.Ref{ID: cloud.Images[0].ID}
)

type bench struct {
	t     *testing.T
	path  string
	now   time.Time
	store *store.Store
	gate  *operation.Gate
	hosts *hosttest.Hosts
	*Instances
	api.Handlers
}

// newBench has an organisation's default group, n hypervisors, and addresses.
func newBench(t *testing.T, n int, pool string) *bench {
	b := &bench{t: t, path: filepath.Join(t.TempDir(), "cairn.db"), hosts: hosttest.New("ch-gva-2"), now: time.Now()}
	b.open()
	t.Cleanup(func() { b.store.Close() })
	_, err := b.store.Init(t.Context(), "ch-gva-2", func(tx *store.Tx) error {
		return errors.Join(securitygroup.AddDefault(tx, org), tx.AddPool(store.AddressInstance, netip.MustParsePrefix(pool)))
	})
	if err != nil {
		t.Fatal(err)
	}
	for k := range n {
		b.addHost(fmt.Sprintf("hv%d", k+1))
	}
	b.connect()
	return b
}

// open starts a control plane on the store.
func (b *bench) open() {
	b.t.Helper()
	s, err := store.Open(b.t.Context(), b.path, store.WithClock(func() time.Time { return b.now }))
	if err != nil {
		b.t.Fatal(err)
	}
	b.store, b.gate = s, operation.New(s, slog.New(slog.DiscardHandler), securitygroup.Noun)
	b.Instances = New(s, b.gate)
	b.Handlers = api.Merge(b.Instances.Handlers(), securitygroup.Handlers(s, b.gate), antiaffinity.Handlers(s, b.gate), sshkey.Handlers(s, b.gate), b.gate.Handlers())
}

func (b *bench) connect() {
	b.t.Helper()
	err := b.hosts.Connect(b.t.Context(), hosttest.Cairnd{Store: b.store, Settler: b.gate, Reported: b.Report})
	if err != nil {
		b.t.Fatal(err)
	}
}

// restart ends the control plane and starts another one. The hosts live on.
func (b *bench) restart() {
	b.t.Helper()
	if err := b.store.Close(); err != nil {
		b.t.Fatal(err)
	}
	b.open()
	if err := b.Recover(b.t.Context()); err != nil {
		b.t.Fatal(err)
	}
	b.connect()
}

func (b *bench) addHost(name string) {
	b.t.Helper()
	_, err := b.store.Write(b.t.Context(), func(tx *store.Tx) error {
		d := store.Doc[store.HypervisorDoc]{ID: cloud.NewID(), Generation: 1}
		n, err := tx.Allocate(store.NumberHost, string(d.ID))
		d.Body = store.HypervisorDoc{ID: d.ID, Name: name, Number: n, Joined: true, Endpoint: netip.AddrFrom4([4]byte{10, 64, 0, byte(n)}),
			MTU: 1600, Roles: []string{store.RoleCompute, store.RoleLB}, Drivers: []string{"netns"}, CPUs: 2, Memory: 8 * gib}
		return errors.Join(err, store.Put(tx, "", d))
	})
	if err != nil {
		b.t.Fatal(err)
	}
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
		if strings.HasPrefix(args[i], "?") {
			c.Query.Set(args[i][1:], args[i+1])
		} else {
			c.Args[args[i]] = args[i+1]
		}
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

// ended checks how an operation stands.
func (b *bench) ended(op *cloud.Operation, state cloud.OperationState, reason cloud.Reason, text string) {
	b.t.Helper()
	got, err := b.call("get-operation", nil, "id", string(op.ID))
	if err != nil {
		b.t.Fatal(err)
	}
	o := got.(*cloud.Operation)
	if o.State != state || o.Reason != reason || !strings.Contains(o.Message, text) {
		b.t.Errorf("operation: %+v, want %s %s %q", *o, state, reason, text)
	}
}

func (b *bench) create(r cloud.CreateInstanceRequest) *cloud.Operation {
	b.t.Helper()
	return b.do("create-instance", request(r))
}

func request(r cloud.CreateInstanceRequest) *cloud.CreateInstanceRequest {
	r.InstanceType, r.Template, r.DiskSize = tiny, echo, 10
	return &r
}

func (b *bench) instance(id cloud.ID) cloud.Instance {
	b.t.Helper()
	i, err := b.call("get-instance", nil, "id", string(id))
	if err != nil {
		b.t.Fatal(err)
	}
	return i.(cloud.Instance)
}

func (b *bench) state(id cloud.ID, want cloud.InstanceState) {
	b.t.Helper()
	if got := b.instance(id).State; got != want {
		b.t.Errorf("instance %s is %s, want %s", id, got, want)
	}
}

func (b *bench) doc(id cloud.ID) (d Doc) {
	b.t.Helper()
	err := b.store.Read(b.t.Context(), func(tx *store.Tx) (err error) { d, err = Find(tx, org, id); return err })
	if err != nil {
		b.t.Fatal(err)
	}
	return d
}

// held lists what is allocated, without the numbers of hosts and groups.
func (b *bench) held() (all []string) {
	b.t.Helper()
	err := b.store.Read(b.t.Context(), func(tx *store.Tx) error {
		list, err := tx.Allocations()
		for _, a := range list {
			if a.Kind != store.NumberHost && a.Kind != store.NumberGroup && a.Kind != store.NumberRule {
				all = append(all, a.Kind+" "+a.What)
			}
		}
		return err
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return all
}

// pass lets time go by and deadlines be noticed.
func (b *bench) pass(d time.Duration) {
	b.t.Helper()
	b.now = b.now.Add(d)
	if err := b.gate.Expire(b.t.Context()); err != nil {
		b.t.Fatal(err)
	}
}
