// SPDX-License-Identifier: Apache-2.0

package securitygroup

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
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
	byName.SecurityGroup = &cloud.SecurityGroupResource{Name: Public[0].Name, Visibility: "public"}
	b.addRule(g, byName)
	b.addRule(g, own)
}

func TestRuleLimit(t *testing.T) {
	b := newBench(t)
	g := b.create("web")
	r := web
	for i := range MaxRules {
		r.StartPort, r.EndPort = uint16(i+1), uint16(i+1)
		b.addRule(g, r)
	}
	r.StartPort, r.EndPort = 1000, 1000
	b.refused(cloud.Conflict, "64 ingress rules", "add-rule-to-security-group", &r, "id", string(g))
	r.FlowDirection = cloud.Egress
	b.addRule(g, r)
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
	// Another instance stays in the class of a alone, none in that of a and c.
	if got := intents(op); got != "" {
		t.Errorf("intents of the attach: %s", got)
	}
	op = b.do("detach-instance-from-security-group", body(one), "id", string(c))
	if got := intents(op); got != "class 1;policy 1;" || b.class(one) != b.class(two) {
		t.Errorf("intents of the detach: %s, classes %d %d", got, b.class(one), b.class(two))
	}
	b.refused(cloud.NotFound, "instance", "attach-instance-to-security-group", body(cloud.NewID()), "id", string(c))
}
