// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	v3 "github.com/exoscale/egoscale/v3"

	"cairn/cloud"
	capi "cairn/cloud/api"
	"cairn/cloud/wire"
	"cairn/controlplane/antiaffinity"
	"cairn/controlplane/api"
	"cairn/controlplane/dist"
	"cairn/controlplane/elasticip"
	"cairn/controlplane/instance"
	"cairn/controlplane/instance/hosttest"
	"cairn/controlplane/loadbalancer"
	"cairn/controlplane/operation"
	"cairn/controlplane/pool"
	"cairn/controlplane/privatenetwork"
	"cairn/controlplane/program"
	"cairn/controlplane/reversedns"
	"cairn/controlplane/securitygroup"
	"cairn/controlplane/sshkey"
	"cairn/controlplane/store"
	"cairn/controlplane/tenant"
)

// inhabited is the whole control plane on a store, with hosts that are played:
// they hold, report and acknowledge as soon as something is committed.
type inhabited struct {
	*real
	hosts     *hosttest.Hosts
	mu        sync.Mutex // on hosts
	edge      *httptest.Server
	worker    *program.Worker
	balancers *loadbalancer.Balancers
	elastics  *elasticip.Elastics
}

func newInhabited(t *testing.T, hypervisors int, addresses string) *inhabited {
	t.Helper()
	z := &inhabited{real: newReal(t), hosts: hosttest.New(zone)}
	_, err := z.store.Write(t.Context(), func(tx *store.Tx) error {
		err := errors.Join(tx.AddPool(store.AddressInstance, netip.MustParsePrefix(addresses)),
			tx.AddPool(store.AddressVIP, netip.MustParsePrefix("203.0.113.0/24")),
			tx.AddPool(store.AddressInstance6, netip.MustParsePrefix("2001:db8:1::/64")),
			tx.AddPool(store.AddressElastic, netip.MustParsePrefix("192.0.2.0/24")),
			tx.AddPool(store.AddressElastic6, netip.MustParsePrefix("2001:db8:e::/64")))
		for k := range hypervisors {
			d := store.Doc[store.HypervisorDoc]{ID: cloud.NewID(), Generation: 1}
			n, e := tx.Allocate(store.NumberHost, string(d.ID))
			d.Body = store.HypervisorDoc{ID: d.ID, Name: fmt.Sprintf("hv%d", k+1), Number: n, Joined: true,
				Endpoint: netip.AddrFrom4([4]byte{10, 64, 0, byte(n)}), MTU: 1600, Roles: []string{store.RoleCompute, store.RoleLB},
				Drivers: []string{"netns"}, CPUs: 2, Memory: 8 << 30}
			err = errors.Join(err, e, store.Put(tx, "", d))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	z.serve()
	return z
}

// serve starts what a cairnd starts, but the stream to its agents.
func (z *inhabited) serve() {
	t, s, quiet := z.t, z.store, slog.New(slog.DiscardHandler)
	gate := operation.New(s, quiet, securitygroup.Noun, privatenetwork.Noun)
	gate.Register(loadbalancer.Nouns...)
	instances := instance.New(s, gate)
	z.elastics = elasticip.New(s, gate, quiet)
	instances.Elastics, instances.Root = z.elastics, z.root
	pools, balancers := pool.New(s, gate, instances), loadbalancer.New(s, gate, quiet)
	z.worker = program.NewWorker(program.Config{Tasks: s.Tasks(), Owner: "cairnd", Actions: pools.Actions(), Done: pools.Done, Log: quiet})
	pools.Follower, pools.Wake, z.balancers, balancers.Drained = balancers, z.worker.Wake, balancers, pools.Drained
	edge, err := api.New(api.Config{
		Operations: slices.DeleteFunc(slices.Clone(capi.Operations), func(o capi.Operation) bool { return o.Extension }),
		Handlers: api.Merge(api.Catalogue(zone, "http://127.0.0.1"), gate.Handlers(), sshkey.Handlers(s, gate), antiaffinity.Handlers(s, gate),
			securitygroup.Handlers(s, gate), instances.Handlers(), pools.Handlers(), balancers.Handlers(),
			privatenetwork.Handlers(s, gate), z.elastics.Handlers(), reversedns.Handlers(s, gate)),
		Keys: tenant.Keys{Store: s, Root: z.root}, Answers: gate, Waiter: gate, Audit: gate.Audit, Zone: zone, PublicURL: "http://127.0.0.1", Logger: quiet,
	})
	if err != nil {
		t.Fatal(err)
	}
	z.edge = httptest.NewServer(edge)
	z.endpoint = capi.Endpoint(z.edge.URL)
	reported := func(ctx context.Context, host string, reports []dist.Report) error {
		return errors.Join(balancers.Reported(ctx, host, reports), instances.Report(ctx, host, reports))
	}
	if err := z.hosts.Connect(t.Context(), hosttest.Cairnd{Store: s, Settler: gate, Reported: reported}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	hint, stop := s.Subscribe()
	all.Go(func() { z.worker.Run(ctx) })
	all.Go(func() { balancers.Run(ctx) })
	all.Go(func() { z.elastics.Run(ctx) })
	all.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-hint:
				z.deliver(ctx)
			}
		}
	})
	t.Cleanup(func() { z.edge.Close(); cancel(); all.Wait(); stop() })
}

func (z *inhabited) deliver(ctx context.Context) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if err := z.hosts.Deliver(ctx); err != nil && ctx.Err() == nil {
		z.t.Error(err)
	}
}

// onHosts counts what the hosts hold of a kind. They must never have been asked
// to lose what no intent covers.
func (z *inhabited) onHosts(kind wire.Kind) int {
	z.mu.Lock()
	defer z.mu.Unlock()
	for _, f := range z.hosts.Faults {
		z.t.Error(f)
	}
	z.hosts.Faults = nil
	return z.hosts.Held(kind)
}

// ends waits for an operation without the client's pauses, and returns it.
func (s *story) ends(op *v3.Operation, err error) *v3.Operation {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for limit := time.After(30 * time.Second); op.State == v3.OperationStatePending; {
		select {
		case <-tick.C:
		case <-limit:
			s.t.Fatalf("still pending: %+v", op)
		}
		if op, err = s.GetOperation(s.ctx, op.ID); err != nil {
			s.t.Fatal(err)
		}
	}
	return op
}

// gets waits for an operation that is to succeed, and returns what it refers to.
func (s *story) gets(op *v3.Operation, err error) v3.UUID {
	s.t.Helper()
	o := s.ends(op, err)
	if o.State != v3.OperationStateSuccess {
		s.t.Fatalf("operation %+v", o)
	}
	return o.Reference.ID
}

func (s *story) order(name string) v3.CreateInstanceRequest {
	return v3.CreateInstanceRequest{Name: name, DiskSize: 10, InstanceType: &v3.InstanceType{ID: v3.UUID(cloud.InstanceTypes[1].ID)},
		Template: &v3.Template{ID: v3.UUID(cloud.Images[0].ID)}}
}

func TestInstancesOnHosts(t *testing.T) {
	z := newInhabited(t, 3, "198.51.100.0/24")
	s := z.tenant("acme", z.endpoint, once)
	s.done(s.RegisterSSHKey(s.ctx, v3.RegisterSSHKeyRequest{Name: "me", PublicKey: publicKey}))
	r := s.order("one")
	r.SSHKeys, r.Labels = []v3.SSHKey{{Name: "me"}}, v3.Labels{"a": "b"}
	id := s.gets(s.CreateInstance(s.ctx, r))
	i := must(s.GetInstance(s.ctx, id))(t)
	if i.State != v3.InstanceStateRunning || i.PublicIP.String() != "198.51.100.2" || i.MACAddress != "02:ca:00:00:00:01" || i.Name != "one" ||
		i.SecurebootEnabled == nil || *i.SecurebootEnabled || i.TpmEnabled == nil || *i.TpmEnabled || i.Labels["a"] != "b" || i.CreatedAT.IsZero() ||
		i.SSHKey == nil || i.SSHKey.Name != "me" || i.PublicIPAssignment != "inet4" || i.DiskSize != 10 || len(i.SecurityGroups) != 1 || i.Manager != nil {
		t.Errorf("instance %+v", i)
	}
	list := must(s.ListInstances(s.ctx, v3.ListInstancesWithIPAddress("198.51.100.2")))(t)
	if len(list.Instances) != 1 || list.Instances[0].ID != id {
		t.Errorf("instances %+v", list.Instances)
	}
	if list := must(s.ListInstances(s.ctx, v3.ListInstancesWithManagerType("instance-pool")))(t); len(list.Instances) != 0 {
		t.Errorf("instances of pools %+v", list.Instances)
	}
	_, err := s.CreateInstance(s.ctx, v3.CreateInstanceRequest{DiskSize: 10, InstanceType: &v3.InstanceType{ID: id}, Template: r.Template})
	refused(t, err, v3.ErrBadRequest, "instance-type.id")
	s.gets(s.StopInstance(s.ctx, id))
	if i := must(s.GetInstance(s.ctx, id))(t); i.State != v3.InstanceStateStopped {
		t.Errorf("stopped instance is %s", i.State)
	}
	s.gets(s.StartInstance(s.ctx, id, v3.StartInstanceRequest{}))
	s.gets(s.DeleteInstance(s.ctx, id))
	_, err = s.GetInstance(s.ctx, id)
	refused(t, err, v3.ErrNotFound, string(id))
	if n := z.onHosts(wire.KindInstance); n != 0 {
		t.Errorf("hosts hold %d instances", n)
	}
}

// TestStartStopStart: equal requests within a second are all meant.
func TestStartStopStartOnHosts(t *testing.T) {
	z := newInhabited(t, 1, "198.51.100.0/24")
	s := z.tenant("acme", z.endpoint, once)
	id := s.gets(s.CreateInstance(s.ctx, s.order("one")))
	for range 100 {
		s.gets(s.StartInstance(s.ctx, id, v3.StartInstanceRequest{}))
		s.gets(s.StopInstance(s.ctx, id))
		s.gets(s.StartInstance(s.ctx, id, v3.StartInstanceRequest{}))
		if i := must(s.GetInstance(s.ctx, id))(t); i.State != v3.InstanceStateRunning {
			t.Fatalf("instance is %s", i.State)
		}
	}
}

// TestApart: three hypervisors take three of a group; the fourth operation
// fails and names the group, and nothing of it is left.
func TestApart(t *testing.T) {
	z := newInhabited(t, 3, "198.51.100.0/24")
	s := z.tenant("acme", z.endpoint, once)
	group := s.done(s.CreateAntiAffinityGroup(s.ctx, v3.CreateAntiAffinityGroupRequest{Name: "apart"}))
	r := s.order("one")
	r.AntiAffinityGroups = []v3.AntiAffinityGroup{{ID: group}}
	for range 3 {
		s.gets(s.CreateInstance(s.ctx, r))
	}
	op := s.ends(s.CreateInstance(s.ctx, r))
	if op.State != v3.OperationStateFailure || op.Reason != v3.OperationReasonUnavailable || !strings.Contains(op.Message, "apart") {
		t.Errorf("operation %+v", op)
	}
	_, err := s.GetInstance(s.ctx, op.Reference.ID)
	refused(t, err, v3.ErrNotFound, "")
	if g := must(s.GetAntiAffinityGroup(s.ctx, group))(t); len(g.Instances) != 3 {
		t.Errorf("group %+v", g)
	}
	_, err = s.DeleteAntiAffinityGroup(s.ctx, group)
	refused(t, err, v3.ErrConflict, "in use")
}

func TestNoAddressLeft(t *testing.T) {
	z := newInhabited(t, 1, "198.51.100.0/30") // one, without network, gateway and broadcast
	s := z.tenant("acme", z.endpoint, once)
	s.gets(s.CreateInstance(s.ctx, s.order("one")))
	_, err := s.CreateInstance(s.ctx, s.order("two"))
	refused(t, err, v3.ErrConflict, "198.51.100.0/30")
}

// TestPools follows a customer through the life of a pool behind a load
// balancer, in the order in which clients do things.
func TestPools(t *testing.T) {
	z := newInhabited(t, 3, "198.51.100.0/24")
	s := z.tenant("acme", z.endpoint, once)
	s.done(s.RegisterSSHKey(s.ctx, v3.RegisterSSHKeyRequest{Name: "me", PublicKey: publicKey}))
	group := s.done(s.CreateAntiAffinityGroup(s.ctx, v3.CreateAntiAffinityGroupRequest{Name: "apart"}))
	sg := s.gets(s.CreateSecurityGroup(s.ctx, v3.CreateSecurityGroupRequest{Name: "web"}))
	o := s.order("")
	id := s.gets(s.CreateInstancePool(s.ctx, v3.CreateInstancePoolRequest{Name: "web", Size: 4, DiskSize: 10, InstanceType: o.InstanceType, Template: o.Template,
		SSHKeys: []v3.SSHKey{{Name: "me"}}, SecurityGroups: []v3.SecurityGroup{{ID: sg}}}))
	p := must(s.GetInstancePool(s.ctx, id))(t)
	if p.State != v3.InstancePoolStateRunning || p.Size != 4 || len(p.Instances) != 4 || p.InstancePrefix != "pool" || p.SecurityGroups[0].ID != sg {
		t.Errorf("pool %+v", p)
	}
	members := must(s.ListInstances(s.ctx, v3.ListInstancesWithManagerID(id), v3.ListInstancesWithManagerType("instance-pool")))(t).Instances
	if len(members) != 4 || members[0].Manager == nil || members[0].Manager.ID != id || !strings.HasPrefix(members[0].Name, "pool-"+string(id)[:5]+"-") {
		t.Errorf("members %+v", members)
	}

	lb := s.gets(s.CreateLoadBalancer(s.ctx, v3.CreateLoadBalancerRequest{Name: "front"}))
	s.gets(s.AddServiceToLoadBalancer(s.ctx, lb, v3.AddServiceToLoadBalancerRequest{Name: "http", InstancePool: &v3.InstancePool{ID: id}, Protocol: "tcp",
		Strategy: "round-robin", Port: 80, TargetPort: 80, Healthcheck: &v3.LoadBalancerServiceHealthcheck{Mode: "tcp", Port: 80, Interval: 10, Timeout: 5, Retries: 1}}))
	_, err := s.DeleteInstancePool(s.ctx, id)
	refused(t, err, v3.ErrConflict, "in use")

	s.gets(s.ScaleInstancePool(s.ctx, id, v3.ScaleInstancePoolRequest{Size: 6}))
	s.gets(s.EvictInstancePoolMembers(s.ctx, id, v3.EvictInstancePoolMembersRequest{Instances: []v3.UUID{members[2].ID}}))
	s.gets(s.ScaleInstancePool(s.ctx, id, v3.ScaleInstancePoolRequest{Size: 2}))
	if p := must(s.GetInstancePool(s.ctx, id))(t); p.Size != 2 || len(p.Instances) != 2 {
		t.Errorf("pool %+v", p)
	}
	if n := z.onHosts(wire.KindCheck); n != 2 {
		t.Errorf("hosts do %d checks, want 2", n)
	}
	// What the client sends for a new name is null for what it does not name.
	s.gets(s.UpdateInstancePool(s.ctx, id, v3.UpdateInstancePoolRequest{Name: "renamed"}))
	if p := must(s.GetInstancePool(s.ctx, id))(t); p.Name != "renamed" || p.Size != 2 {
		t.Errorf("pool %+v", p)
	}

	service := must(s.GetLoadBalancer(s.ctx, lb))(t).Services[0].ID
	s.gets(s.DeleteLoadBalancerService(s.ctx, lb, service))
	gone, err := s.DeleteLoadBalancer(s.ctx, lb)
	if err != nil {
		t.Fatal(err)
	}
	s.gets(s.DeleteInstancePool(s.ctx, id))
	s.gets(gone, nil)
	// At once, as clients do.
	s.done(s.DeleteSecurityGroup(s.ctx, sg))
	s.done(s.DeleteAntiAffinityGroup(s.ctx, group))
	s.done(s.DeleteSSHKey(s.ctx, "me"))
	for _, kind := range wire.Kinds() {
		if n := z.onHosts(kind); n > 0 && kind != wire.KindHost {
			t.Errorf("hosts still hold %d of kind %s", n, kind)
		}
	}
}
