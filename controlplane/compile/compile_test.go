// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"cairn/cloud"
	"cairn/cloud/wire"
	"cairn/controlplane/replica"
	"cairn/controlplane/store"
)

// The zone of the tests: hypervisors 1 (lb), 2 and 3; group 1 admits the web
// from anywhere, group 2 admits group 1, and group 3 has no rules; two web
// instances on 1 and 2, a database on 3.
func start() replica.Rows {
	return replica.Rows{
		Hosts:  []*replica.Host{host(1, store.RoleLB), host(2), host(3)},
		Groups: []*replica.Group{group(1, from("0.0.0.0/0", 80)), group(2, fromGroup(1, 5432)), group(3)},
		Instances: []*replica.Instance{
			instance(1, 1, 1, 1), instance(2, 2, 1, 1), instance(3, 3, 2, 2),
		},
	}
}

func TestWhatAChangeTouches(t *testing.T) {
	withService := func() replica.Rows {
		rows := start()
		rows.Balancers = []*replica.Balancer{balancer(1)}
		rows.Services = []*replica.Service{service(1, 1, 1)}
		return rows
	}
	change := func(i *replica.Instance, by func(*store.InstanceDoc)) *replica.Instance {
		by(&i.Body)
		return i
	}
	tests := []struct {
		what   string
		before replica.Rows
		rows   replica.Rows
		want   string
	}{
		{"nothing differs", withService(), withService(), ""},
		{"a group without members", start(), replica.Rows{Groups: []*replica.Group{group(4, from("0.0.0.0/0", 22))}}, ""},
		{"a load balancer without services", start(), replica.Rows{Balancers: []*replica.Balancer{balancer(1)}}, ""},
		{
			"a rule more: its policy, where the group is", start(),
			replica.Rows{Groups: []*replica.Group{group(1, from("0.0.0.0/0", 80), from("0.0.0.0/0", 443))}},
			"set policy/1 on [1 2]\n",
		},
		{
			"a rule that names a group: its members too", start(),
			replica.Rows{Groups: []*replica.Group{group(1, from("0.0.0.0/0", 80), fromGroup(2, 9000))}},
			"set class/2 on [1 2]\nset member/0/198.51.100.3 on [1 2]\nset policy/1 on [1 2]\n",
		},
		{
			"a rule that names a group is removed", start(),
			replica.Rows{Groups: []*replica.Group{group(2)}},
			"gone class/1 on [3] by op\ngone member/0/198.51.100.1 on [3] by op\ngone member/0/198.51.100.2 on [3] by op\nset policy/2 on [3]\n",
		},
		{
			"an external source more of a named group: the policies that name it", start(),
			replica.Rows{Groups: []*replica.Group{sourced(group(1, from("0.0.0.0/0", 80)), "192.0.2.0/24")}},
			"set policy/2 on [3]\n",
		},
		{
			"an external source of a group that nobody names", start(),
			replica.Rows{Groups: []*replica.Group{sourced(group(2, fromGroup(1, 5432)), "192.0.2.0/24")}},
			"",
		},
		{
			"a public group comes to be", naming("office"),
			replica.Rows{Publics: []*replica.PublicGroup{publicGroup("office", 9, "192.0.2.0/24")}},
			"set policy/1 on [1 2]\n",
		},
		{
			"a public group that nobody names", naming("office"),
			replica.Rows{Publics: []*replica.PublicGroup{publicGroup("depot", 9, "192.0.2.0/24")}},
			"",
		},
		{
			"an organisation may send mail: all its ports", start(),
			replica.Rows{SMTP: []*replica.SMTPPermit{{ID: "red"}}},
			"set port/1 on [1]\nset port/2 on [2]\nset port/3 on [3]\n",
		},
		{
			"another organisation may send mail", start(),
			replica.Rows{SMTP: []*replica.SMTPPermit{{ID: "blue"}}},
			"",
		},
		{
			"a second address of a member", start(),
			replica.Rows{Instances: []*replica.Instance{
				change(instance(1, 1, 1, 1), func(d *store.InstanceDoc) { d.Address6 = netip.MustParseAddr("2001:db8::7") }),
			}},
			`set member/0/2001:db8::7 on [3]
set port/1 on [1]
set announcement/2001:db8::7/128 on [1]
`,
		},
		{
			"a member more of a named group: one tiny item for who names it", start(),
			replica.Rows{Instances: []*replica.Instance{instance(4, 2, 1, 1)}},
			`set member/0/198.51.100.4 on [3]
set instance/i4 on [2]
set port/4 on [2]
set announcement/198.51.100.4/32 on [2]
`,
		},
		{
			"the first instance of a class on a host: what its rules name follows", start(),
			replica.Rows{Instances: []*replica.Instance{instance(4, 2, 2, 2)}},
			`set class/1 on [2]
set member/0/198.51.100.1 on [2]
set member/0/198.51.100.2 on [2]
set policy/2 on [2]
set instance/i4 on [2]
set port/4 on [2]
set announcement/198.51.100.4/32 on [2]
`,
		},
		{
			"an instance on its way out", start(),
			replica.Rows{Instances: []*replica.Instance{
				change(instance(3, 3, 2, 2), func(d *store.InstanceDoc) { d.State = cloud.InstanceDestroying }),
			}},
			`gone class/1 on [3] by op
gone member/0/198.51.100.1 on [3] by op
gone member/0/198.51.100.2 on [3] by op
gone policy/2 on [3] by op
gone instance/i3 on [3] by op
gone port/3 on [3] by op
gone announcement/198.51.100.3/32 on [3] by op
`,
		},
		{
			"an instance changes its groups", start(),
			replica.Rows{Instances: []*replica.Instance{instance(2, 2, 4, 1, 3)}},
			`set class/4 on [3]
set member/0/198.51.100.2 on [3]
gone policy/1 on [2] by op
set policy/4 on [2]
set port/2 on [2]
`,
		},
		{
			"stopped", start(),
			replica.Rows{Instances: []*replica.Instance{
				change(instance(2, 2, 1, 1), func(d *store.InstanceDoc) { d.Wanted = store.WantedStopped }),
			}},
			"set instance/i2 on [2]\n",
		},
		{
			"what customers see but agents do not", start(),
			replica.Rows{Instances: []*replica.Instance{
				change(instance(2, 2, 1, 1), func(d *store.InstanceDoc) { d.Labels = cloud.Labels{"a": "b"} }),
			}},
			"",
		},
		{
			"a first service: LB nodes and hosts of backends", start(),
			replica.Rows{Balancers: []*replica.Balancer{balancer(1)}, Services: []*replica.Service{service(1, 1, 2, 3)}},
			`set backend/102 on [1 2 3]
set backend/103 on [1 2 3]
set slots/1 on [1 2 3]
set service/1 on [1 2 3]
set check/1/102 on [2]
set check/1/103 on [3]
set announcement/203.0.113.1/32 on [1]
`,
		},
		{
			"a backend more on another host", withService(),
			replica.Rows{Services: []*replica.Service{service(1, 1, 1, 2)}},
			`set backend/101 on [2]
set backend/102 on [1 2]
set slots/1 on [2]
set service/1 on [2]
set check/1/102 on [2]
`,
		},
		{
			"a verdict", withService(),
			replica.Rows{Services: []*replica.Service{func() *replica.Service {
				s := service(1, 1, 1)
				s.Body.Backends[0].Verdict = store.VerdictFailure
				return s
			}()}},
			"set backend/101 on [1]\n",
		},
		{
			"the last service goes, and the address with it", withService(),
			replica.Rows{Deleted: []store.Ref{{Kind: store.KindService, ID: "s1"}}},
			`gone backend/101 on [1] by op
gone slots/1 on [1] by op
gone service/1 on [1] by op
gone check/1/101 on [1] by op
gone announcement/203.0.113.1/32 on [1] by op
`,
		},
		{
			"an LB node more", withService(),
			replica.Rows{Hosts: []*replica.Host{host(2, store.RoleLB)}},
			`set backend/101 on [2]
set slots/1 on [2]
set service/1 on [2]
set announcement/203.0.113.1/32 on [1 2]
`,
		},
		{
			"a hypervisor is silent", withService(),
			replica.Rows{Hosts: []*replica.Host{func() *replica.Host {
				h := host(1, store.RoleLB)
				h.Body.Unreachable = true
				return h
			}()}},
			"",
		},
		{
			"a hypervisor has moved", start(),
			replica.Rows{Hosts: []*replica.Host{func() *replica.Host {
				h := host(2)
				h.Body.MTU = 9000
				return h
			}()}},
			"set host/2 on [1 2 3]\n",
		},
		{
			"a row that cannot be expressed leaves things as they are", withService(),
			replica.Rows{Instances: []*replica.Instance{
				change(instance(1, 1, 1, 1), func(d *store.InstanceDoc) { d.MAC = "nonsense" }),
				change(instance(2, 2, 1, 1), func(d *store.InstanceDoc) { d.Wanted = store.WantedStopped }),
			}},
			`set instance/i2 on [2]
fault compile instance/i1: mac of port 1: address nonsense: invalid MAC address
fault compile service/s1: mac of port 1: address nonsense: invalid MAC address
`,
		},
	}
	for _, test := range tests {
		t.Run(test.what, func(t *testing.T) {
			w := newWorld(t)
			w.commit("", test.before)
			if got := text(w.commit("op", test.rows)); got != test.want {
				t.Errorf("got\n%swant\n%s", got, test.want)
			}
		})
	}
}

func items(t *testing.T, w *world, o Owner) []wire.Item {
	t.Helper()
	placed, err := New(w.replica.Snapshot(), "ch-gva-2").Items(o)
	if err != nil {
		t.Fatal(err)
	}
	var out []wire.Item
	for _, p := range placed {
		out = append(out, p.Item)
	}
	return out
}

func TestPolicy(t *testing.T) {
	w := newWorld(t)
	rows := start()
	public := func(name string, d cloud.FlowDirection) cloud.SecurityGroupRule {
		r := from("", 80)
		r.FlowDirection, r.SecurityGroup = d, &cloud.SecurityGroupResource{Name: name, Visibility: "public"}
		return r
	}
	icmp := cloud.SecurityGroupRule{FlowDirection: cloud.Egress, Protocol: cloud.ICMP, Network: "10.0.0.0/8", ICMP: &cloud.ICMPMatch{Type: 8, Code: -1}}
	every := cloud.SecurityGroupRule{FlowDirection: cloud.Ingress, Protocol: cloud.All, Network: "192.0.2.0/24"}
	sctp, tcp, kept := every, every, from("2001:db8::/32", 443)
	sctp.ProtocolNumber, tcp.ProtocolNumber, kept.KeepEstablished = 132, 6, true
	builtIn := "public-nlb-healthcheck-sources"
	rows.Groups = []*replica.Group{
		group(2, fromGroup(1, 5432), public(builtIn, cloud.Ingress), public(builtIn, cloud.Egress), public("office", cloud.Ingress), fromGroup(9, 1)),
		sourced(group(1, from("0.0.0.0/0", 80), icmp, every, sctp, tcp, kept), "203.0.113.7/24", "2001:db8:1::/48"),
	}
	rows.Publics = []*replica.PublicGroup{publicGroup("office", 8, "198.51.100.0/24")}
	rows.Instances = []*replica.Instance{instance(1, 1, 7, 2, 1)}
	w.commit("", rows)
	want := []string{
		"{100 ingress 6 80 80 -1 -1 0.0.0.0/0 0 [] false g1/r1-0}",
		"{101 egress 1 0 0 8 -1 10.0.0.0/8 0 [] false g1/r1-1}",
		"{102 ingress 0 0 0 -1 -1 192.0.2.0/24 0 [] false g1/r1-2}",
		"{103 ingress 132 0 0 -1 -1 192.0.2.0/24 0 [] false g1/r1-3}",
		"{104 ingress 6 0 65535 -1 -1 192.0.2.0/24 0 [] false g1/r1-4}",
		"{105 ingress 6 443 443 -1 -1 2001:db8::/32 0 [] true g1/r1-5}",
		"{200 ingress 6 5432 5432 -1 -1 invalid Prefix 1 [203.0.113.7/24 2001:db8:1::/48] false g2/r2-0}",
		"{202 egress 6 80 80 -1 -1 invalid Prefix 4294967295 [] false g2/r2-2}",
		"{203 ingress 6 80 80 -1 -1 invalid Prefix 8 [198.51.100.0/24] false g2/r2-3}",
	}
	made := items(t, w, ownerOfClass(7))
	var got []string
	for _, r := range made[0].(wire.Policy).Rules {
		got = append(got, fmt.Sprint(r))
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if class := made[1].(wire.Class); !slices.Equal(class.Groups, []uint32{1, 2}) {
		t.Errorf("class %+v", class)
	}
	tooMany := group(1)
	for i := range wire.MaxRules + 1 {
		tooMany = group(1, append(tooMany.Body.Rules, from("0.0.0.0/0", uint16(i+1)))...)
	}
	if got := text(w.commit("op", replica.Rows{Groups: []*replica.Group{tooMany}})); !strings.Contains(got, "more than 1024") {
		t.Errorf("one rule too many: %s", got)
	}
}

func TestAnnouncersOfALargeZone(t *testing.T) {
	w := newWorld(t)
	rows := start()
	rows.Hosts = nil
	for n := range uint32(30) {
		rows.Hosts = append(rows.Hosts, host(n+1, store.RoleLB))
	}
	w.commit("", rows)
	ranksOf := func(n uint32) []uint32 { return New(w.replica.Snapshot(), "").announcersOf(vip(n)) }
	first := map[uint32]int{}
	for n := range uint32(200) {
		ranks := ranksOf(n)
		domains := map[uint32]int{}
		for _, h := range ranks {
			domains[h%3]++
		}
		if len(ranks) != announcers || len(sorted(ranks)) != announcers || domains[0] < 2 || domains[1] < 2 || domains[2] < 2 {
			t.Fatalf("vip %d: %v", n, ranks)
		}
		first[ranks[0]]++
	}
	if len(first) < 15 {
		t.Errorf("only %d of 30 nodes have rank 0 for one of 200 addresses", len(first))
	}
	before := ranksOf(1)
	drained := host(before[0], store.RoleLB)
	drained.Body.Draining = true
	w.commit("", replica.Rows{Hosts: []*replica.Host{drained}})
	after := ranksOf(1)
	if slices.Contains(after, before[0]) {
		t.Errorf("%d drains and still announces: %v", before[0], after)
	}
	if kept := slices.DeleteFunc(slices.Clone(after), func(h uint32) bool { return !slices.Contains(before, h) }); len(kept) < announcers-2 {
		t.Errorf("ranks %v, then %v: too many moved", before, after)
	}
}

// TestByIndexEqualsFromScratch: whatever changes in whatever order, what was
// compiled step by step is what compiling everything gives.
func TestByIndexEqualsFromScratch(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := newWorld(t)
		w.commit("", start())
		held := map[uint32]map[wire.Key]string{} // by what steps told the hosts
		for range rapid.IntRange(1, 12).Draw(rt, "commits") {
			r := w.commit("op", draw(rt))
			for _, h := range r.Everyone {
				if held[h] == nil {
					held[h] = map[wire.Key]string{}
					for e := range w.state.Entries() {
						if e.Holds(h) {
							held[h][e.Key] = string(e.Body)
						}
					}
				}
			}
			for _, s := range r.Steps {
				for _, h := range s.Touched(slices.Collect(maps.Keys(held))) {
					switch {
					case held[h] == nil: // not joined: it has no stream
					case s.After.Holds(h):
						held[h][s.Key()] = string(s.After.Body)
					default:
						delete(held[h], s.Key())
					}
				}
			}
		}
		whole := NewState("ch-gva-2", func(func(*Entry) bool) {})
		whole.Apply(replica.Batch{After: w.replica.Snapshot(), Full: true})
		got, want := dump(w.state), dump(whole)
		if !reflect.DeepEqual(got, want) {
			rt.Fatalf("step by step\n%v\nfrom scratch\n%v", got, want)
		}
		for h, keys := range held {
			for e := range whole.Entries() {
				if body, ok := keys[e.Key]; ok != e.Holds(h) || ok && body != string(e.Body) {
					rt.Fatalf("host %d and %s: told %v, should hold %v", h, e.Key, ok, e.Holds(h))
				}
				delete(keys, e.Key)
			}
			if len(keys) > 0 {
				rt.Fatalf("host %d still holds %v", h, keys)
			}
		}
	})
}

func dump(s *State) map[string]string {
	out := map[string]string{}
	for e := range s.Entries() {
		out[e.Key.String()] = fmt.Sprint(e.Owner, e.Generation, e.Sum, e.Hosts, e.All)
	}
	return out
}

// draw makes some rows of a small zone, in any combination.
func draw(t *rapid.T) replica.Rows {
	var rows replica.Rows
	n := func(label string, most int) uint32 { return uint32(rapid.IntRange(1, most).Draw(t, label)) }
	for range rapid.IntRange(1, 3).Draw(t, "rows") {
		switch rapid.IntRange(0, 10).Draw(t, "kind") {
		case 7:
			rows.Networks = append(rows.Networks, network(n("network", 3), rapid.Bool().Draw(t, "firewall"), rapid.Bool().Draw(t, "managed")))
		case 8:
			rows.Elastics = append(rows.Elastics, drawElastic(t, n("elastic", 2)))
		case 0:
			h := host(n("host", 4))
			if rapid.Bool().Draw(t, "lb") {
				h = host(h.Body.Number, store.RoleLB)
			}
			h.Body.Draining = rapid.Bool().Draw(t, "draining")
			rows.Hosts = append(rows.Hosts, h)
		case 1:
			g := n("group", 4)
			var rules []cloud.SecurityGroupRule
			for range rapid.IntRange(0, 2).Draw(t, "rules") {
				switch rapid.IntRange(0, 2).Draw(t, "peer") {
				case 0:
					rules = append(rules, fromGroup(n("peer", 4), 80))
				case 1:
					rules = append(rules, fromPublic(drawName(t)))
				case 2:
					rules = append(rules, from("10.0.0.0/8", uint16(n("port", 9))))
				}
			}
			rows.Groups = append(rows.Groups, sourced(group(g, rules...), drawSources(t)...))
		case 2, 3:
			i := n("instance", 6)
			made := instance(i, n("at", 4), 0)
			set := rapid.IntRange(1, 15).Draw(t, "set") // a class is a set of groups
			made = instance(i, made.Body.HostNumber, uint32(set), groupsOf(set)...)
			if rapid.IntRange(0, 4).Draw(t, "out") == 0 {
				made.Body.State = cloud.InstanceDestroying
			}
			drawInterfaces(t, made)
			rows.Instances = append(rows.Instances, made)
		case 4:
			rows.Balancers = append(rows.Balancers, balancer(n("balancer", 2)))
		case 5:
			s := n("service", 3)
			rows.Services = append(rows.Services, service(s, 1+s%2, groupsOf(rapid.IntRange(0, 15).Draw(t, "backends"))...))
		case 6:
			kind := rapid.SampledFrom([]store.Ref{
				{Kind: store.KindInstance, ID: instanceID(n("gone", 6))}, {Kind: store.KindService, ID: cloud.ID(fmt.Sprintf("s%d", n("gone", 3)))},
				{Kind: store.KindLoadBalancer, ID: "l1"}, {Kind: store.KindSecurityGroup, ID: groupID(n("gone", 4))},
				{Kind: store.KindHypervisor, ID: cloud.ID(fmt.Sprintf("h%d", n("gone", 4)))},
				{Kind: store.KindPrivateNetwork, ID: networkID(n("gone", 3))}, {Kind: store.KindElasticIP, ID: elasticID(n("gone", 2))},
				{Kind: store.KindPublicGroup, ID: cloud.ID(drawName(t))}, {Kind: store.KindSMTP, ID: "red"},
			}).Draw(t, "delete")
			rows.Deleted = append(rows.Deleted, kind)
		case 10:
			rows.SMTP = append(rows.SMTP, &replica.SMTPPermit{ID: "red"})
		case 9:
			rows.Publics = append(rows.Publics, publicGroup(drawName(t), 77, drawSources(t)...))
		}
	}
	return rows
}

func drawName(t *rapid.T) string {
	return rapid.SampledFrom([]string{"office", "depot"}).Draw(t, "public")
}

func drawSources(t *rapid.T) []string {
	return rapid.SliceOfN(rapid.SampledFrom([]string{"192.0.2.0/24", "2001:db8::/32"}), 0, 2).Draw(t, "sources")
}

func groupsOf(set int) []uint32 {
	var groups []uint32
	for bit := range 4 {
		if set>>bit&1 == 1 {
			groups = append(groups, uint32(bit+1))
		}
	}
	return groups
}
