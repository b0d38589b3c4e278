// SPDX-License-Identifier: Apache-2.0

package elasticip_test

import (
	"encoding/json"
	"net/netip"
	"slices"
	"testing"
	"time"

	"cairn/cloud"
	"cairn/cloud/wire"
	"cairn/controlplane/instance/zonetest"
	"cairn/controlplane/store"
)

func on(instance cloud.ID) *cloud.InstanceRequest {
	return &cloud.InstanceRequest{Instance: cloud.Ref{ID: instance}}
}

var check = &cloud.ElasticHealthcheck{Mode: cloud.CheckHTTPS, Port: 443, URI: "/up", TLSSNI: "example.net"}

// announcers are the hosts that announce the elastic IP.
func announcers(z *zonetest.Zone, id cloud.ID) (hosts []string) {
	prefix := zonetest.Doc[store.ElasticIPDoc](z, id).Body.Prefix.String()
	for _, host := range []string{"hv1", "hv2", "hv3"} {
		if z.Hosts.Host(host) == nil {
			continue
		}
		if _, ok := zonetest.Items[wire.Announcement](z, host)[prefix]; ok {
			hosts = append(hosts, host)
		}
	}
	return hosts
}

// port of an instance as its host has it.
func port(z *zonetest.Zone, instance cloud.ID) wire.Port {
	d := zonetest.Doc[store.InstanceDoc](z, instance).Body
	return zonetest.Items[wire.Port](z, z.HostOf(instance))[wire.Port{ID: d.Port}.Key().ID]
}

// apart makes instances on different hosts.
func apart(z *zonetest.Zone, n int) (ids []cloud.ID) {
	for range n {
		ids = append(ids, z.Instance())
	}
	return ids
}

// say lets the host of an instance report the check of an elastic IP.
func say(z *zonetest.Zone, eip, instance cloud.ID, state string) {
	d := zonetest.Doc[store.ElasticIPDoc](z, eip).Body
	p := d.Place(instance)
	z.Says(z.HostOf(instance), wire.ElasticCheckKey(d.Number, p.Port), p.Generation, state)
	z.Deliver()
}

func activeAt(t *testing.T, z *zonetest.Zone, eip cloud.ID, want ...cloud.ID) {
	t.Helper()
	d := zonetest.Doc[store.ElasticIPDoc](z, eip).Body
	var hosts []string
	for _, p := range d.Attached {
		if wanted := slices.Contains(want, p.Instance); p.Active != wanted || slices.Contains(port(z, p.Instance).Active, d.Prefix) != wanted {
			t.Errorf("instance %s is active %v, its port has %v; want %v", p.Instance, p.Active, port(z, p.Instance).Active, wanted)
		}
		if !slices.Contains(port(z, p.Instance).Allowed, d.Prefix) {
			t.Errorf("instance %s may not use it: %v", p.Instance, port(z, p.Instance).Allowed)
		}
	}
	for _, id := range want {
		hosts = append(hosts, z.HostOf(id))
	}
	slices.Sort(hosts)
	if got := announcers(z, eip); !slices.Equal(got, slices.Compact(hosts)) {
		t.Errorf("announced by %v, want %v", got, hosts)
	}
}

func TestLife(t *testing.T) {
	z := zonetest.New(t, 2)
	at := apart(z, 2)
	id := z.Done("create-elastic-ip", &cloud.CreateElasticIPRequest{Description: "front"})
	e := zonetest.Get[cloud.ElasticIP](z, "get-elastic-ip", id)
	if e.IP != "192.0.2.1" || e.CIDR != "192.0.2.1/32" || e.AddressFamily != cloud.Inet4 || e.Description != "front" || e.Healthcheck != nil {
		t.Errorf("elastic IP %+v", e)
	}
	six := zonetest.Get[cloud.ElasticIP](z, "get-elastic-ip", z.Done("create-elastic-ip", &cloud.CreateElasticIPRequest{AddressFamily: cloud.Inet6}))
	if six.IP != "2001:db8:e::1:0:1" || six.CIDR != "2001:db8:e::1:0:0/96" {
		t.Errorf("elastic IP %+v", six)
	}
	for _, i := range at {
		z.Done("attach-instance-to-elastic-ip", on(i), "id", string(id))
	}
	z.Done("attach-instance-to-elastic-ip", on(at[0]), "id", string(six.ID))
	activeAt(t, z, id, at...)
	activeAt(t, z, six.ID, at[0])
	i := zonetest.Get[cloud.Instance](z, "get-instance", at[0])
	if !slices.Equal(i.ElasticIPs, []cloud.Ref{{ID: id}, {ID: six.ID}}) {
		t.Errorf("elastic IPs of the instance %v", i.ElasticIPs)
	}
	if n := z.Hosts.Held(wire.KindCheck); n != 0 {
		t.Errorf("%d checks without being asked for", n)
	}
	z.Refused(cloud.Conflict, "in use by instance", "delete-elastic-ip", nil, "id", string(id))
	if op := z.Do("attach-instance-to-elastic-ip", on(at[0]), "id", string(id)); op.State != cloud.OperationSuccess {
		t.Errorf("attached twice: %+v", op)
	}
	// Who is stopped does not get it; who goes lets it go.
	z.Done("stop-instance", nil, "id", string(at[0]))
	activeAt(t, z, id, at[1])
	z.Done("start-instance", &cloud.StartInstanceRequest{}, "id", string(at[0]))
	activeAt(t, z, id, at...)
	z.Done("delete-instance", nil, "id", string(at[1]))
	activeAt(t, z, id, at[0])
	for _, e := range []cloud.ID{id, six.ID} {
		z.RefusedTo(zonetest.Stranger, cloud.NotFound, string(e), "detach-instance-from-elastic-ip", on(at[0]), "id", string(e))
		z.Done("detach-instance-from-elastic-ip", on(at[0]), "id", string(e))
		z.RefusedTo(zonetest.Stranger, cloud.NotFound, string(e), "delete-elastic-ip", nil, "id", string(e))
		z.Done("delete-elastic-ip", nil, "id", string(e))
	}
	if p := port(z, at[0]); p.Allowed != nil || p.Active != nil {
		t.Errorf("port %+v", p)
	}
	z.Done("delete-instance", nil, "id", string(at[0]))
	if left := z.Held(); len(left) > 0 {
		t.Errorf("still allocated: %v", left)
	}
}

func TestManaged(t *testing.T) {
	z := zonetest.New(t, 3)
	at := apart(z, 3)
	id := z.Done("create-elastic-ip", &cloud.CreateElasticIPRequest{Healthcheck: check})
	for _, i := range at {
		z.Done("attach-instance-to-elastic-ip", on(i), "id", string(id))
	}
	activeAt(t, z, id, at[0])
	d := zonetest.Doc[store.ElasticIPDoc](z, id).Body
	key := wire.ElasticCheckKey(d.Number, d.Attached[0].Port)
	got, ok := zonetest.Items[wire.Check](z, z.HostOf(at[0]))[key.ID]
	want := wire.Check{Elastic: d.Number, CheckedPort: d.Attached[0].Port, Mode: "https", Port: 443, URI: "/up", TLSSNI: "example.net",
		Address: zonetest.Doc[store.InstanceDoc](z, at[0]).Body.Address, Interval: 10 * time.Second, Timeout: 2 * time.Second, Retries: 2, StrikesOK: 2, Generation: 1}
	if !ok || got != want {
		t.Errorf("check\n %+v\nwant\n %+v", got, want)
	}
	for _, i := range at {
		if n := len(zonetest.Items[wire.Check](z, z.HostOf(i))); n != 1 {
			t.Errorf("%s does %d checks", z.HostOf(i), n)
		}
	}
	// Unknown is not unhealthy, and none healthy moves nothing.
	say(z, id, at[0], "failure")
	activeAt(t, z, id, at[0])
	say(z, id, at[2], "success")
	activeAt(t, z, id, at[2])
	say(z, id, at[0], "success") // it does not move back
	activeAt(t, z, id, at[2])
	say(z, id, at[2], "failure")
	activeAt(t, z, id, at[0])
	// Only the host of a place is heard, and only of what is checked now.
	p := zonetest.Doc[store.ElasticIPDoc](z, id).Body.Place(at[0])
	z.Says(z.HostOf(at[1]), wire.ElasticCheckKey(d.Number, p.Port), p.Generation, "failure")
	z.Says(z.HostOf(at[0]), wire.ElasticCheckKey(d.Number, p.Port), p.Generation+1, "failure")
	activeAt(t, z, id, at[0])
	// A stopped instance is left at once, a deleted one too.
	say(z, id, at[1], "success")
	z.Done("stop-instance", nil, "id", string(at[0]))
	activeAt(t, z, id, at[1])
	z.Done("start-instance", &cloud.StartInstanceRequest{}, "id", string(at[0]))
	activeAt(t, z, id, at[1])
	z.Done("delete-instance", nil, "id", string(at[1]))
	activeAt(t, z, id, at[0])
}

// TestDeadHost: a host that cannot be reached loses what comes to its instances;
// when most of them cannot, nothing moves.
func TestDeadHost(t *testing.T) {
	z := zonetest.New(t, 3)
	at := apart(z, 2)
	id := z.Done("create-elastic-ip", &cloud.CreateElasticIPRequest{Healthcheck: check})
	for _, i := range at {
		z.Done("attach-instance-to-elastic-ip", on(i), "id", string(id))
		say(z, id, i, "success")
	}
	lose := func(lost ...string) {
		t.Helper()
		_, err := z.Store.Write(t.Context(), func(tx *store.Tx) error {
			all, err := store.List[store.HypervisorDoc](tx, "")
			if err != nil {
				return err
			}
			for i := range all {
				all[i].Body.Unreachable = slices.Contains(lost, all[i].Body.Name)
				if err := store.Put(tx, "", all[i]); err != nil {
					return err
				}
			}
			return z.Elastics.HostsChanged(tx, all)
		})
		if err != nil {
			t.Fatal(err)
		}
		z.Deliver()
	}
	lose("hv1", "hv2", "hv3")
	activeAt(t, z, id, at[0])
	lose(z.HostOf(at[0]))
	activeAt(t, z, id, at[1])
	lose()
	activeAt(t, z, id, at[1])
}

// TestNewCheck: with another check nothing is known any more; it comes to one
// place only as soon as there is a check.
func TestNewCheck(t *testing.T) {
	z := zonetest.New(t, 2)
	at := apart(z, 2)
	id := z.Done("create-elastic-ip", &cloud.CreateElasticIPRequest{Description: "old"})
	for _, i := range at {
		z.Done("attach-instance-to-elastic-ip", on(i), "id", string(id))
	}
	activeAt(t, z, id, at...)
	put := func(text string) {
		t.Helper()
		c := zonetest.Request(zonetest.Org, "update-elastic-ip", &cloud.UpdateElasticIPRequest{}, "id", string(id))
		if err := json.Unmarshal([]byte(text), c.Body); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal([]byte(text), &c.Keys); err != nil {
			t.Fatal(err)
		}
		op, err := z.Handlers["update-elastic-ip"](t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		z.Deliver()
		z.Ended(op.(*cloud.Operation), cloud.OperationSuccess, "", "")
	}
	put(`{"healthcheck":{"mode":"tcp","port":80,"strikes-fail":1},"description":"new"}`)
	activeAt(t, z, id, at[0])
	e := zonetest.Get[cloud.ElasticIP](z, "get-elastic-ip", id)
	if h := e.Healthcheck; h == nil || *h != (cloud.ElasticHealthcheck{Mode: "tcp", Port: 80, Interval: 10, Timeout: 2, StrikesOK: 2, StrikesFail: 1}) || e.Description != "new" {
		t.Errorf("elastic IP %+v, %+v", e, e.Healthcheck)
	}
	say(z, id, at[1], "success")
	before := zonetest.Doc[store.ElasticIPDoc](z, id)
	put(`{"healthcheck":{"mode":"tcp","port":80,"strikes-fail":1}}`) // no change
	if after := zonetest.Doc[store.ElasticIPDoc](z, id); after.Generation != before.Generation {
		t.Error("the same check is another generation")
	}
	put(`{"healthcheck":{"mode":"http","port":80,"uri":"/"}}`)
	for _, p := range zonetest.Doc[store.ElasticIPDoc](z, id).Body.Attached {
		if p.Verdict != store.VerdictInitial || p.Generation != 3 {
			t.Errorf("place %+v", p)
		}
	}
	z.Done("reset-elastic-ip-field", nil, "id", string(id), "field", "description")
	if e := zonetest.Get[cloud.ElasticIP](z, "get-elastic-ip", id); e.Description != "" || e.Healthcheck == nil {
		t.Errorf("elastic IP %+v", e)
	}
}

func TestReverseDNS(t *testing.T) {
	z := zonetest.New(t, 1)
	i := z.Instance()
	id := z.Done("create-elastic-ip", &cloud.CreateElasticIPRequest{})
	for noun, object := range map[string]cloud.ID{"instance": i, "elastic-ip": id} {
		args := []string{"id", string(object)}
		z.Refused(cloud.NotFound, "no name", "get-reverse-dns-"+noun, nil, args...)
		z.Refused(cloud.NotFound, "no name", "delete-reverse-dns-"+noun, nil, args...)
		for _, name := range []string{"www.example.net", "mail.example.net."} {
			z.Done("update-reverse-dns-"+noun, &cloud.UpdateReverseDNSRequest{DomainName: name}, args...)
		}
		if r := zonetest.Get[cloud.ReverseDNSRecord](z, "get-reverse-dns-"+noun, object); r.DomainName != "mail.example.net." {
			t.Errorf("%s: %q", noun, r.DomainName)
		}
		z.RefusedTo(zonetest.Stranger, cloud.NotFound, string(object), "get-reverse-dns-"+noun, nil, args...)
		z.Done("delete-reverse-dns-"+noun, nil, args...)
		z.Refused(cloud.NotFound, "no name", "get-reverse-dns-"+noun, nil, args...)
	}
	order := zonetest.Order()
	order.PublicIPAssignment = cloud.PublicIPNone
	hidden := z.Done("create-instance", order)
	z.Refused(cloud.Conflict, "no public", "update-reverse-dns-instance", &cloud.UpdateReverseDNSRequest{DomainName: "x.example"}, "id", string(hidden))
	z.Refused(cloud.Conflict, "no public interface", "attach-instance-to-elastic-ip", on(hidden), "id", string(id))
}

// TestEveryCommitIsACrashPoint: networks and elastic IPs come and go, with the
// control plane killed after each commit in turn.
func TestEveryCommitIsACrashPoint(t *testing.T) {
	n := zonetest.EveryCommit(t, 2, func(w *zonetest.Witness) {
		one, two := w.Ask("create-instance", zonetest.Order()), w.Ask("create-instance", zonetest.Order())
		net := w.Ask("create-private-network", &cloud.CreatePrivateNetworkRequest{Name: "net", Firewall: true,
			Netmask: netip.MustParseAddr("255.255.255.0"), StartIP: netip.MustParseAddr("10.0.0.10"), EndIP: netip.MustParseAddr("10.0.0.20")})
		eip := w.Ask("create-elastic-ip", &cloud.CreateElasticIPRequest{Healthcheck: check})
		for _, i := range []cloud.ID{one, two} {
			w.Ask("attach-instance-to-private-network", &cloud.AttachToNetworkRequest{Instance: cloud.Ref{ID: i}}, "id", string(net))
			w.Ask("attach-instance-to-elastic-ip", on(i), "id", string(eip))
		}
		w.Ask("update-private-network-instance-ip", &cloud.UpdateNetworkIPRequest{Instance: cloud.Ref{ID: one}, IP: netip.MustParseAddr("10.0.0.99")}, "id", string(net))
		for _, v := range []struct {
			at    cloud.ID
			state string
		}{{two, "success"}, {one, "failure"}} {
			d := zonetest.Doc[store.ElasticIPDoc](w.Zone, eip).Body
			p, host := d.Place(v.at), w.HostOf(v.at)
			w.Tell(host, wire.ElasticCheckKey(d.Number, p.Port), p.Generation, v.state)
		}
		activeAt(t, w.Zone, eip, two)
		w.Ask("reboot-instance", nil, "id", string(one))
		if d := zonetest.Doc[store.InstanceDoc](w.Zone, one).Body; d.State != cloud.InstanceRunning || d.Attachment(net).Address.String() != "10.0.0.99" {
			t.Errorf("after the reboot: %s, %+v", d.State, d.Networks)
		}
		w.Ask("stop-instance", nil, "id", string(one))
		w.Ask("scale-instance", &cloud.ScaleInstanceRequest{InstanceType: cloud.Ref{ID: cloud.InstanceTypes[2].ID}}, "id", string(one))
		w.Ask("start-instance", &cloud.StartInstanceRequest{}, "id", string(one))
		w.Ask("detach-instance-from-private-network", on(one), "id", string(net))
		w.Ask("delete-instance", nil, "id", string(two))
		activeAt(t, w.Zone, eip, one)
		w.Ask("detach-instance-from-elastic-ip", on(one), "id", string(eip))
		w.Ask("delete-elastic-ip", nil, "id", string(eip))
		w.Ask("delete-private-network", nil, "id", string(net))
		w.Ask("delete-instance", nil, "id", string(one))
	})
	t.Logf("%d commits", n)
	if n < 25 {
		t.Error("the story has become too short")
	}
}
