// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"

	v3 "github.com/exoscale/egoscale/v3"

	"cairn/cloud"
	"cairn/cloud/client"
	"cairn/cloud/wire"
	"cairn/controlplane/securitygroup"
	"cairn/controlplane/store"
	"cairn/controlplane/tenant"
)

// Every kind of rule comes back as it was sent, and is found by its fields.
func TestRulesComeBackAsSent(t *testing.T) {
	z := newInhabited(t, 1, "198.51.100.0/24")
	s := z.tenant("acme", z.endpoint, once)
	g := s.gets(s.CreateSecurityGroup(s.ctx, v3.CreateSecurityGroupRequest{Name: "web", Description: "the web"}))
	peer := s.gets(s.CreateSecurityGroup(s.ctx, v3.CreateSecurityGroupRequest{Name: "peers"}))
	if err := securitygroup.SetPublic(s.ctx, z.store, "office", "", []string{"192.0.2.0/24"}); err != nil {
		t.Fatal(err)
	}
	type request = v3.AddRuleToSecurityGroupRequest
	icmp := func(kind, code int64) *v3.AddRuleToSecurityGroupRequestICMP {
		return &v3.AddRuleToSecurityGroupRequestICMP{Type: new(kind), Code: new(code)}
	}
	sent := []request{
		{Protocol: "tcp", Network: "192.0.2.77/24", StartPort: 1, EndPort: 65535},
		{Protocol: "udp", Network: "2001:DB8::/32", StartPort: 53, EndPort: 53, Description: "names"},
		{Protocol: "icmp", Network: "0.0.0.0/0", ICMP: icmp(8, 0)},
		{Protocol: "icmp", Network: "0.0.0.0/0", ICMP: icmp(-1, -1)},
		{Protocol: "icmpv6", Network: "::/0", ICMP: icmp(128, -1)},
		{Protocol: "icmp", SecurityGroup: &v3.SecurityGroupResource{ID: peer}},
		{Protocol: "esp", SecurityGroup: &v3.SecurityGroupResource{ID: g}},
		{Protocol: "ah", Network: "192.0.2.0/24"},
		{Protocol: "gre", Network: "2001:db8::/64"},
		{Protocol: "ipip", Network: "192.0.2.0/24"},
		{Protocol: "all", Network: "192.0.2.0/24"},
		{Protocol: "tcp", StartPort: 80, EndPort: 80, SecurityGroup: &v3.SecurityGroupResource{Name: "office", Visibility: "public"}},
		{Protocol: "tcp", StartPort: 80, EndPort: 80, SecurityGroup: &v3.SecurityGroupResource{Name: "public-nlb-healthcheck-sources", Visibility: "public"}},
	}
	for n, r := range sent {
		for _, r.FlowDirection = range []v3.AddRuleToSecurityGroupRequestFlowDirection{"ingress", "egress"} {
			if ref := s.gets(s.AddRuleToSecurityGroup(s.ctx, g, r)); ref != g {
				t.Errorf("rule %d refers to %s, want its group", n, ref)
			}
			_, err := s.AddRuleToSecurityGroup(s.ctx, g, r)
			refused(t, err, v3.ErrConflict, "already exists")
		}
	}
	got := must(s.GetSecurityGroup(s.ctx, g))(t)
	if len(got.Rules) != 2*len(sent) || got.Name != "web" || got.Description != "the web" {
		t.Fatalf("group %+v", got)
	}
	for n, r := range sent {
		for k, direction := range []v3.SecurityGroupRuleFlowDirection{"ingress", "egress"} {
			rule := got.Rules[2*n+k]
			want := v3.SecurityGroupRule{
				ID: rule.ID, FlowDirection: direction, Protocol: v3.SecurityGroupRuleProtocol(r.Protocol), Network: r.Network,
				SecurityGroup: r.SecurityGroup, StartPort: r.StartPort, EndPort: r.EndPort, Description: r.Description,
			}
			if r.ICMP != nil {
				want.ICMP = &v3.SecurityGroupRuleICMP{Type: *r.ICMP.Type, Code: *r.ICMP.Code}
			}
			if a, b := fmt.Sprint(asJSON(t, rule)), fmt.Sprint(asJSON(t, want)); a != b || rule.ID == "" {
				t.Errorf("rule %d: got %s, want %s", n, a, b)
			}
		}
	}
	for n, bad := range []request{
		{Protocol: "tcp", Network: "0.0.0.0/0"}, {Protocol: "tcp", Network: "0.0.0.0/0", StartPort: 9, EndPort: 8},
		{Protocol: "esp", Network: "0.0.0.0/0", StartPort: 1, EndPort: 2}, {Protocol: "icmp", Network: "::/0"}, {Protocol: "icmpv6", Network: "0.0.0.0/0"},
		{Protocol: "all", Network: "::ffff:192.0.2.0/120"}, {Protocol: "all"}, {Protocol: "icmp", Network: "0.0.0.0/0", ICMP: icmp(-1, 3)},
		{Protocol: "all", Network: "192.0.2.0/24", SecurityGroup: &v3.SecurityGroupResource{ID: g}},
		{Protocol: "all", SecurityGroup: &v3.SecurityGroupResource{Name: "nobody", Visibility: "public"}},
	} {
		bad.FlowDirection = "ingress"
		if _, err := s.AddRuleToSecurityGroup(s.ctx, g, bad); err == nil {
			t.Errorf("rule %d is accepted", n)
		} else {
			refused(t, err, v3.ErrBadRequest, ": ")
		}
	}
	for _, r := range got.Rules {
		s.gets(s.DeleteRuleFromSecurityGroup(s.ctx, g, r.ID))
	}
	if got := must(s.GetSecurityGroup(s.ctx, g))(t); got.Rules != nil || got.ExternalSources != nil {
		t.Errorf("an empty group: %+v", got)
	}
}

// What clients of the contract do not know comes back too, and what is empty is
// not there.
func TestRulesBesideTheContract(t *testing.T) {
	z := newInhabited(t, 1, "198.51.100.0/24")
	var k store.APIKey
	_, err := z.store.Write(t.Context(), func(tx *store.Tx) (err error) {
		k, err = tenant.Found(tx, z.root, "acme")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	c := client.New(z.endpoint, k.Key, k.Secret)
	op := must(client.Call[cloud.Operation](t.Context(), c, "create-security-group", client.In{Body: &cloud.CreateSecurityGroupRequest{Name: "web"}}))(t)
	of := client.ByID(op.Reference.ID)
	empty := must(client.Call[map[string]any](t.Context(), c, "get-security-group", of))(t)
	if len(empty) != 3 || empty["visibility"] != "private" {
		t.Errorf("an empty group: %v", empty)
	}
	of.Body = &cloud.AddRuleRequest{
		FlowDirection: cloud.Ingress, Protocol: cloud.All, ProtocolNumber: 132, KeepEstablished: true, Network: "192.0.2.7/24",
	}
	must(client.Call[cloud.Operation](t.Context(), c, "add-rule-to-security-group", of))(t)
	full := must(client.Call[cloud.SecurityGroup](t.Context(), c, "get-security-group", client.ByID(op.Reference.ID)))(t)
	if len(full.Rules) != 1 || full.Rules[0].ProtocolNumber != 132 || !full.Rules[0].KeepEstablished || full.Rules[0].Network != "192.0.2.7/24" {
		t.Errorf("group %+v", full)
	}
	of.Body = &cloud.AddRuleRequest{FlowDirection: cloud.Ingress, Protocol: cloud.TCP, StartPort: 1, EndPort: 2, ProtocolNumber: 6, Network: "192.0.2.7/24"}
	if _, err := client.Call[cloud.Operation](t.Context(), c, "add-rule-to-security-group", of); err == nil {
		t.Error("a number beside tcp is accepted")
	}
}

func asJSON(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// External sources are members wherever a rule names their group.
func TestExternalSourcesOfAGroup(t *testing.T) {
	z := newInhabited(t, 2, "198.51.100.0/24")
	s := z.tenant("acme", z.endpoint, once)
	web := s.gets(s.CreateSecurityGroup(s.ctx, v3.CreateSecurityGroupRequest{Name: "web"}))
	db := s.gets(s.CreateSecurityGroup(s.ctx, v3.CreateSecurityGroupRequest{Name: "db"}))
	s.gets(s.AddRuleToSecurityGroup(s.ctx, db, v3.AddRuleToSecurityGroupRequest{
		FlowDirection: "ingress", Protocol: "tcp", StartPort: 5432, EndPort: 5432, SecurityGroup: &v3.SecurityGroupResource{ID: web},
	}))
	i := s.machine("db1", db)
	add := func(cidr string) (*v3.Operation, error) {
		return s.AddExternalSourceToSecurityGroup(s.ctx, web, v3.AddExternalSourceToSecurityGroupRequest{Cidr: cidr})
	}
	remove := func(cidr string) (*v3.Operation, error) {
		return s.RemoveExternalSourceFromSecurityGroup(s.ctx, web, v3.RemoveExternalSourceFromSecurityGroupRequest{Cidr: cidr})
	}
	for _, cidr := range []string{"192.0.2.7/24", "2001:db8::/32", "192.0.2.7/24"} {
		if ref := s.gets(add(cidr)); ref != web {
			t.Errorf("source %s refers to %s", cidr, ref)
		}
	}
	if got := must(s.GetSecurityGroup(s.ctx, web))(t).ExternalSources; !slices.Equal(got, []string{"192.0.2.7/24", "2001:db8::/32"}) {
		t.Errorf("sources %v", got)
	}
	_, err := add("anywhere")
	refused(t, err, v3.ErrBadRequest, "cidr: ")
	s.gets(remove("192.0.2.7/24"))
	_, err = remove("192.0.2.7/24")
	refused(t, err, v3.ErrNotFound, "192.0.2.7/24")
	if got := must(s.GetSecurityGroup(s.ctx, web))(t).ExternalSources; !slices.Equal(got, []string{"2001:db8::/32"}) {
		t.Errorf("sources %v", got)
	}
	_, err = s.DeleteSecurityGroup(s.ctx, web)
	refused(t, err, v3.ErrConflict, "in use by security-group")
	_, err = s.DeleteSecurityGroup(s.ctx, db)
	refused(t, err, v3.ErrConflict, "in use by instance")
	s.gets(s.DeleteInstance(s.ctx, i))
	s.gets(s.DeleteSecurityGroup(s.ctx, db))
	s.gets(s.DeleteSecurityGroup(s.ctx, web))
	if n := z.onHosts(wire.KindPolicy); n != 0 {
		t.Errorf("hosts still hold %d policies", n)
	}
}

// Who is in a group is known where a rule names it, and no longer when the rule
// or the membership goes; hosts lose no more than was said.
func TestMembersOfAGroupByRule(t *testing.T) {
	z := newInhabited(t, 1, "198.51.100.0/24")
	s := z.tenant("acme", z.endpoint, once)
	web := s.gets(s.CreateSecurityGroup(s.ctx, v3.CreateSecurityGroupRequest{Name: "web"}))
	db := s.gets(s.CreateSecurityGroup(s.ctx, v3.CreateSecurityGroupRequest{Name: "db"}))
	s.machine("db1", db)
	var members []v3.UUID
	for n := range 14 {
		members = append(members, s.machine(fmt.Sprintf("web%d", n), web))
	}
	held := func(want int) {
		t.Helper()
		if n := z.onHosts(wire.KindMember); n != want {
			t.Errorf("the host knows %d members, want %d", n, want)
		}
	}
	held(0)
	byGroup := v3.AddRuleToSecurityGroupRequest{
		FlowDirection: "ingress", Protocol: "tcp", StartPort: 5432, EndPort: 5432, SecurityGroup: &v3.SecurityGroupResource{ID: web},
	}
	s.gets(s.AddRuleToSecurityGroup(s.ctx, db, byGroup))
	held(14)
	in := v3.DetachInstanceFromSecurityGroupRequest{Instance: &v3.Instance{ID: members[0]}}
	s.gets(s.DetachInstanceFromSecurityGroup(s.ctx, web, in))
	held(13)
	s.gets(s.AttachInstanceToSecurityGroup(s.ctx, web, v3.AttachInstanceToSecurityGroupRequest{Instance: &v3.Instance{ID: members[0]}}))
	held(14)
	s.gets(s.DeleteRuleFromSecurityGroup(s.ctx, db, must(s.GetSecurityGroup(s.ctx, db))(t).Rules[0].ID))
	held(0)
}

// machine creates an instance in a group.
func (s *story) machine(name string, group v3.UUID) v3.UUID {
	s.t.Helper()
	order := s.order(name)
	order.InstanceType = &v3.InstanceType{ID: v3.UUID(cloud.InstanceTypes[0].ID)} // many on a host
	order.SecurityGroups = []v3.SecurityGroup{{ID: group}}
	return s.gets(s.CreateInstance(s.ctx, order))
}
