// SPDX-License-Identifier: Apache-2.0

package instance

import (
	"encoding/base64"
	"encoding/json"
	"net/netip"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"cairn/cloud"
	capi "cairn/cloud/api"
	"cairn/cloud/wire"
	"cairn/controlplane/api"
	"cairn/controlplane/store"
)

func (b *bench) addPool(kind, prefix string) {
	b.t.Helper()
	_, err := b.store.Write(b.t.Context(), func(tx *store.Tx) error { return tx.AddPool(kind, netip.MustParsePrefix(prefix)) })
	if err != nil {
		b.t.Fatal(err)
	}
}

// put updates an instance by a body as it was sent.
func (b *bench) put(id cloud.ID, text string) (*cloud.Operation, error) {
	b.t.Helper()
	c := api.Call{Operation: capi.Find(capi.Operations, "update-instance"), Org: org, Body: &cloud.UpdateInstanceRequest{}, Args: map[string]string{"id": string(id)}}
	if err := json.Unmarshal([]byte(text), c.Body); err != nil {
		b.t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(text), &c.Keys); err != nil {
		b.t.Fatal(err)
	}
	op, err := b.Handlers["update-instance"](b.t.Context(), c)
	if err != nil {
		return nil, err
	}
	return op.(*cloud.Operation), nil
}

func (b *bench) change(id cloud.ID, text string) {
	b.t.Helper()
	op, err := b.put(id, text)
	if err != nil {
		b.t.Fatal(err)
	}
	b.deliver()
	b.ended(op, cloud.OperationSuccess, "", "")
}

// items are what the host holds of a kind.
func items[T wire.Item](b *bench) (all []T) {
	for _, item := range b.hosts.Host("hv1").Items() {
		if one, ok := item.(T); ok {
			all = append(all, one)
		}
	}
	slices.SortFunc(all, func(x, y T) int {
		if x.Key().ID < y.Key().ID {
			return -1
		}
		return 1
	})
	return all
}

func TestDualStack(t *testing.T) {
	b := newBench(t, 1, "198.51.100.0/24")
	b.refused(cloud.Conflict, "instance6", "create-instance", request(cloud.CreateInstanceRequest{PublicIPAssignment: cloud.PublicIPDual}))
	b.addPool(store.AddressInstance6, "2001:db8::/64")
	four := b.create(cloud.CreateInstanceRequest{Name: "four"}).Reference.ID
	both := b.create(cloud.CreateInstanceRequest{IPv6Enabled: true}).Reference.ID
	b.deliver()
	i := b.instance(both)
	if i.IPv6Address.String() != "2001:db8::2" || i.PublicIPAssignment != cloud.PublicIPDual || !i.PublicIP.Is4() || i.Row().IPv6Address != i.IPv6Address {
		t.Errorf("instance %+v", i)
	}
	if p := items[wire.Port](b)[1]; !slices.Equal(p.Addresses, []netip.Addr{i.PublicIP, i.IPv6Address}) {
		t.Errorf("port %+v", p)
	}
	if a := items[wire.Announcement](b); len(a) != 3 || a[2].Prefix.String() != "2001:db8::2/128" {
		t.Errorf("announcements %+v", a)
	}
	b.change(four, `{"public-ip-assignment":"dual"}`)
	if i := b.instance(four); i.IPv6Address.String() != "2001:db8::3" {
		t.Errorf("instance %+v", i)
	}
	if p := items[wire.Port](b)[0]; len(p.Addresses) != 2 {
		t.Errorf("port %+v", p)
	}
	for _, no := range []string{"inet4", "none"} {
		if _, err := b.put(four, `{"public-ip-assignment":"`+no+`"}`); err == nil {
			t.Errorf("dual became %s", no)
		}
	}
	list, err := b.call("list-instances", nil, "?ip-address", "2001:db8::3")
	if rows := list.(cloud.InstanceList).Instances; err != nil || len(rows) != 1 || rows[0].ID != four {
		t.Errorf("found %+v, %v", rows, err)
	}
	for _, id := range []cloud.ID{four, both} {
		b.do("delete-instance", nil, "id", string(id))
	}
	b.deliver()
	if left := b.held(); len(left) > 0 {
		t.Errorf("still allocated: %v", left)
	}
}

func TestWithoutPublicAddress(t *testing.T) {
	b := newBench(t, 1, "198.51.100.0/24")
	op := b.create(cloud.CreateInstanceRequest{PublicIPAssignment: cloud.PublicIPNone})
	b.deliver()
	b.ended(op, cloud.OperationSuccess, "", "")
	id := op.Reference.ID
	if i := b.instance(id); i.PublicIP.IsValid() || i.MACAddress != "" || i.PublicIPAssignment != cloud.PublicIPNone || i.State != cloud.InstanceRunning {
		t.Errorf("instance %+v", i)
	}
	if m := items[wire.Instance](b); len(m) != 1 || m[0].Port != 0 || m[0].PublicAddress.IsValid() {
		t.Errorf("instance on the host %+v", m)
	}
	if n := len(items[wire.Port](b)) + len(items[wire.Announcement](b)); n != 0 {
		t.Errorf("%d ports and announcements", n)
	}
	b.do("delete-instance", nil, "id", string(id))
	b.deliver()
	if left := b.held(); len(left) > 0 {
		t.Errorf("still allocated: %v", left)
	}
}

func TestUpdate(t *testing.T) {
	b := newBench(t, 1, "198.51.100.0/24")
	id := b.create(cloud.CreateInstanceRequest{Name: "old", Labels: cloud.Labels{"a": "b"}}).Reference.ID
	b.deliver()
	generation := b.doc(id).Generation
	data := base64.StdEncoding.EncodeToString([]byte("#!/bin/sh\n"))
	b.change(id, `{"name":"new","user-data":"`+data+`"}`)
	i, m := b.instance(id), items[wire.Instance](b)[0]
	if i.Name != "new" || i.Labels["a"] != "b" || i.UserData != data || i.State != cloud.InstanceRunning {
		t.Errorf("instance %+v", i)
	}
	if m.Name != "new" || string(m.UserData) != "#!/bin/sh\n" || m.Generation != generation {
		t.Errorf("on the host %+v, generation before %d", m, generation)
	}
	// What no host has to know is done at once, and what is so already is no change.
	b.hosts.Host("hv1").Silent = true
	for _, text := range []string{`{"labels":{"c":"d"}}`, `{"name":"new"}`} {
		if op, err := b.put(id, text); err != nil || op.State != cloud.OperationSuccess {
			t.Errorf("%s: %+v, %v", text, op, err)
		}
	}
	op, err := b.put(id, `{"name":"newer"}`)
	if err != nil {
		t.Fatal(err)
	}
	b.deliver()
	b.ended(op, cloud.OperationPending, "", "its host")
	b.pass(6 * time.Minute)
	b.ended(op, cloud.OperationTimeout, cloud.ReasonUnavailable, "")
	b.state(id, cloud.InstanceRunning)
	if op := b.do("reset-instance-field", nil, "id", string(id), "field", "labels"); op.State != cloud.OperationSuccess || len(b.instance(id).Labels) != 0 {
		t.Errorf("reset: %+v, labels %v", op, b.instance(id).Labels)
	}
}

func TestFlowLog(t *testing.T) {
	b := newBench(t, 1, "198.51.100.0/24")
	id := b.create(cloud.CreateInstanceRequest{Name: "i"}).Reference.ID
	b.deliver()
	logged := func(want bool) {
		t.Helper()
		p := items[wire.Port](b)[0]
		if got := p.Flags&wire.PortFlowLog != 0; got != want || b.instance(id).FlowLog != want {
			t.Errorf("logged on the host %t, in the API %t, want %t", got, b.instance(id).FlowLog, want)
		}
	}
	logged(false)
	b.change(id, `{"flow-log":true}`)
	logged(true)
	b.change(id, `{"name":"other"}`)
	logged(true)
	b.change(id, `{"flow-log":false}`)
	logged(false)
}

func TestReboot(t *testing.T) {
	b := newBench(t, 1, "198.51.100.0/24")
	id := b.create(cloud.CreateInstanceRequest{}).Reference.ID
	b.deliver()
	op := b.do("reboot-instance", nil, "id", string(id))
	b.state(id, cloud.InstanceStopping)
	if again := b.do("reboot-instance", nil, "id", string(id)); again.ID != op.ID {
		t.Errorf("rebooting twice: %s and %s", op.ID, again.ID)
	}
	b.refused(cloud.Conflict, string(op.ID), "stop-instance", nil, "id", string(id))
	b.deliver()
	b.ended(op, cloud.OperationSuccess, "", "")
	b.state(id, cloud.InstanceRunning)
	if m := items[wire.Instance](b)[0]; !m.Running || m.Generation != 3 {
		t.Errorf("on the host %+v", m)
	}
	// A host that fails half-way ends it, and so does time.
	b.hosts.Broken[id] = "no memory"
	op = b.do("reboot-instance", nil, "id", string(id))
	b.deliver()
	b.ended(op, cloud.OperationFailure, cloud.ReasonFault, "no memory")
	b.state(id, cloud.InstanceError)
	delete(b.hosts.Broken, id)
	b.deliver()
	b.refused(cloud.Conflict, "stopped", "reboot-instance", nil, "id", string(id))
	b.do("start-instance", &cloud.StartInstanceRequest{}, "id", string(id))
	b.deliver()
	b.hosts.Slow[id] = true
	op = b.do("reboot-instance", nil, "id", string(id))
	b.deliver()
	b.pass(6 * time.Minute)
	b.ended(op, cloud.OperationTimeout, cloud.ReasonUnavailable, "reboot")
	b.state(id, cloud.InstanceError)
	// A delete is always accepted.
	b.hosts.Slow[id] = false
	b.deliver()
	b.do("start-instance", &cloud.StartInstanceRequest{}, "id", string(id))
	b.deliver()
	op = b.do("reboot-instance", nil, "id", string(id))
	b.do("delete-instance", nil, "id", string(id))
	b.deliver()
	b.ended(op, cloud.OperationFailure, cloud.ReasonInterrupted, "")
	if left := b.held(); len(left) > 0 {
		t.Errorf("still allocated: %v", left)
	}
}

func TestScale(t *testing.T) {
	b := newBench(t, 1, "198.51.100.0/24")
	id := b.create(cloud.CreateInstanceRequest{}).Reference.ID
	b.deliver()
	to := func(size string) *cloud.ScaleInstanceRequest {
		for _, x := range cloud.InstanceTypes {
			if x.Title() == size {
				return &cloud.ScaleInstanceRequest{InstanceType: cloud.Ref{ID: x.ID}}
			}
		}
		t.Fatal(size)
		return nil
	}
	args := []string{"id", string(id)}
	b.refused(cloud.Conflict, "must be stopped", "scale-instance", to("standard.medium"), args...)
	b.refused(cloud.Invalid, "family", "scale-instance", to("shared.tiny"), args...)
	b.do("stop-instance", nil, args...)
	b.deliver()
	b.ended(b.do("scale-instance", to("standard.extra-large"), args...), cloud.OperationFailure, cloud.ReasonUnavailable, "") // 16 GiB of 8
	op := b.do("scale-instance", to("standard.medium"), args...)
	b.deliver()
	b.ended(op, cloud.OperationSuccess, "", "")
	if m := items[wire.Instance](b)[0]; m.Type != "standard.medium" {
		t.Errorf("on the host %+v", m)
	}
}

// TestRates: what a size limits is limited at the ports.
func TestRates(t *testing.T) {
	b := newBench(t, 1, "198.51.100.0/24")
	r := request(cloud.CreateInstanceRequest{})
	for _, x := range cloud.InstanceTypes {
		if x.Title() == "shared.tiny" {
			r.InstanceType = cloud.Ref{ID: x.ID}
		}
	}
	b.do("create-instance", r)
	b.create(cloud.CreateInstanceRequest{})
	b.deliver()
	p := items[wire.Port](b)
	if p[0].RateFrom != 25e6 || p[0].RateTo != 25e6 || p[1].RateFrom != 0 || p[1].RateTo != 0 {
		t.Errorf("ports %+v", p)
	}
}

func TestProtection(t *testing.T) {
	b := newBench(t, 1, "198.51.100.0/24")
	id := b.create(cloud.CreateInstanceRequest{}).Reference.ID
	args := []string{"id", string(id)}
	b.do("add-instance-protection", nil, args...)
	b.refused(cloud.Forbidden, "Operation delete-instance on resource "+string(id)+" is forbidden - reason: manual instance protection", "delete-instance", nil, args...)
	b.do("remove-instance-protection", nil, args...)
	b.do("delete-instance", nil, args...)
}

func TestPassword(t *testing.T) {
	b := newBench(t, 1, "198.51.100.0/24")
	root, err := store.CreateRootKey(filepath.Join(t.TempDir(), "root.key"))
	if err != nil {
		t.Fatal(err)
	}
	b.Root = root
	id := b.create(cloud.CreateInstanceRequest{}).Reference.ID
	args := []string{"id", string(id)}
	b.refused(cloud.NotFound, "no password", "reveal-instance-password", nil, args...)
	seen := map[string]bool{}
	for range 2 {
		if op := b.do("reset-instance-password", nil, args...); op.State != cloud.OperationSuccess {
			t.Errorf("operation %+v", op)
		}
		p, err := b.call("reveal-instance-password", nil, args...)
		if err != nil {
			t.Fatal(err)
		}
		word := p.(cloud.InstancePassword).Password
		if len(word) < 20 || seen[word] {
			t.Errorf("password %q", word)
		}
		seen[word] = true
		if d := b.doc(id); len(d.Body.Password.Sealed) == 0 || string(d.Body.Password.Sealed) == word {
			t.Error("the password is not sealed")
		}
	}
	b.pass(25 * time.Hour)
	b.refused(cloud.NotFound, "no password", "reveal-instance-password", nil, args...)
}

// TestKeys: what the metadata service hands out is what the keys were when the
// instance was made.
func TestKeys(t *testing.T) {
	b := newBench(t, 1, "198.51.100.0/24")
	const key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f me@here"
	b.do("register-ssh-key", &cloud.RegisterSSHKeyRequest{Name: "me", PublicKey: key})
	b.create(cloud.CreateInstanceRequest{SSHKeys: []cloud.SSHKeyRef{{Name: "me"}}})
	b.do("delete-ssh-key", nil, "name", "me")
	b.deliver()
	if m := items[wire.Instance](b)[0]; !slices.Equal(m.SSHKeys, []string{key}) {
		t.Errorf("keys %q", m.SSHKeys)
	}
}
