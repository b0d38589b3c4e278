// SPDX-License-Identifier: Apache-2.0

//go:build program

package explain

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"cairn/bpf"
	"cairn/cloud"
	"cairn/cloud/firewall"
	"cairn/cloud/wire"
	"cairn/controlplane/compile"
	cexplain "cairn/controlplane/explain"
	"cairn/controlplane/replica"
	"cairn/controlplane/store"
	"cairn/dataplane/maps"
	"cairn/dataplane/port"
	"cairn/dataplane/table"
)

const (
	zones  = 24
	flows  = 600 // of each
	groups = 6
	people = 12
	self   = 1 // the instance that is asked about, and its port
)

// zone is one made at random.
type zone struct {
	*rand.Rand
	snap    replica.Snapshot
	classes map[string]uint32
	open    bool // no rule is for egress
	rules   []cloud.SecurityGroupRule
}

func pick[T any](rnd *rand.Rand, of []T) T { return of[rnd.IntN(len(of))] }

func id(kind string, n int) cloud.ID { return cloud.ID(fmt.Sprint(kind, n)) }

func address(n int) netip.Addr { return netip.AddrFrom4([4]byte{198, 51, 100, byte(n)}) }

func address6(n int) netip.Addr {
	return netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 15: byte(n)})
}

var networks = []string{"0.0.0.0/0", "::/0", "198.51.100.0/24", "198.51.100.0/29", "10.0.0.0/8", "2001:db8::/32", "2001:db8::4/126", "203.0.113.7/32"}

func (z *zone) rule(n int) cloud.SecurityGroupRule {
	r := cloud.SecurityGroupRule{
		ID: id("r", n), FlowDirection: pick(z.Rand, []cloud.FlowDirection{cloud.Ingress, cloud.Ingress, cloud.Egress}),
		Protocol: pick(z.Rand, []cloud.Protocol{cloud.TCP, cloud.TCP, cloud.UDP, cloud.ICMP, cloud.ICMPv6, cloud.GRE, cloud.ESP, cloud.All}),
	}
	if z.open {
		r.FlowDirection = cloud.Ingress
	}
	switch r.Protocol {
	case cloud.TCP, cloud.UDP:
		r.StartPort = uint16(1 + z.IntN(100))
		r.EndPort = r.StartPort + uint16(z.IntN(30))
	case cloud.ICMP, cloud.ICMPv6:
		r.ICMP = &cloud.ICMPMatch{Type: z.IntN(10) - 1, Code: z.IntN(3) - 1}
	}
	if z.IntN(2) == 0 {
		r.SecurityGroup = &cloud.SecurityGroupResource{ID: id("g", 1+z.IntN(groups))}
	} else {
		r.Network = pick(z.Rand, networks)
	}
	return r
}

func (z *zone) group(n int) *replica.Group {
	g := &replica.Group{ID: id("g", n), Body: store.SecurityGroupDoc{Number: uint32(n), RuleNumbers: map[cloud.ID]uint32{}}}
	g.Body.ID, g.Body.Name = g.ID, string(g.ID)
	for range z.IntN(8) {
		number := len(z.rules) + 1
		r := z.rule(number)
		z.rules = append(z.rules, r)
		g.Body.Rules = append(g.Body.Rules, r)
		g.Body.RuleNumbers[r.ID] = uint32(number)
	}
	return g
}

func (z *zone) instance(n int) *replica.Instance {
	i := &replica.Instance{ID: id("i", n), Org: "org", Body: store.InstanceDoc{
		HostNumber: 1, Port: uint32(n), Address: address(n), Address6: address6(n), MAC: fmt.Sprintf("02:ca:00:00:00:%02x", n),
	}}
	i.Body.ID, i.Body.State = i.ID, cloud.InstanceRunning
	for g := range groups {
		if z.IntN(3) == 0 || g == n%groups {
			i.Body.SecurityGroups = append(i.Body.SecurityGroups, cloud.Ref{ID: id("g", g+1)})
		}
	}
	set := fmt.Sprint(i.Body.SecurityGroups)
	if z.classes[set] == 0 {
		z.classes[set] = uint32(len(z.classes) + 1)
	}
	i.Body.Class = z.classes[set]
	return i
}

func newZone(t *testing.T, rnd *rand.Rand) *zone {
	t.Helper()
	z := &zone{Rand: rnd, classes: map[string]uint32{}, open: rnd.IntN(5) == 0}
	r, err := replica.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	rows := replica.Rows{Revision: 1, Whole: true, Hosts: []*replica.Host{{ID: "h1", Body: store.HypervisorDoc{
		ID: "h1", Name: "hv1", Number: 1, Joined: true, Endpoint: netip.MustParseAddr("10.64.0.1"), MTU: 1600,
	}}}}
	for n := range groups {
		rows.Groups = append(rows.Groups, z.group(n+1))
	}
	for n := range people {
		rows.Instances = append(rows.Instances, z.instance(n+1))
	}
	r.Commit(rows)
	z.snap = r.Snapshot()
	return z
}

// items that the hypervisor would be told.
func (z *zone) items(t *testing.T, c *compile.Compiler) []wire.Item {
	t.Helper()
	owners := []compile.Owner{{Kind: compile.OwnsInstance, ID: string(id("i", self))}}
	for _, number := range z.classes {
		owners = append(owners, compile.Owner{Kind: compile.OwnsClass, ID: fmt.Sprint(number)})
	}
	for n := range people {
		owners = append(owners, compile.Owner{Kind: compile.OwnsMember, ID: string(id("i", n+1))})
	}
	var out []wire.Item
	for _, o := range owners {
		placed, err := c.Items(o)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range placed {
			switch p.Item.(type) {
			case wire.Policy, wire.Class, wire.Member, wire.Port:
				out = append(out, p.Item)
			}
		}
	}
	return out
}

// kernel is the port's program with maps of its own.
type kernel struct {
	maps map[string]*ebpf.Map
	ask  *ebpf.Program
}

func newKernel(t *testing.T) *kernel {
	t.Helper()
	specs, err := bpf.LoadCollectionSpecs()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"slots", "port_cfg", "ct_est", "ct_new", "rule_stats"} {
		if m := specs.Port.Maps[name]; m != nil {
			m.MaxEntries = 64
		}
	}
	c, err := ebpf.NewCollection(specs.Port)
	if err != nil {
		t.Fatalf("%+v", err)
	}
	t.Cleanup(c.Close)
	return &kernel{c.Maps, c.Programs["ask"]}
}

// clear what the zone before had.
func (k *kernel) clear(t *testing.T) {
	t.Helper()
	for _, m := range k.maps {
		if m.Type() != ebpf.Hash && m.Type() != ebpf.LPMTrie {
			continue
		}
		var keys [][]byte
		var key, value []byte
		for it := m.Iterate(); it.Next(&key, &value); {
			keys = append(keys, bytes.Clone(key))
		}
		for _, key := range keys {
			if err := m.Delete(key); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// Kernel as a maps.Store; attaching does not happen.

func (k *kernel) Put(e maps.Entry, _ string) error {
	m := k.maps[e.Map.String()]
	if m == nil {
		return nil
	}
	return m.Put([]byte(e.Key), []byte(e.Value))
}

func (k *kernel) Delete(maps.Entry) error { return nil }

func (k *kernel) Get(e maps.Entry) (string, bool, error) { return e.Value, true, nil }

func (k *kernel) Load(maps.Map, func(maps.Entry)) error { return nil }

// program writes what an agent would write.
func (k *kernel) program(t *testing.T, items []wire.Item) {
	t.Helper()
	desired, err := table.New(table.Mark{})
	if err != nil {
		t.Fatal(err)
	}
	defer desired.Close()
	var ups []table.Upsert
	var names []string
	for _, item := range items {
		body, err := wire.Encode(item)
		if err != nil {
			t.Fatal(err)
		}
		ups = append(ups, table.Upsert{Key: item.Key(), Body: body})
		if item.Key().Kind != wire.KindClass {
			names = append(names, item.Key().String())
		}
	}
	if faults, err := desired.Restore(table.Mark{Epoch: 1, Revision: 1}, ups); err != nil || len(faults) > 0 {
		t.Fatal(faults, err)
	}
	image := maps.NewImage()
	builder := port.NewBuilder(desired.View(), port.Facts{Devices: map[uint32]uint32{self: 9}}, image, nil)
	var units []maps.Unit
	for _, name := range names {
		u, err := builder.Unit(name)
		if err != nil {
			t.Fatal(err)
		}
		units = append(units, u)
	}
	steps, faults := maps.Plan(image, units)
	if _, failed := maps.Apply(k, image, units, steps, faults); len(failed) > 0 {
		t.Fatal(failed)
	}
}

// judge asks the program.
func (k *kernel) judge(t *testing.T, q firewall.Question) (rule uint32, reason bpf.Reason) {
	t.Helper()
	i := bpf.Inquiry{Port: self}
	i.Question.Direction, i.Question.Proto, i.Question.Match = uint32(q.Direction), uint32(q.Protocol), uint32(q.Match)
	i.Question.Peer.B = bpf.IP16(q.Peer).B
	run := &ebpf.RunOptions{Data: []byte(maps.Bytes(i)), DataOut: make([]byte, 256)}
	if code, err := k.ask.Run(run); err != nil || code != 0 {
		t.Fatalf("ask answers %d: %v", code, err)
	}
	i = maps.As[bpf.Inquiry](string(run.DataOut))
	return i.Verdict.Rule, bpf.Reason(i.Reason)
}

func (z *zone) question() firewall.Question {
	q := firewall.Question{
		Direction: wire.Direction(z.IntN(2)), Protocol: pick(z.Rand, []uint8{6, 6, 6, 17, 1, 58, 47, 50, 132}),
		Peer: pick(z.Rand, []netip.Addr{address(1 + z.IntN(people+2)), address6(1 + z.IntN(people+2)), netip.MustParseAddr("203.0.113.7"), netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("2001:4860::8")}),
	}
	switch {
	case firewall.HasPorts(q.Protocol):
		q.Match = uint16(1 + z.IntN(130))
	case firewall.IsICMP(q.Protocol):
		q.Match = uint16(z.IntN(11))<<8 | uint16(z.IntN(4))
	}
	if q.Protocol == 6 && q.Match == 25 {
		q.Match = 26 // mail is refused before the policy is asked
	}
	return q
}

// The control plane's explanation is the program's classification: the same
// rule, or the same reason.
func TestExplainIsWhatTheProgramDoes(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("SEED=%d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	seen, byRule := map[string]int{}, map[uint32]bool{}
	k := newKernel(t)
	for range zones {
		z := newZone(t, rnd)
		c := compile.New(z.snap, "zone")
		k.clear(t)
		k.program(t, z.items(t, c))
		subject, _ := z.snap.Instance(id("i", self))
		for range flows {
			q := z.question()
			said, err := cexplain.Explain(c, z.snap, subject, "", q)
			if err != nil {
				t.Fatal(err)
			}
			rule, why := k.judge(t, q)
			if differs(said, rule, why) {
				t.Fatalf("%+v: explained %+v, the program says rule %d, %s", q, said, rule, why)
			}
			if !said.Admitted && len(said.Nearest) == 0 && z.hasRules(subject) {
				t.Fatalf("%+v: denied without a word on the rules that come closest", q)
			}
			seen[said.Reason]++
			if said.Rule != nil {
				byRule[said.Rule.Number] = true
				if said.Rule.SecurityGroup.ID == "" || said.Rule.Rule != id("r", int(rule)) {
					t.Fatalf("rule %d is called %+v", rule, said.Rule)
				}
			}
		}
	}
	t.Logf("%d flows in %d zones: %v, %d rules decided", zones*flows, zones, seen, len(byRule))
	for _, reason := range []firewall.Reason{firewall.ByRule, firewall.NoEgress, firewall.PolicyIn, firewall.PolicyOut} {
		if seen[string(reason)] < 100 {
			t.Errorf("%s came up %d times only", reason, seen[string(reason)])
		}
	}
}

func (z *zone) hasRules(i *replica.Instance) bool {
	return slices.ContainsFunc(i.Body.SecurityGroups, func(ref cloud.Ref) bool {
		g, ok := z.snap.Group(ref.ID)
		return ok && len(g.Body.Rules) > 0
	})
}

func differs(said cloud.Explanation, rule uint32, why bpf.Reason) bool {
	if !said.Admitted {
		return said.Reason != why.String()
	}
	if why != bpf.ReasonNone {
		return true
	}
	if said.Rule == nil {
		return rule != 0 || said.Reason != string(firewall.NoEgress)
	}
	return said.Rule.Number != rule
}
