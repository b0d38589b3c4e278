// SPDX-License-Identifier: Apache-2.0

package privatenetwork_test

import (
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"cairn/cloud"
	"cairn/cloud/wire"
	"cairn/controlplane/instance/zonetest"
	"cairn/controlplane/store"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// managed asks for a network with a range of so many addresses.
func managed(first, last string) *cloud.CreatePrivateNetworkRequest {
	return &cloud.CreatePrivateNetworkRequest{Name: "net", Netmask: addr("255.255.255.0"), StartIP: addr(first), EndIP: addr(last)}
}

func attach(instance cloud.ID, ip string, allowed ...string) *cloud.AttachToNetworkRequest {
	r := &cloud.AttachToNetworkRequest{Instance: cloud.Ref{ID: instance}, AllowedAddresses: allowed}
	if ip != "" {
		r.IP = addr(ip)
	}
	return r
}

func on(instance cloud.ID) *cloud.InstanceRequest {
	return &cloud.InstanceRequest{Instance: cloud.Ref{ID: instance}}
}

func ip(instance cloud.ID, ip string) *cloud.UpdateNetworkIPRequest {
	r := &cloud.UpdateNetworkIPRequest{Instance: cloud.Ref{ID: instance}}
	if ip != "" {
		r.IP = addr(ip)
	}
	return r
}

// put changes a network by a body as it was sent.
func put(t *testing.T, z *zonetest.Zone, network cloud.ID, text string) (*cloud.Operation, error) {
	t.Helper()
	c := zonetest.Request(zonetest.Org, "update-private-network", &cloud.UpdatePrivateNetworkRequest{}, "id", string(network))
	if err := json.Unmarshal([]byte(text), c.Body); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(text), &c.Keys); err != nil {
		t.Fatal(err)
	}
	op, err := z.Handlers["update-private-network"](t.Context(), c)
	if err != nil {
		return nil, err
	}
	return op.(*cloud.Operation), nil
}

// leases of a network, as "last octet of the address: instance".
func leases(z *zonetest.Zone, network cloud.ID) map[cloud.ID]string {
	all := map[cloud.ID]string{}
	for _, l := range zonetest.Get[cloud.PrivateNetwork](z, "get-private-network", network).Leases {
		all[l.InstanceID] = l.IP.String()
	}
	return all
}

func TestLife(t *testing.T) {
	z := zonetest.New(t, 2)
	one, two := z.Instance(), z.Instance()
	hv1, hv2 := z.HostOf(one), z.HostOf(two)
	number := zonetest.Doc[store.InstanceDoc](z, one).Body.HostNumber
	net := z.Done("create-private-network", managed("10.0.0.10", "10.0.0.12"))
	n := zonetest.Get[cloud.PrivateNetwork](z, "get-private-network", net)
	if n.VNI != 1 || n.Options != nil || n.Leases != nil || n.Netmask != addr("255.255.255.0") {
		t.Errorf("network %+v", n)
	}
	z.Done("attach-instance-to-private-network", attach(one, "", "10.0.0.100", "10.1.0.0/16"), "id", string(net))
	z.Done("attach-instance-to-private-network", attach(two, "10.0.0.50"), "id", string(net))
	if got := leases(z, net); got[one] != "10.0.0.10" || got[two] != "10.0.0.50" || len(got) != 2 {
		t.Errorf("leases %v", got)
	}
	i := zonetest.Get[cloud.Instance](z, "get-instance", one)
	if len(i.PrivateNetworks) != 1 || !slices.Equal(i.PrivateNetworks[0].AllowedAddresses, []string{"10.0.0.100/32", "10.1.0.0/16"}) || i.PrivateNetworks[0].ID != net || i.PrivateNetworks[0].MACAddress != "02:ca:00:00:00:03" {
		t.Errorf("networks of the instance: %+v", i.PrivateNetworks)
	}
	// Both hosts have the segment, and know both interfaces; each has its own port.
	for host, here := range map[string]cloud.ID{hv1: one, hv2: two} {
		networks, neighbours, ports := zonetest.Items[wire.Network](z, host), zonetest.Items[wire.Neighbour](z, host), zonetest.Items[wire.Port](z, host)
		if len(networks) != 1 || len(neighbours) != 2 || len(ports) != 2 {
			t.Errorf("%s holds %d networks, %d neighbours, %d ports", host, len(networks), len(neighbours), len(ports))
		}
		if n := networks["1"]; !slices.Equal(n.Hosts, []uint32{1, 2}) || n.Lease == nil || n.Lease.Server != addr("10.0.0.254") || n.Lease.Bits != 24 || n.ID != string(net) {
			t.Errorf("%s: network %+v, %+v", host, n, n.Lease)
		}
		a := zonetest.Doc[store.InstanceDoc](z, here).Body.Networks[0]
		p := ports[wire.Port{ID: a.Port}.Key().ID]
		if p.Network != 1 || p.Policy != 0 || p.Flags != 0 || p.Instance != string(here) || !slices.Equal(p.Addresses, []netip.Addr{a.Address}) {
			t.Errorf("%s: port %+v", host, p)
		}
		if m := zonetest.Items[wire.Instance](z, host)[string(here)]; !slices.Equal(m.Networks, []uint32{a.Port}) || m.Type != "standard.tiny" || m.PublicAddress == (netip.Addr{}) {
			t.Errorf("%s: instance %+v", host, m)
		}
	}
	first := zonetest.Items[wire.Neighbour](z, hv2)["3"]
	if first.Host != number || !slices.Equal(first.Addresses, []netip.Addr{addr("10.0.0.10"), addr("10.0.0.100")}) || first.Name == "" {
		t.Errorf("neighbour %+v", first)
	}
	z.Refused(cloud.Conflict, "in use by instance", "delete-private-network", nil, "id", string(net))

	z.Done("update-private-network-instance-ip", ip(one, "10.0.0.60"), "id", string(net))
	if got := zonetest.Items[wire.Neighbour](z, hv2)["3"].Addresses[0]; got != addr("10.0.0.60") {
		t.Errorf("the other host knows %s", got)
	}
	z.Done("detach-instance-from-private-network", on(one), "id", string(net))
	if n := len(zonetest.Items[wire.Network](z, hv1)) + len(zonetest.Items[wire.Neighbour](z, hv1)); n != 0 {
		t.Errorf("hv1 holds %d items of a network that it has left", n)
	}
	if got := zonetest.Items[wire.Network](z, hv2)["1"].Hosts; !slices.Equal(got, []uint32{3 - number}) {
		t.Errorf("hosts of the network %v", got)
	}
	z.Done("delete-instance", nil, "id", string(two))
	z.Done("delete-private-network", nil, "id", string(net))
	z.Done("delete-instance", nil, "id", string(one))
	if left := z.Held(); len(left) > 0 {
		t.Errorf("still allocated: %v", left)
	}
}

func TestRefusals(t *testing.T) {
	z := zonetest.New(t, 1)
	one, two, three := z.Instance(), z.Instance(), z.Instance()
	net, free := z.Done("create-private-network", managed("10.0.0.10", "10.0.0.11")), z.Done("create-private-network", &cloud.CreatePrivateNetworkRequest{Name: "free"})
	args := []string{"id", string(net)}
	z.Done("attach-instance-to-private-network", attach(one, ""), args...)
	for _, c := range []struct {
		kind cloud.Kind
		text string
		id   string
		body any
		args []string
	}{
		{cloud.Conflict, "another instance has", "attach-instance-to-private-network", attach(two, "10.0.0.10"), args},
		{cloud.Invalid, "ip: expected", "attach-instance-to-private-network", attach(two, "10.0.1.10"), args},
		{cloud.Invalid, "ip: expected", "attach-instance-to-private-network", attach(two, "10.0.0.254"), args},
		{cloud.Invalid, "not managed", "attach-instance-to-private-network", attach(two, "10.0.0.10"), []string{"id", string(free)}},
		{cloud.Conflict, "already attached", "attach-instance-to-private-network", attach(one, "10.0.0.11"), args},
		{cloud.NotFound, "instance", "attach-instance-to-private-network", attach(cloud.NewID(), ""), args},
		{cloud.NotFound, "private-network", "attach-instance-to-private-network", attach(two, ""), []string{"id", string(cloud.NewID())}},
		{cloud.Conflict, "not attached", "update-private-network-instance-ip", ip(two, "10.0.0.11"), args},
	} {
		z.Refused(c.kind, c.text, c.id, c.body, c.args...)
	}
	// Twice the same is once.
	if op := z.Do("attach-instance-to-private-network", attach(one, ""), args...); op.State != cloud.OperationSuccess {
		t.Errorf("attached twice: %+v", op)
	}
	if op := z.Do("detach-instance-from-private-network", on(two), args...); op.State != cloud.OperationSuccess {
		t.Errorf("detached though not attached: %+v", op)
	}
	z.Done("attach-instance-to-private-network", attach(two, ""), args...)
	z.Refused(cloud.Conflict, "no free address", "attach-instance-to-private-network", attach(three, ""), args...)
	// What one gives up the next one gets.
	z.Done("detach-instance-from-private-network", on(one), args...)
	z.Done("attach-instance-to-private-network", attach(three, ""), args...)
	if got := leases(z, net); got[three] != "10.0.0.10" {
		t.Errorf("leases %v", got)
	}
	// Another organisation sees none of it.
	for _, id := range []string{"get-private-network", "delete-private-network"} {
		z.RefusedTo(zonetest.Stranger, cloud.NotFound, string(net), id, nil, args...)
	}
	z.RefusedTo(zonetest.Stranger, cloud.NotFound, string(net), "attach-instance-to-private-network", attach(one, ""), args...)
	list, err := z.Handlers["list-private-networks"](t.Context(), zonetest.Request(zonetest.Stranger, "list-private-networks", nil))
	if err != nil || len(list.(cloud.PrivateNetworkList).PrivateNetworks) != 0 {
		t.Errorf("a stranger's networks: %+v, %v", list, err)
	}
}

func TestUpdate(t *testing.T) {
	z := zonetest.New(t, 1)
	one := z.Instance()
	net := z.Done("create-private-network", &cloud.CreatePrivateNetworkRequest{Name: "net", Labels: cloud.Labels{"a": "b"}})
	z.Done("attach-instance-to-private-network", attach(one, "", "10.0.0.9"), "id", string(net))
	if n := zonetest.Items[wire.Network](z, "hv1")["1"]; n.Lease != nil {
		t.Errorf("an unmanaged network has a lease: %+v", n.Lease)
	}
	change := func(body string) {
		t.Helper()
		op, err := put(t, z, net, body)
		if err != nil {
			t.Fatal(err)
		}
		z.Deliver()
		z.Ended(op, cloud.OperationSuccess, "", "")
	}
	// It becomes managed: who is in it gets an address.
	change(`{"netmask":"255.255.255.0","start-ip":"10.0.0.20","end-ip":"10.0.0.30","options":{"routers":["10.0.0.1"],"domain-search":["example.net"]}}`)
	if got := leases(z, net); got[one] != "10.0.0.20" {
		t.Errorf("leases %v", got)
	}
	if l := zonetest.Items[wire.Network](z, "hv1")["1"].Lease; l == nil || l.Routers[0] != addr("10.0.0.1") || l.DomainSearch[0] != "example.net" {
		t.Errorf("lease %+v", l)
	}
	// Options are replaced whole; empty ones are absent.
	change(`{"options":{"dns-servers":["9.9.9.9"]}}`)
	if n := zonetest.Get[cloud.PrivateNetwork](z, "get-private-network", net); n.Options.Routers != nil || n.Options.DNSServers[0] != addr("9.9.9.9") {
		t.Errorf("options %+v", n.Options)
	}
	change(`{"options":{}}`)
	if n := zonetest.Get[cloud.PrivateNetwork](z, "get-private-network", net); n.Options != nil || n.Labels["a"] != "b" {
		t.Errorf("network %+v", n)
	}
	for body, want := range map[string]string{
		`{"end-ip":"10.0.0.2"}`:                       "end-ip: expected",
		`{"netmask":"255.255.0.255"}`:                 "netmask: expected",
		`{"start-ip":"10.0.1.1","end-ip":"10.0.1.9"}`: "outside of it",
	} {
		if _, err := put(t, z, net, body); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", body, err, want)
		}
	}
	z.Done("reset-private-network-field", nil, "id", string(net), "field", "labels")
	if n := zonetest.Get[cloud.PrivateNetwork](z, "get-private-network", net); n.Labels != nil {
		t.Errorf("labels %v", n.Labels)
	}
}

// TestFirewall: with a firewall the port has a policy, and the group's members
// are known in the network too; without it they are forgotten.
func TestFirewall(t *testing.T) {
	z := zonetest.New(t, 2)
	web := z.Done("create-security-group", &cloud.CreateSecurityGroupRequest{Name: "web"})
	z.Done("add-rule-to-security-group", &cloud.AddRuleRequest{FlowDirection: cloud.Ingress, Protocol: cloud.TCP, StartPort: 80, EndPort: 80,
		SecurityGroup: &cloud.SecurityGroupResource{ID: web}}, "id", string(web))
	order := zonetest.Order()
	order.SecurityGroups = []cloud.Ref{{ID: web}}
	one, two := z.Done("create-instance", order), z.Done("create-instance", order)
	hv1, hv2 := z.HostOf(one), z.HostOf(two)
	r := managed("10.0.0.10", "10.0.0.20")
	r.Firewall, r.Snooping, r.BroadcastRate = true, true, 50
	net := z.Done("create-private-network", r)
	z.Done("attach-instance-to-private-network", attach(one, ""), "id", string(net))
	z.Done("attach-instance-to-private-network", attach(two, "", "10.0.0.99"), "id", string(net))
	members := zonetest.Items[wire.Member](z, hv1)
	for _, key := range []string{"0/198.51.100.2", "0/198.51.100.3", "1/10.0.0.10", "1/10.0.0.11", "1/10.0.0.99"} {
		if _, ok := members[key]; !ok {
			t.Errorf("no member %s in %v", key, members)
		}
	}
	class := zonetest.Doc[store.InstanceDoc](z, one).Body.Class
	if p := zonetest.Items[wire.Port](z, hv1)["3"]; p.Flags != wire.PortFirewall || p.Policy != class {
		t.Errorf("port %+v, class %d", p, class)
	}
	if n := zonetest.Items[wire.Network](z, hv1)["1"]; !n.Snooping || n.BroadcastRate != 50 {
		t.Errorf("network %+v", n)
	}
	op, err := put(t, z, net, `{"firewall":false}`)
	if err != nil {
		t.Fatal(err)
	}
	z.Deliver()
	z.Ended(op, cloud.OperationSuccess, "", "")
	if p, n := zonetest.Items[wire.Port](z, hv1)["3"], len(zonetest.Items[wire.Member](z, hv1)); p.Flags != 0 || p.Policy != 0 || n != 2 {
		t.Errorf("port %+v with %d members known", p, n)
	}
	if op, err = put(t, z, net, `{"firewall":true}`); err != nil {
		t.Fatal(err)
	}
	z.Deliver()
	z.Ended(op, cloud.OperationSuccess, "", "")
	z.Done("update-private-network-instance-ip", ip(one, "10.0.0.77"), "id", string(net))
	if _, old := zonetest.Items[wire.Member](z, hv2)["1/10.0.0.10"]; old {
		t.Error("the address that was given up is still a member")
	}
	z.Done("detach-instance-from-private-network", on(two), "id", string(net))
	z.Done("delete-instance", nil, "id", string(two))
	if n := len(zonetest.Items[wire.Member](z, hv1)); n != 2 {
		t.Errorf("%d members known, want both addresses of one", n)
	}
}

// TestSilentHost: a change that takes something away names the host that may still
// admit it.
func TestSilentHost(t *testing.T) {
	z := zonetest.New(t, 1)
	one := z.Instance()
	net := z.Done("create-private-network", managed("10.0.0.10", "10.0.0.20"))
	z.Hosts.Host("hv1").Silent = true
	op := z.Do("attach-instance-to-private-network", attach(one, ""), "id", string(net))
	z.Deliver()
	z.Ended(op, cloud.OperationPending, "", "")
	z.Pass(61 * 1e9)
	z.Ended(op, cloud.OperationTimeout, cloud.ReasonUnavailable, "")
	off := z.Do("detach-instance-from-private-network", on(one), "id", string(net))
	z.Pass(61 * 1e9)
	z.Ended(off, cloud.OperationFailure, cloud.ReasonPartial, "may still be admitted")
	z.Hosts.Host("hv1").Silent = false
	z.Deliver()
	if n := len(zonetest.Items[wire.Network](z, "hv1")); n != 0 {
		t.Errorf("the host holds %d networks", n)
	}
}

// TestLeasesAreUnique: whatever instances do, an address is one's at a time, none
// is the server's, and none is lost.
func TestLeasesAreUnique(t *testing.T) {
	z := zonetest.New(t, 1)
	var instances []cloud.ID
	for range 5 {
		instances = append(instances, z.Instance())
	}
	rapid.Check(t, func(t *rapid.T) {
		last := rapid.IntRange(248, 253).Draw(t, "last")
		net := z.Done("create-private-network", managed("10.0.0.250", "10.0.0.254"))
		for range rapid.IntRange(1, 15).Draw(t, "steps") {
			i := rapid.SampledFrom(instances).Draw(t, "instance")
			want := ""
			if rapid.Bool().Draw(t, "static") {
				want = netip.AddrFrom4([4]byte{10, 0, 0, byte(rapid.IntRange(248, last+1).Draw(t, "octet"))}).String()
			}
			id, body := "attach-instance-to-private-network", any(attach(i, want))
			switch rapid.IntRange(0, 2).Draw(t, "what") {
			case 0:
				id, body = "detach-instance-from-private-network", on(i)
			case 1:
				id, body = "update-private-network-instance-ip", ip(i, want)
			}
			_, err := z.Handlers[id](z.T.Context(), zonetest.Request(zonetest.Org, id, body, "id", string(net)))
			if _, refused := err.(*cloud.Error); err != nil && !refused {
				t.Fatal(err)
			}
			seen := map[string]bool{}
			for i, a := range leases(z, net) {
				if seen[a] || a == "10.0.0.254" {
					t.Fatalf("%s has %s", i, a)
				}
				seen[a] = true
				at := zonetest.Doc[store.InstanceDoc](z, i).Body.Attachment(net)
				if at == nil || at.Address.String() != a {
					t.Fatalf("lease %s of %s, which has %+v", a, i, at)
				}
			}
			for _, i := range instances {
				if at := zonetest.Doc[store.InstanceDoc](z, i).Body.Attachment(net); at != nil && !seen[at.Address.String()] {
					t.Fatalf("%s has %s without a lease", i, at.Address)
				}
			}
		}
		for _, i := range instances {
			z.Do("detach-instance-from-private-network", on(i), "id", string(net))
		}
		z.Deliver()
		z.Done("delete-private-network", nil, "id", string(net))
	})
}
