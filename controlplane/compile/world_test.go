// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"cairn/cloud"
	"cairn/controlplane/replica"
	"cairn/controlplane/store"
)

// world is a small zone that tests change by commits of rows.
type world struct {
	t       testing.TB
	replica *replica.Replica
	state   *State
	rev     store.Revision
}

func newWorld(t testing.TB) *world {
	t.Helper()
	r, err := replica.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return &world{t: t, replica: r, state: NewState("ch-gva-2", func(func(*Entry) bool) {})}
}

// commit takes rows in as made by operation and compiles what they concern.
func (w *world) commit(operation cloud.ID, rows replica.Rows) Result {
	w.t.Helper()
	w.rev++
	rows.Revision = w.rev
	b := replica.Batch{Before: w.replica.Snapshot()}
	note := func(kind store.Kind, id cloud.ID, deleted bool) {
		b.Changes = append(b.Changes, store.Change{
			Revision: w.rev, Seq: len(b.Changes), Kind: kind, ID: id, Deleted: deleted, Operation: operation,
		})
	}
	for _, h := range rows.Hosts {
		note(store.KindHypervisor, h.ID, false)
	}
	for _, g := range rows.Groups {
		note(store.KindSecurityGroup, g.ID, false)
	}
	for _, p := range rows.Publics {
		note(store.KindPublicGroup, p.ID, false)
	}
	for _, p := range rows.SMTP {
		note(store.KindSMTP, p.ID, false)
	}
	for _, i := range rows.Instances {
		note(store.KindInstance, i.ID, false)
	}
	for _, l := range rows.Balancers {
		note(store.KindLoadBalancer, l.ID, false)
	}
	for _, s := range rows.Services {
		note(store.KindService, s.ID, false)
	}
	for _, n := range rows.Networks {
		note(store.KindPrivateNetwork, n.ID, false)
	}
	for _, e := range rows.Elastics {
		note(store.KindElasticIP, e.ID, false)
	}
	for _, ref := range rows.Deleted {
		note(ref.Kind, ref.ID, true)
	}
	w.replica.Commit(rows)
	b.After = w.replica.Snapshot()
	return w.state.Apply(b)
}

func host(n uint32, roles ...string) *replica.Host {
	return &replica.Host{ID: cloud.ID(fmt.Sprintf("h%d", n)), Body: store.HypervisorDoc{
		Name: fmt.Sprintf("hv%d", n), Number: n, FailureDomain: fmt.Sprintf("rack%d", n%3), Joined: true,
		Endpoint: netip.AddrFrom4([4]byte{10, 64, byte(n >> 8), byte(n)}), MTU: 1600, Roles: roles,
	}}
}

func group(n uint32, rules ...cloud.SecurityGroupRule) *replica.Group {
	g := &replica.Group{ID: groupID(n), Body: store.SecurityGroupDoc{Number: n, RuleNumbers: map[cloud.ID]uint32{}}}
	g.Body.Name = string(g.ID)
	for i, r := range rules {
		r.ID = cloud.ID(fmt.Sprintf("r%d-%d", n, i))
		g.Body.Rules = append(g.Body.Rules, r)
		g.Body.RuleNumbers[r.ID] = n*100 + uint32(i)
	}
	return g
}

func groupID(n uint32) cloud.ID { return cloud.ID(fmt.Sprintf("g%d", n)) }

func from(network string, port uint16) cloud.SecurityGroupRule {
	return cloud.SecurityGroupRule{
		FlowDirection: cloud.Ingress, Protocol: cloud.TCP, Network: network, StartPort: port, EndPort: port,
	}
}

func fromGroup(n uint32, port uint16) cloud.SecurityGroupRule {
	r := from("", port)
	r.SecurityGroup = &cloud.SecurityGroupResource{ID: groupID(n)}
	return r
}

// sourced gives a group external sources.
func sourced(g *replica.Group, sources ...string) *replica.Group {
	g.Body.ExternalSources = sources
	return g
}

func publicGroup(name string, number uint32, sources ...string) *replica.PublicGroup {
	return &replica.PublicGroup{ID: cloud.ID(name), Body: store.PublicGroupDoc{Name: name, Number: number, Sources: sources}}
}

func fromPublic(name string) cloud.SecurityGroupRule {
	r := from("", 80)
	r.SecurityGroup = &cloud.SecurityGroupResource{Name: name, Visibility: "public"}
	return r
}

// naming is the zone of start, whose group 1 names a public group too.
func naming(name string) replica.Rows {
	rows := start()
	rows.Groups[0] = group(1, from("0.0.0.0/0", 80), fromPublic(name))
	return rows
}

func instance(n, host, class uint32, groups ...uint32) *replica.Instance {
	i := &replica.Instance{ID: instanceID(n), Org: "red", Generation: 1, Body: store.InstanceDoc{
		HostNumber: host, Port: n, Class: class, Wanted: store.WantedRunning, Driver: "netns", Command: "echo",
		Address: netip.AddrFrom4([4]byte{198, 51, 100, byte(n)}), MAC: fmt.Sprintf("02:ca:00:00:00:%02x", n),
	}}
	i.Body.State, i.Body.Name = cloud.InstanceRunning, string(i.ID)
	for _, g := range groups {
		i.Body.SecurityGroups = append(i.Body.SecurityGroups, cloud.Ref{ID: groupID(g)})
	}
	return i
}

func instanceID(n uint32) cloud.ID { return cloud.ID(fmt.Sprintf("i%d", n)) }

func balancer(n uint32) *replica.Balancer {
	b := &replica.Balancer{ID: cloud.ID(fmt.Sprintf("l%d", n)), Body: store.LoadBalancerDoc{VIP: vip(n)}}
	b.Body.State = cloud.BalancerRunning
	return b
}

func vip(n uint32) netip.Addr { return netip.AddrFrom4([4]byte{203, 0, 113, byte(n)}) }

func service(n, balancer uint32, backends ...uint32) *replica.Service {
	s := &replica.Service{Slots: make([]byte, 8*256)}
	s.ID = cloud.ID(fmt.Sprintf("s%d", n))
	s.Body = store.ServiceDoc{
		LoadBalancer: cloud.ID(fmt.Sprintf("l%d", balancer)), VIP: vip(balancer), Number: n, Seed: 7, SlotsGeneration: 1,
	}
	s.Body.Protocol, s.Body.Port, s.Body.TargetPort, s.Body.Strategy = cloud.TCP, 80, 8080, cloud.RoundRobin
	s.Body.Healthcheck = cloud.Healthcheck{Mode: cloud.CheckHTTP, URI: "/"}
	for _, b := range backends {
		s.Body.Backends = append(s.Body.Backends, store.BackendDoc{
			Number: n*100 + b, Instance: instanceID(b), Generation: 1,
			Verdict: store.VerdictInitial, State: store.BackendActive,
		})
	}
	return s
}

// text of a result: one line an item, "set" for who gets it, "gone" for who
// lets it go.
func text(r Result) string {
	var out strings.Builder
	for _, s := range r.Steps {
		var set, gone []uint32
		for _, h := range s.Touched(r.Everyone) {
			if s.After.Holds(h) {
				set = append(set, h)
			} else {
				gone = append(gone, h)
			}
		}
		if len(set) > 0 {
			fmt.Fprintf(&out, "set %s on %v\n", s.Key(), set)
		}
		if len(gone) > 0 {
			fmt.Fprintf(&out, "gone %s on %v by %s\n", s.Key(), gone, s.Operation())
		}
	}
	for _, f := range r.Faults {
		fmt.Fprintf(&out, "fault %v\n", f.Err)
	}
	return out.String()
}
