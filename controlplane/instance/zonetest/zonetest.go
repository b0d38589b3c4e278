// SPDX-License-Identifier: Apache-2.0

// Package zonetest is a zone for tests of what stands on instances: private
// networks, elastic IPs, names of addresses. It has the orchestrators on a store
// and hypervisors that are played, and a customer who can see the control plane
// die. It judges nothing but what it is asked to. Start at New; story.go is the
// customer.
package zonetest

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
	"cairn/cloud/wire"
	"cairn/controlplane/api"
	"cairn/controlplane/dist"
	"cairn/controlplane/elasticip"
	"cairn/controlplane/instance"
	"cairn/controlplane/instance/hosttest"
	"cairn/controlplane/operation"
	"cairn/controlplane/privatenetwork"
	"cairn/controlplane/reversedns"
	"cairn/controlplane/securitygroup"
	"cairn/controlplane/store"
)

// Organisations of the zone.
const (
	Org      = cloud.ID("0c000000-0000-4000-8000-000000000001")
	Stranger = cloud.ID("0c000000-0000-4000-8000-000000000002")
)

// Zone is a control plane on a store, and its hosts.
type Zone struct {
	T         testing.TB
	Path      string
	Now       time.Time
	Store     *store.Store
	Gate      *operation.Gate
	Hosts     *hosttest.Hosts
	Instances *instance.Instances
	Elastics  *elasticip.Elastics
	Handlers  api.Handlers
}

// Found fills a store with two organisations' default groups, pools of addresses
// and n hypervisors.
func Found(tx *store.Tx, n int) error {
	err := errors.Join(securitygroup.AddDefault(tx, Org), securitygroup.AddDefault(tx, Stranger))
	for kind, prefix := range map[string]string{
		store.AddressInstance: "198.51.100.0/24", store.AddressInstance6: "2001:db8:1::/64", store.AddressElastic: "192.0.2.0/24",
		store.AddressElastic6: "2001:db8:e::/64",
	} {
		err = errors.Join(err, tx.AddPool(kind, netip.MustParsePrefix(prefix)))
	}
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

// New is a zone with n hypervisors.
func New(t testing.TB, n int) *Zone {
	t.Helper()
	z := &Zone{T: t, Path: filepath.Join(t.TempDir(), "cairn.db"), Hosts: hosttest.New("ch-gva-2"), Now: time.Now()}
	z.Open()
	t.Cleanup(func() { z.Store.Close() })
	if _, err := z.Store.Init(t.Context(), "ch-gva-2", func(tx *store.Tx) error { return Found(tx, n) }); err != nil {
		t.Fatal(err)
	}
	if err := z.Connect(); err != nil {
		t.Fatal(err)
	}
	return z
}

// Open starts a control plane on the store.
func (z *Zone) Open(options ...store.Option) {
	z.T.Helper()
	s, err := store.Open(z.T.Context(), z.Path, append(options, store.WithClock(func() time.Time { return z.Now }))...)
	if err != nil {
		z.T.Fatal(err)
	}
	quiet := slog.New(slog.DiscardHandler)
	z.Store, z.Gate = s, operation.New(s, quiet, securitygroup.Noun, privatenetwork.Noun)
	z.Instances, z.Elastics = instance.New(s, z.Gate), elasticip.New(s, z.Gate, quiet)
	z.Instances.Elastics = z.Elastics
	z.Handlers = api.Merge(z.Gate.Handlers(), z.Instances.Handlers(), securitygroup.Handlers(s, z.Gate),
		privatenetwork.Handlers(s, z.Gate), z.Elastics.Handlers(), reversedns.Handlers(s, z.Gate))
}

// Connect lets the hosts talk to the control plane.
func (z *Zone) Connect() error {
	return z.Hosts.Connect(z.T.Context(), hosttest.Cairnd{Store: z.Store, Settler: z.Gate, Reported: z.Instances.Report})
}

// Restart ends the control plane and starts another one. The hosts live on.
func (z *Zone) Restart(options ...store.Option) error {
	z.T.Helper()
	err := z.Store.Close()
	z.Open(options...)
	return errors.Join(err, z.Instances.Recover(z.T.Context()), z.Connect())
}

// Deliver lets the hosts catch up; they must never lose what no intent covers.
func (z *Zone) Deliver() {
	z.T.Helper()
	if err := z.Hosts.Deliver(z.T.Context()); err != nil {
		z.T.Fatal(err)
	}
	z.NoFaults()
}

// NoFaults fails if a host was asked to lose what no intent covers.
func (z *Zone) NoFaults() {
	z.T.Helper()
	if len(z.Hosts.Faults) > 0 {
		z.T.Fatalf("faults: %s", strings.Join(z.Hosts.Faults, "\n"))
	}
}

// Request is one of an organisation; args are parameters of the path.
func Request(org cloud.ID, id string, body any, args ...string) api.Call {
	c := api.Call{Operation: capi.Find(capi.Operations, id), Org: org, Body: body, Args: map[string]string{}, Query: map[string][]string{}}
	for i := 0; i < len(args); i += 2 {
		c.Args[args[i]] = args[i+1]
	}
	return c
}

// Do asks for what is to be accepted.
func (z *Zone) Do(id string, body any, args ...string) *cloud.Operation {
	z.T.Helper()
	op, err := z.Handlers[id](z.T.Context(), Request(Org, id, body, args...))
	if err != nil {
		z.T.Fatalf("%s: %v", id, err)
	}
	return op.(*cloud.Operation)
}

// Done asks, lets the hosts catch up, and returns the object of what must then
// have succeeded.
func (z *Zone) Done(id string, body any, args ...string) cloud.ID {
	z.T.Helper()
	op := z.Do(id, body, args...)
	z.Deliver()
	z.Ended(op, cloud.OperationSuccess, "", "")
	return op.Reference.ID
}

// Refused asks for what is to be refused.
func (z *Zone) Refused(kind cloud.Kind, text, id string, body any, args ...string) {
	z.T.Helper()
	z.RefusedTo(Org, kind, text, id, body, args...)
}

// RefusedTo is Refused for an organisation.
func (z *Zone) RefusedTo(org cloud.ID, kind cloud.Kind, text, id string, body any, args ...string) {
	z.T.Helper()
	_, err := z.Handlers[id](z.T.Context(), Request(org, id, body, args...))
	var e *cloud.Error
	if !errors.As(err, &e) || e.Kind != kind || !strings.Contains(e.Message, text) {
		z.T.Errorf("%s: %v, want %v with %q", id, err, kind, text)
	}
}

// Ended checks how an operation stands.
func (z *Zone) Ended(op *cloud.Operation, state cloud.OperationState, reason cloud.Reason, text string) {
	z.T.Helper()
	got := Get[*cloud.Operation](z, "get-operation", op.ID)
	if got.State != state || got.Reason != reason || !strings.Contains(got.Message, text) {
		z.T.Errorf("operation: %+v, want %s %s %q", *got, state, reason, text)
	}
}

// Get reads an object.
func Get[T any](z *Zone, id string, object cloud.ID) T {
	z.T.Helper()
	got, err := z.Handlers[id](z.T.Context(), Request(Org, id, nil, "id", string(object)))
	if err != nil {
		z.T.Fatalf("%s: %v", id, err)
	}
	return got.(T)
}

// Doc reads a document.
func Doc[T store.Document](z *Zone, id cloud.ID) (d store.Doc[T]) {
	z.T.Helper()
	err := z.Store.Read(z.T.Context(), func(tx *store.Tx) (err error) { d, err = store.Get[T](tx, "", id); return err })
	if err != nil {
		z.T.Fatal(err)
	}
	return d
}

// Order is for a small instance.
func Order() *cloud.CreateInstanceRequest {
	return &cloud.CreateInstanceRequest{InstanceType: cloud.Ref{ID: cloud.InstanceTypes[1].ID}, Template: cloud.Ref{ID: cloud.Images[0].ID}, DiskSize: 10}
}

// Instance makes one that runs.
func (z *Zone) Instance() cloud.ID {
	z.T.Helper()
	return z.Done("create-instance", Order())
}

// HostOf names the hypervisor of an instance.
func (z *Zone) HostOf(instance cloud.ID) string {
	z.T.Helper()
	return Doc[store.HypervisorDoc](z, Doc[store.InstanceDoc](z, instance).Body.Hypervisor).Body.Name
}

// Held lists what is allocated, without the numbers of hosts and groups.
func (z *Zone) Held() (all []string) {
	z.T.Helper()
	err := z.Store.Read(z.T.Context(), func(tx *store.Tx) (err error) { all, err = held(tx); return err })
	if err != nil {
		z.T.Fatal(err)
	}
	return all
}

func held(tx *store.Tx) (all []string, err error) {
	list, err := tx.Allocations()
	for _, a := range list {
		if a.Kind != store.NumberHost && a.Kind != store.NumberGroup {
			all = append(all, a.Kind+" "+a.What)
		}
	}
	return all, err
}

// Items are what one host holds of a kind of the wire, by key.
func Items[T wire.Item](z *Zone, host string) map[string]T {
	z.T.Helper()
	items := map[string]T{}
	for _, item := range z.Hosts.Host(host).Items() {
		if one, ok := item.(T); ok {
			items[one.Key().ID] = one
		}
	}
	return items
}

// Says is what a host reports of a check; it is committed at once.
func (z *Zone) Says(host string, key wire.Key, generation uint64, state string) {
	z.T.Helper()
	r := []dist.Report{{Kind: key.Kind, Key: key.ID, Generation: generation, State: state}}
	if err := errors.Join(z.Elastics.Reported(z.T.Context(), host, r), z.Elastics.Flush(z.T.Context())); err != nil {
		z.T.Fatal(err)
	}
}

// Pass lets time go by and deadlines be noticed.
func (z *Zone) Pass(d time.Duration) {
	z.T.Helper()
	z.Now = z.Now.Add(d)
	if err := z.Gate.Expire(z.T.Context()); err != nil {
		z.T.Fatal(err)
	}
}
