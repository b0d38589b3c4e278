// SPDX-License-Identifier: Apache-2.0

package instance

import (
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
	"time"

	"cairn/cloud"
	"cairn/cloud/wire"
	"cairn/controlplane/store"
)

func TestLife(t *testing.T) {
	b := newBench(t, 1, "198.51.100.0/24")
	b.do("register-ssh-key", &cloud.RegisterSSHKeyRequest{Name: "me",
		PublicKey: "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f me@here"})
	op := b.create(cloud.CreateInstanceRequest{Name: "one", SSHKey: &cloud.SSHKeyRef{Name: "me"},
		UserData: base64.StdEncoding.EncodeToString([]byte("#!/bin/sh\ntrue\n"))})
	if op.State != cloud.OperationPending || op.Reference == nil || !strings.Contains(op.Message, "hv1") {
		t.Fatalf("operation %+v", op)
	}
	id := op.Reference.ID
	i := b.instance(id) // the address is there before anything has happened
	if i.State != cloud.InstanceStarting || i.PublicIP.String() != "198.51.100.2" || i.MACAddress != "02:ca:00:00:00:01" ||
		len(i.Labels) != 0 || i.SSHKeys[0].Name != "me" || i.SSHKey.Name != "me" || len(i.SecurityGroups) != 1 || i.CreatedAt.IsZero() {
		t.Errorf("instance %+v", i)
	}
	if d := b.doc(id); string(d.Body.UserDataRaw) != "#!/bin/sh\ntrue\n" || d.Body.Class != 1 || d.Body.HostNumber != 1 {
		t.Errorf("stored %+v", d.Body)
	}
	b.deliver()
	b.ended(op, cloud.OperationSuccess, "", "")
	b.state(id, cloud.InstanceRunning)

	stop := b.do("stop-instance", nil, "id", string(id))
	if again := b.do("stop-instance", nil, "id", string(id)); again.ID != stop.ID {
		t.Errorf("stopping twice: %s and %s", stop.ID, again.ID)
	}
	b.refused(cloud.Conflict, string(stop.ID), "start-instance", &cloud.StartInstanceRequest{}, "id", string(id))
	b.deliver()
	b.ended(stop, cloud.OperationSuccess, "", "")
	b.state(id, cloud.InstanceStopped)
	if op := b.do("stop-instance", nil, "id", string(id)); op.State != cloud.OperationSuccess {
		t.Errorf("stopping what is stopped: %+v", op)
	}
	start := b.do("start-instance", &cloud.StartInstanceRequest{}, "id", string(id))
	b.deliver()
	b.ended(start, cloud.OperationSuccess, "", "")
	b.state(id, cloud.InstanceRunning)

	gone := b.do("delete-instance", nil, "id", string(id))
	if again := b.do("delete-instance", nil, "id", string(id)); again.ID != gone.ID {
		t.Errorf("deleting twice: %s and %s", gone.ID, again.ID)
	}
	b.refused(cloud.Conflict, string(gone.ID), "start-instance", &cloud.StartInstanceRequest{}, "id", string(id))
	b.state(id, cloud.InstanceDestroying)
	b.deliver()
	b.ended(gone, cloud.OperationSuccess, "", "")
	b.refused(cloud.NotFound, "instance", "get-instance", nil, "id", string(id))
	if left := b.held(); len(left) > 0 {
		t.Errorf("still allocated: %v", left)
	}
	if n := b.hosts.Held(wire.KindInstance) + b.hosts.Held(wire.KindPort) + b.hosts.Held(wire.KindPolicy); n > 0 {
		t.Errorf("hosts still hold %d items", n)
	}
}

func TestCreateWithoutStarting(t *testing.T) {
	b := newBench(t, 1, "198.51.100.0/24")
	off := false
	op := b.create(cloud.CreateInstanceRequest{AutoStart: &off})
	b.deliver()
	b.ended(op, cloud.OperationSuccess, "", "")
	b.state(op.Reference.ID, cloud.InstanceStopped)
	if name := b.instance(op.Reference.ID).Name; name != "VM-"+string(op.Reference.ID) {
		t.Errorf("name %q", name)
	}
}

func TestEveryFaultOfARequest(t *testing.T) {
	b := newBench(t, 1, "198.51.100.0/24")
	no := cloud.NewID()
	r := &cloud.CreateInstanceRequest{
		InstanceType: cloud.Ref{ID: no}, Template: cloud.Ref{ID: no}, DiskSize: 10, SSHKeys: []cloud.SSHKeyRef{{Name: "nobody"}},
		SecurityGroups: []cloud.Ref{{ID: no}}, AntiAffinityGroups: []cloud.Ref{{ID: no}}, PublicIPAssignment: cloud.PublicIPNone, IPv6Enabled: true,
		TPMEnabled: true, SecurebootEnabled: true, DeployTarget: &cloud.Ref{ID: no},
	}
	for _, field := range []string{"instance-type.id", "template.id", "ssh-keys[0].name", "security-groups[0].id",
		"anti-affinity-groups[0].id", "ipv6-enabled", "tpm-enabled", "secureboot-enabled", "deploy-target"} {
		b.refused(cloud.Invalid, field+": expected", "create-instance", r)
	}
	if left := b.held(); len(left) > 0 {
		t.Errorf("allocated by a refusal: %v", left)
	}
}

// TestAntiAffinity: three hypervisors take three, and the fourth operation is
// accepted, fails, and leaves nothing.
func TestAntiAffinity(t *testing.T) {
	b := newBench(t, 3, "198.51.100.0/24")
	group := b.do("create-anti-affinity-group", &cloud.CreateAntiAffinityGroupRequest{Name: "apart"}).Reference.ID
	r := cloud.CreateInstanceRequest{AntiAffinityGroups: []cloud.Ref{{ID: group}}}
	at := map[cloud.ID]bool{}
	var ids []cloud.ID
	for range 3 {
		op := b.create(r)
		ids = append(ids, op.Reference.ID)
		at[b.doc(op.Reference.ID).Body.Hypervisor] = true
	}
	if len(at) != 3 {
		t.Errorf("three instances on %d hypervisors", len(at))
	}
	before := b.held()
	fourth := b.create(r)
	b.ended(fourth, cloud.OperationFailure, cloud.ReasonUnavailable, "apart")
	b.refused(cloud.NotFound, "", "get-instance", nil, "id", string(fourth.Reference.ID))
	if after := b.held(); strings.Join(before, ",") != strings.Join(after, ",") {
		t.Errorf("a failed operation holds something: %v, before %v", after, before)
	}
	b.deliver()
	b.refused(cloud.Conflict, "in use", "delete-anti-affinity-group", nil, "id", string(group))
	// Room is made by a removal, and only when it is done.
	gone := b.do("delete-instance", nil, "id", string(ids[0]))
	b.ended(b.create(r), cloud.OperationFailure, cloud.ReasonUnavailable, "apart")
	b.deliver()
	b.ended(gone, cloud.OperationSuccess, "", "")
	b.deliver()
	op := b.create(r)
	b.deliver()
	b.ended(op, cloud.OperationSuccess, "", "")
}

func TestGroupsTakeEight(t *testing.T) {
	b := newBench(t, 10, "198.51.100.0/24")
	group := b.do("create-anti-affinity-group", &cloud.CreateAntiAffinityGroupRequest{Name: "apart"}).Reference.ID
	r := cloud.CreateInstanceRequest{AntiAffinityGroups: []cloud.Ref{{ID: group}}}
	for range 8 {
		b.create(r)
	}
	b.ended(b.create(r), cloud.OperationFailure, cloud.ReasonUnavailable, "apart")
}

func TestExhaustedPoolIsNamed(t *testing.T) {
	b := newBench(t, 1, "198.51.100.0/29") // without network, gateway, broadcast: 5
	for range 5 {
		b.create(cloud.CreateInstanceRequest{})
	}
	before := b.held()
	b.refused(cloud.Conflict, "198.51.100.0/29", "create-instance", request(cloud.CreateInstanceRequest{}))
	if after := b.held(); len(after) != len(before) {
		t.Errorf("a refusal holds something: %v, before %v", after, before)
	}
}

func TestNoHypervisor(t *testing.T) {
	b := newBench(t, 0, "198.51.100.0/24")
	b.ended(b.create(cloud.CreateInstanceRequest{}), cloud.OperationFailure, cloud.ReasonUnavailable, "no hypervisor left")
}

func TestFailureAndLateSuccess(t *testing.T) {
	b := newBench(t, 1, "198.51.100.0/24")
	op := b.create(cloud.CreateInstanceRequest{})
	id := op.Reference.ID
	b.hosts.Broken[id] = "no space left"
	b.deliver()
	b.ended(op, cloud.OperationFailure, cloud.ReasonFault, "no space left")
	b.state(id, cloud.InstanceError)
	delete(b.hosts.Broken, id)
	b.deliver()
	b.state(id, cloud.InstanceRunning)
	b.ended(op, cloud.OperationFailure, cloud.ReasonFault, "no space left") // it ended as it ended

	late := b.create(cloud.CreateInstanceRequest{})
	b.hosts.Slow[late.Reference.ID] = true
	b.deliver()
	b.ended(late, cloud.OperationPending, "", "")
	b.pass(5*time.Minute - time.Second)
	b.ended(late, cloud.OperationPending, "", "")
	b.pass(2 * time.Second)
	b.ended(late, cloud.OperationTimeout, cloud.ReasonUnavailable, "waiting for hv1")
	b.state(late.Reference.ID, cloud.InstanceError)
	delete(b.hosts.Slow, late.Reference.ID)
	b.deliver()
	b.state(late.Reference.ID, cloud.InstanceRunning)
}

// TestReportsOfThePast: what a host says of an older wish, or a host that is not
// its own, moves nothing.
func TestReportsOfThePast(t *testing.T) {
	b := newBench(t, 2, "198.51.100.0/24")
	op := b.create(cloud.CreateInstanceRequest{})
	id := op.Reference.ID
	b.deliver()
	commits := b.store.Commits()
	d := b.doc(id)
	here, there := "hv1", "hv2"
	if d.Body.HostNumber == 2 {
		here, there = there, here
	}
	for _, one := range []struct {
		host, state string
		generation  uint64
	}{
		{there, "error", d.Generation}, {here, "error", d.Generation - 1}, {here, "error", d.Generation + 1},
		{here, "running", d.Generation}, {here, "stopped", d.Generation}, {here, "dancing", d.Generation},
	} {
		if err := b.Report(t.Context(), one.host, report(id, one.generation, one.state)); err != nil {
			t.Fatal(err)
		}
	}
	b.state(id, cloud.InstanceRunning)
	if n := b.store.Commits() - commits; n > 0 {
		t.Errorf("%d commits for no news", n)
	}
	if err := b.Report(t.Context(), here, report(id, d.Generation, "error")); err != nil { // the control
		t.Fatal(err)
	}
	b.state(id, cloud.InstanceError)
}

// TestDeleteOnASilentHost: the operation ends at its deadline, the removal when
// the host is back, and after a restart too.
func TestDeleteOnASilentHost(t *testing.T) {
	for _, restarted := range []bool{false, true} {
		t.Run(fmt.Sprint(restarted), func(t *testing.T) {
			b := newBench(t, 1, "198.51.100.0/24")
			id := b.create(cloud.CreateInstanceRequest{}).Reference.ID
			b.deliver()
			b.hosts.Host("hv1").Silent = true
			op := b.do("delete-instance", nil, "id", string(id))
			b.deliver()
			b.ended(op, cloud.OperationPending, "", "")
			b.pass(5*time.Minute + time.Second)
			b.ended(op, cloud.OperationTimeout, cloud.ReasonUnavailable, "hv1 to let instance")
			b.state(id, cloud.InstanceDestroying)
			if restarted {
				b.restart()
			} else {
				b.hosts.Host("hv1").Silent = false
				b.deliver()
			}
			if left := b.held(); len(left) > 0 {
				t.Errorf("still allocated: %v", left)
			}
			b.refused(cloud.NotFound, "", "get-instance", nil, "id", string(id))
		})
	}
}

// TestDeleteWhileStarting: a delete is accepted, and what was waited for ends.
func TestDeleteWhileStarting(t *testing.T) {
	b := newBench(t, 1, "198.51.100.0/24")
	op := b.create(cloud.CreateInstanceRequest{})
	gone := b.do("delete-instance", nil, "id", string(op.Reference.ID))
	b.ended(op, cloud.OperationFailure, cloud.ReasonInterrupted, string(gone.ID))
	b.deliver()
	b.ended(gone, cloud.OperationSuccess, "", "")
	if left := b.held(); len(left) > 0 {
		t.Errorf("still allocated: %v", left)
	}
}

func TestList(t *testing.T) {
	b := newBench(t, 1, "198.51.100.0/24")
	for _, name := range []string{"one", "two"} {
		b.create(cloud.CreateInstanceRequest{Name: name, Labels: cloud.Labels{"name": name, "all": "yes"}})
	}
	for _, c := range []struct{ query, value, want string }{
		{"labels", "name=one", "one"}, {"labels", "all=yes,name=two", "two"}, {"labels", "name=three", ""},
		{"labels", "all=yes", "one two"}, {"ip-address", "198.51.100.3", "two"}, {"ip-address", "198.51.100.9", ""},
		{"manager-type", "instance-pool", ""}, {"manager-id", string(cloud.NewID()), ""},
	} {
		list, err := b.call("list-instances", nil, "?"+c.query, c.value)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, i := range list.(cloud.InstanceList).Instances {
			names = append(names, i.Name)
		}
		if got := strings.Join(names, " "); got != c.want {
			t.Errorf("%s=%s: %q, want %q", c.query, c.value, got, c.want)
		}
	}
	b.refused(cloud.Invalid, "ip-address", "list-instances", nil, "?ip-address", "here")
	b.refused(cloud.Invalid, "labels", "list-instances", nil, "?labels", "here")
}

func TestOfAnotherOrganisation(t *testing.T) {
	b := newBench(t, 1, "198.51.100.0/24")
	id := b.create(cloud.CreateInstanceRequest{}).Reference.ID
	err := b.store.Read(t.Context(), func(tx *store.Tx) error {
		_, err := Find(tx, stranger, id)
		return err
	})
	if e, ok := err.(*cloud.Error); !ok || e.Kind != cloud.NotFound {
		t.Errorf("a stranger's look: %v", err)
	}
}
