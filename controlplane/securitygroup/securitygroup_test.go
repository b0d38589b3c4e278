// SPDX-License-Identifier: Apache-2.0

package securitygroup

import (
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"cairn/cloud"
	capi "cairn/cloud/api"
	"cairn/controlplane/api"
	"cairn/controlplane/operation"
	"cairn/controlplane/store"
)

const org = cloud.ID("0c000000-0000-4000-8000-000000000001")

func TestMachine(t *testing.T) {
	if err := machine.Verify("recompile"); err != nil {
		t.Fatal(err)
	}
	broken := machine
	broken.Rows = broken.Rows[:4] // nothing is deleted any more
	if err := broken.Verify("recompile"); err == nil {
		t.Error("a machine without an end passes")
	}
}

type bench struct {
	t     *testing.T
	store *store.Store
	gate  *operation.Gate
	api.Handlers
}

// newBench has the default group and one hypervisor that has joined.
func newBench(t *testing.T) *bench {
	s, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "cairn.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	_, err = s.Init(t.Context(), "ch-gva-2", func(tx *store.Tx) error {
		hv := cloud.NewID()
		return errors.Join(AddDefault(tx, org), store.Put(tx, "", store.Doc[store.HypervisorDoc]{ID: hv,
			Body: store.HypervisorDoc{ID: hv, Name: "hv1", Number: 1, Joined: true}}))
	})
	if err != nil {
		t.Fatal(err)
	}
	g := operation.New(s, slog.New(slog.DiscardHandler), Noun)
	return &bench{t: t, store: s, gate: g, Handlers: Handlers(s, g)}
}

func (b *bench) call(id string, body any, args ...string) (any, error) {
	c := api.Call{Operation: capi.Find(capi.Operations, id), Org: org, Body: body, Args: map[string]string{}}
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

func (b *bench) create(name string) cloud.ID {
	b.t.Helper()
	return b.do("create-security-group", &cloud.CreateSecurityGroupRequest{Name: name}).Reference.ID
}

func (b *bench) addRule(group cloud.ID, r cloud.AddRuleRequest) *cloud.Operation {
	b.t.Helper()
	return b.do("add-rule-to-security-group", &r, "id", string(group))
}

func (b *bench) refused(kind cloud.Kind, text, id string, body any, args ...string) {
	b.t.Helper()
	_, err := b.call(id, body, args...)
	var e *cloud.Error
	if !errors.As(err, &e) || e.Kind != kind || !strings.Contains(e.Message, text) {
		b.t.Errorf("%s: %v, want %v with %q", id, err, kind, text)
	}
}

func (b *bench) group(id cloud.ID) (d store.Doc[store.SecurityGroupDoc]) {
	b.t.Helper()
	b.read(func(tx *store.Tx) (err error) { d, err = Find(tx, org, id); return err })
	return d
}

func (b *bench) read(fn func(*store.Tx) error) {
	b.t.Helper()
	if err := b.store.Read(b.t.Context(), fn); err != nil {
		b.t.Fatal(err)
	}
}

// instance puts an instance into groups, as its orchestrator does.
func (b *bench) instance(groups ...cloud.ID) cloud.ID {
	b.t.Helper()
	d := store.Doc[store.InstanceDoc]{ID: cloud.NewID(), Org: org, Generation: 7}
	d.Body.ID, d.Body.State = d.ID, cloud.InstanceRunning
	for _, g := range groups {
		d.Body.SecurityGroups = append(d.Body.SecurityGroups, cloud.Ref{ID: g})
	}
	_, err := b.store.Write(b.t.Context(), func(tx *store.Tx) (err error) {
		if d.Body.Class, err = Enter(tx, d.Body.SecurityGroups); err != nil {
			return err
		}
		return store.Put(tx, "", d)
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return d.ID
}

func (b *bench) class(instance cloud.ID) (class uint32) {
	b.t.Helper()
	b.read(func(tx *store.Tx) error {
		d, err := store.Get[store.InstanceDoc](tx, org, instance)
		if d.Generation != 7 {
			b.t.Errorf("the instance's generation became %d", d.Generation)
		}
		class = d.Body.Class
		return err
	})
	return class
}

func (b *bench) settled(op *cloud.Operation, ok bool) {
	b.t.Helper()
	if err := b.gate.Settled(b.t.Context(), op.ID, operation.Outcome{OK: ok, Message: "hv1 said so"}); err != nil {
		b.t.Fatal(err)
	}
}

var web = cloud.AddRuleRequest{FlowDirection: cloud.Ingress, Protocol: cloud.TCP, Network: "0.0.0.0/0", StartPort: 80, EndPort: 80}

func TestRulesAndTheirOperations(t *testing.T) {
	b := newBench(t)
	g := b.create("web")
	if d := b.group(g); d.Body.Status != "running" || d.Body.Number != 2 || d.Body.Visibility != "private" {
		t.Errorf("group %+v", d.Body)
	}
	if op := b.addRule(g, web); op.State != cloud.OperationSuccess || op.Reference.ID != g {
		t.Errorf("a rule of a group without members: %+v", op)
	}
	b.instance(g)
	ssh, dns := web, web
	ssh.StartPort, ssh.EndPort = 22, 22
	dns.StartPort, dns.EndPort = 53, 53
	first, second := b.addRule(g, ssh), b.addRule(g, dns)
	if first.State != cloud.OperationPending || second.State != cloud.OperationPending {
		t.Errorf("operations %+v %+v", first, second)
	}
	status := func(want string) {
		t.Helper()
		if got := b.group(g).Body.Status; got != want {
			t.Errorf("status %s, want %s", got, want)
		}
	}
	status("updating")
	b.settled(first, true)
	status("updating") // the second change is still on its way
	b.settled(second, false)
	status("running") // the wish stays, the operation has failed
	d := b.group(g)
	if len(d.Body.Rules) != 3 || len(d.Body.RuleNumbers) != 3 || d.Generation != 4 {
		t.Errorf("group %+v", d)
	}

	gone := d.Body.Rules[0].ID
	op := b.do("delete-rule-from-security-group", nil, "id", string(g), "rule-id", string(gone))
	b.read(func(tx *store.Tx) error {
		o, err := tx.Operation(org, op.ID)
		if !o.Tightens || o.State != cloud.OperationPending {
			t.Errorf("removal of a rule: %+v", o)
		}
		if _, err := tx.Number(store.NumberRule, string(gone)); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("number of the removed rule: %v", err)
		}
		return err
	})
	b.refused(cloud.NotFound, string(gone), "delete-rule-from-security-group", nil, "id", string(g), "rule-id", string(gone))
	b.refused(cloud.Conflict, "already exists", "add-rule-to-security-group", &ssh, "id", string(g))
	b.refused(cloud.NotFound, "not found", "add-rule-to-security-group", &ssh, "id", string(cloud.NewID()))

	byGroup, byName, own := web, web, web
	byGroup.Network, byGroup.SecurityGroup = "", &cloud.SecurityGroupResource{ID: cloud.NewID()}
	byName.Network, byName.SecurityGroup = "", &cloud.SecurityGroupResource{Name: "nobody", Visibility: "public"}
	own.Network, own.SecurityGroup = "", &cloud.SecurityGroupResource{ID: g}
	b.refused(cloud.Invalid, "expected a security group of yours", "add-rule-to-security-group", &byGroup, "id", string(g))
	b.refused(cloud.Invalid, "nobody", "add-rule-to-security-group", &byName, "id", string(g))
	byName.SecurityGroup = &cloud.SecurityGroupResource{Name: BuiltIn.Name, Visibility: "public"}
	b.addRule(g, byName)
	b.addRule(g, own)
}

// fill gives a group that many rules at once.
func (b *bench) fill(group cloud.ID, n int, rule func(i int) cloud.SecurityGroupRule) {
	b.t.Helper()
	_, err := b.store.Write(b.t.Context(), func(tx *store.Tx) error {
		d, err := Find(tx, org, group)
		d.Body.RuleNumbers = map[cloud.ID]uint32{}
		for i := range n {
			r := rule(i)
			r.ID = cloud.NewID()
			d.Body.Rules = append(d.Body.Rules, r)
			d.Body.RuleNumbers[r.ID] = uint32(i + 1)
		}
		return errors.Join(err, store.Put(tx, "", d))
	})
	if err != nil {
		b.t.Fatal(err)
	}
}

func ports(i int) cloud.SecurityGroupRule {
	r := web.Rule("")
	r.StartPort, r.EndPort = uint16(i+1), uint16(i+1)
	return r
}

// A port judges 1,024 rules a direction: those of all groups of an instance.
func TestRuleLimit(t *testing.T) {
	b := newBench(t)
	g, half, more := b.create("web"), b.create("half"), b.create("more")
	b.fill(g, MaxRules, ports)
	b.fill(half, MaxRules/2, ports)
	b.fill(more, MaxRules/2, ports)
	last := web
	last.StartPort, last.EndPort = 2000, 2000
	b.refused(cloud.Conflict, `"web" would have 1025 ingress rules`, "add-rule-to-security-group", &last, "id", string(g))
	out := last
	out.FlowDirection = cloud.Egress
	b.addRule(g, out)

	one := b.instance(half, more) // 1,024 in all
	b.refused(cloud.Conflict, `"half", "more"`, "add-rule-to-security-group", &last, "id", string(half))
	b.addRule(half, out)
	attach := &cloud.InstanceRequest{Instance: cloud.Ref{ID: one}}
	b.refused(cloud.Conflict, `"half", "more", "web"`, "attach-instance-to-security-group", attach, "id", string(g))
	b.do("detach-instance-from-security-group", attach, "id", string(more))
	b.addRule(half, last)
	b.refused(cloud.Conflict, `"half", "more"`, "attach-instance-to-security-group", attach, "id", string(more))
	b.read(func(tx *store.Tx) error {
		var told *cloud.Error
		if err := Fits(tx, []cloud.Ref{{ID: half}, {ID: more}}); !errors.As(err, &told) || told.Kind != cloud.Conflict {
			t.Errorf("both: %v", err)
		}
		return errors.Join(Fits(tx, []cloud.Ref{{ID: half}, {ID: half}}), Fits(tx, nil))
	})
}

// The first egress rule takes away what was open, and so do groups that have one.
func TestWhatTightens(t *testing.T) {
	b := newBench(t)
	g, closing := b.create("web"), b.create("closing")
	out, more := web, web
	out.FlowDirection, more.FlowDirection, more.StartPort, more.EndPort = cloud.Egress, cloud.Egress, 443, 443
	b.addRule(closing, out)
	one := b.instance(g)
	b.instance(g)
	tightens := func(op *cloud.Operation, want bool) {
		t.Helper()
		b.read(func(tx *store.Tx) error {
			o, err := tx.Operation(org, op.ID)
			if o.Tightens != want {
				t.Errorf("%s tightens: %t", o.Command, o.Tightens)
			}
			return err
		})
	}
	tightens(b.addRule(g, web), false)
	tightens(b.do("attach-instance-to-security-group", &cloud.InstanceRequest{Instance: cloud.Ref{ID: one}}, "id", string(closing)), true)
	tightens(b.addRule(g, out), true)
	tightens(b.addRule(g, more), false)
}

func TestExternalSources(t *testing.T) {
	b := newBench(t)
	g, db := b.create("web"), b.create("db")
	source := func(cidr string) *cloud.ExternalSourceRequest { return &cloud.ExternalSourceRequest{CIDR: cidr} }
	const add, remove = "add-external-source-to-security-group", "remove-external-source-from-security-group"
	b.instance(g)
	if op := b.do(add, source("192.0.2.77/24"), "id", string(g)); op.State != cloud.OperationSuccess || op.Reference.ID != g {
		t.Errorf("nobody names the group: %+v", op)
	}
	if op := b.do(add, source("192.0.2.0/24"), "id", string(g)); op.State != cloud.OperationSuccess {
		t.Errorf("it is one already: %+v", op)
	}
	peer := web
	peer.Network, peer.SecurityGroup = "", &cloud.SecurityGroupResource{ID: g}
	b.addRule(db, peer)
	b.instance(db)
	if op := b.do(add, source("2001:db8::/32"), "id", string(g)); op.State != cloud.OperationPending {
		t.Errorf("hosts have a rule that names the group: %+v", op)
	}
	if got := b.group(g).Body.ExternalSources; !slices.Equal(got, []string{"192.0.2.77/24", "2001:db8::/32"}) {
		t.Errorf("sources %v", got)
	}
	op := b.do(remove, source("192.0.2.0/24"), "id", string(g))
	b.read(func(tx *store.Tx) error {
		o, err := tx.Operation(org, op.ID)
		if !o.Tightens || o.State != cloud.OperationPending {
			t.Errorf("removal of a source: %+v", o)
		}
		return err
	})
	if got := b.group(g).Body.ExternalSources; !slices.Equal(got, []string{"2001:db8::/32"}) {
		t.Errorf("sources %v", got)
	}
	b.refused(cloud.NotFound, "192.0.2.0/24", remove, source("192.0.2.0/24"), "id", string(g))
	b.refused(cloud.NotFound, "not found", add, source("192.0.2.0/24"), "id", string(cloud.NewID()))
	_, err := b.store.Write(t.Context(), func(tx *store.Tx) error {
		d, err := Find(tx, org, g)
		for i := range MaxSources - 1 {
			d.Body.ExternalSources = append(d.Body.ExternalSources, fmt.Sprintf("10.%d.%d.0/24", i/256, i%256))
		}
		return errors.Join(err, store.Put(tx, "", d))
	})
	if err != nil {
		t.Fatal(err)
	}
	b.refused(cloud.Conflict, "which is the most", add, source("198.51.100.0/24"), "id", string(g))
	for i := range 15 { // with the first, 16 times 1,024 sources
		peer.StartPort, peer.EndPort = uint16(i+100), uint16(i+100)
		b.addRule(db, peer)
	}
	peer.StartPort, peer.EndPort = 99, 99
	b.refused(cloud.Conflict, "16384 is the most", "add-rule-to-security-group", &peer, "id", string(db))
}

func TestPublicGroups(t *testing.T) {
	b := newBench(t)
	g := b.create("web")
	named := web
	named.Network, named.SecurityGroup = "", &cloud.SecurityGroupResource{Name: "office", Visibility: "public"}
	b.refused(cloud.Invalid, `no "office"`, "add-rule-to-security-group", &named, "id", string(g))
	set := func(name string, sources ...string) error {
		return SetPublic(t.Context(), b.store, name, "ours", sources)
	}
	for name, err := range map[string]error{
		"built in": set(BuiltIn.Name, "192.0.2.0/24"), "no CIDR": set("office", "here"), "none": set("office"), "mapped": set("office", "::ffff:192.0.2.0/120"), "name": set("a b", "192.0.2.0/24"),
	} {
		if err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
	if err := errors.Join(set("office", "192.0.2.0/24"), set("office", "192.0.2.0/24", "2001:db8::/32")); err != nil {
		t.Fatal(err)
	}
	b.addRule(g, named)
	answer, err := b.Handlers["list-security-groups"](t.Context(), api.Call{Org: org, Query: url.Values{"visibility": {"public"}}})
	if err != nil {
		t.Fatal(err)
	}
	list := answer.(cloud.SecurityGroupList).SecurityGroups
	if len(list) != 2 || list[0].Name != BuiltIn.Name || list[1].Name != "office" || list[1].ID != "" || len(list[1].ExternalSources) != 2 {
		t.Errorf("public groups %+v", list)
	}
	if err := RemovePublic(t.Context(), b.store, "office"); err != nil {
		t.Fatal(err)
	}
	if err := RemovePublic(t.Context(), b.store, "office"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("removed again: %v", err)
	}
}

func TestDelete(t *testing.T) {
	b := newBench(t)
	web1, web2 := b.create("web1"), b.create("web2")
	b.refused(cloud.Conflict, `"web1" already exists`, "create-security-group", &cloud.CreateSecurityGroupRequest{Name: "web1"})
	peer := web
	peer.Network, peer.SecurityGroup = "", &cloud.SecurityGroupResource{ID: web1}
	b.addRule(web2, peer)
	b.addRule(web1, peer) // itself, which is in nobody's way
	b.refused(cloud.Conflict, "in use by security-group "+string(web2), "delete-security-group", nil, "id", string(web1))
	b.do("delete-security-group", nil, "id", string(web2))

	i := b.instance(web1)
	b.refused(cloud.Conflict, "in use by instance "+string(i), "delete-security-group", nil, "id", string(web1))
	op := b.do("detach-instance-from-security-group", &cloud.InstanceRequest{Instance: cloud.Ref{ID: i}}, "id", string(web1))
	b.do("delete-security-group", nil, "id", string(web1))
	b.settled(op, true) // late, and its group has gone
	b.refused(cloud.NotFound, "not found", "get-security-group", nil, "id", string(web1))

	list, err := b.call("list-security-groups", nil)
	groups := list.(cloud.SecurityGroupList).SecurityGroups
	if err != nil || len(groups) != 1 || groups[0].Name != cloud.DefaultSecurityGroup {
		t.Fatalf("left: %v %v", groups, err)
	}
	b.refused(cloud.Conflict, "stays", "delete-security-group", nil, "id", string(groups[0].ID))
	b.read(func(tx *store.Tx) error {
		held, err := tx.Allocations()
		// The default group, and the class of the instance that is in no group.
		if len(held) != 2 {
			t.Errorf("held: %v", held)
		}
		return err
	})
}

func TestMembersAndClasses(t *testing.T) {
	b := newBench(t)
	a, c := b.create("a"), b.create("c")
	one, two := b.instance(a), b.instance(a)
	if b.class(one) != b.class(two) {
		t.Errorf("classes %d and %d of equal sets", b.class(one), b.class(two))
	}
	body := func(i cloud.ID) *cloud.InstanceRequest { return &cloud.InstanceRequest{Instance: cloud.Ref{ID: i}} }
	op := b.do("attach-instance-to-security-group", body(one), "id", string(c))
	if op.State != cloud.OperationPending || op.Reference.ID != c || b.class(one) == b.class(two) {
		t.Errorf("attach: %+v, classes %d %d", op, b.class(one), b.class(two))
	}
	b.settled(op, true)
	if got := b.group(c); got.Body.Status != "running" || got.Generation != 1 {
		t.Errorf("the group of a new member: %+v", got)
	}
	if again := b.do("attach-instance-to-security-group", body(one), "id", string(c)); again.State != cloud.OperationSuccess {
		t.Errorf("attached already: %+v", again)
	}
	intents := func(op *cloud.Operation) (got string) {
		b.read(func(tx *store.Tx) error {
			i, err := tx.Intents(op.ID)
			for _, i := range i {
				got += fmt.Sprintf("%s %d;", i.Class, i.Count)
			}
			return err
		})
		return got
	}
	// Its host may have no other of the class that it was in.
	if got := intents(op); got != "class 1;policy 1;" {
		t.Errorf("intents of the attach: %s", got)
	}
	// No rule of the group that it leaves names others; itself has two addresses.
	op = b.do("detach-instance-from-security-group", body(one), "id", string(c))
	if got := intents(op); got != "class 2;member 2;policy 1;" || b.class(one) != b.class(two) {
		t.Errorf("intents of the detach: %s, classes %d %d", got, b.class(one), b.class(two))
	}
	b.refused(cloud.NotFound, "instance", "attach-instance-to-security-group", body(cloud.NewID()), "id", string(c))

	// A rule that names a group goes: hosts may need its two members no more.
	peer := web
	peer.Network, peer.SecurityGroup = "", &cloud.SecurityGroupResource{ID: a}
	b.addRule(c, peer)
	peer.StartPort++
	peer.EndPort++
	b.addRule(c, peer)
	b.instance(c)
	for _, want := range []string{"", "class 1;member 4;"} { // the first leaves another that names it
		op = b.do("delete-rule-from-security-group", nil, "id", string(c), "rule-id", string(b.group(c).Body.Rules[0].ID))
		if got := intents(op); got != want {
			t.Errorf("intents of the removal of a rule: %q, want %q", got, want)
		}
		b.settled(op, true)
	}
}
