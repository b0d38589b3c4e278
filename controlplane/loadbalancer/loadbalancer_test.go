// SPDX-License-Identifier: Apache-2.0

package loadbalancer

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"testing"
	"time"

	"cairn/cloud"
	"cairn/controlplane/fsm"
	"cairn/controlplane/operation"
	"cairn/controlplane/store"
)

func TestMachines(t *testing.T) {
	for _, m := range []*fsm.Machine{&balancerMachine, &serviceMachine} {
		if err := m.Verify("recompile", "forget"); err != nil {
			t.Error(err)
		}
		broken := *m
		broken.Rows = broken.Rows[:len(broken.Rows)-1] // nothing is ever deleted
		if err := broken.Verify("recompile", "forget"); err == nil {
			t.Errorf("%s passes without an end", m.Name)
		}
	}
}

// held is the world of the search: do agents hold the service, and has what was
// allocated for it been given back?
type held struct{ agents, freed bool }

// TestServiceInABadWorld searches the service's machine with an executor that
// repeats, crashes and comes late. Numbers are freed only when agents have let
// go; without fencing by generation they would not be.
func TestServiceInABadWorld(t *testing.T) {
	model := fsm.Model[held]{
		Machine: &serviceMachine, Fence: fsm.AtApply,
		External: []fsm.Event{operation.Update, operation.Delete}, Budget: 3,
		Apply: func(w held, e fsm.Effect) held {
			switch e.Name {
			case "recompile":
				w.agents = true
			case "release":
				w.agents = false
			case "forget":
				w.freed = true
			}
			return w
		},
		Replies: func([]fsm.Effect) []fsm.Event { return []fsm.Event{operation.Acked, operation.Nacked} },
		Bad: func(s fsm.State, w held) string {
			if w.freed && w.agents {
				return "freed while agents hold it"
			}
			return ""
		},
	}
	// What recompile comes to depends on the row: of one that is being deleted
	// nothing is compiled.
	m := serviceMachine
	m.Rows = slices.Clone(m.Rows)
	for i := range m.Rows {
		if m.Rows[i].State == deleting {
			m.Rows[i].Effects = []fsm.Effect{{Name: "release", Idempotent: true}}
		}
	}
	model.Machine = &m
	r, err := model.Explore()
	if err != nil || r.Bad > 0 || r.States < 50 {
		t.Errorf("%d states, %d bad, %v: %v", r.States, r.Bad, err, r.First)
	}
	model.Fence = fsm.Unfenced
	if r, err := model.Explore(); err != nil || r.Bad == 0 {
		t.Errorf("without a fence: %d states, %d bad, %v", r.States, r.Bad, err)
	}
}

func TestLoadBalancer(t *testing.T) {
	b := newBench(t)
	id := b.create("nlb1")
	l := b.nlb(id)
	if l.State != cloud.BalancerRunning || l.IP.String() != "203.0.113.1" || l.CreatedAt.IsZero() || l.Services == nil {
		t.Errorf("first read %+v", l)
	}
	b.refused(cloud.Conflict, `"nlb1" already exists`, "create-load-balancer", &cloud.CreateLoadBalancerRequest{Name: "nlb1"})
	b.refused(cloud.NotFound, "not found", "get-load-balancer", nil, "id", string(cloud.NewID()))

	commits := b.store.Commits()
	same := b.do("update-load-balancer", &cloud.UpdateLoadBalancerRequest{Name: "nlb1"}, "id", string(id))
	if same.State != cloud.OperationSuccess || b.store.Commits() != commits {
		t.Errorf("an update that says what is: %+v, %d commits", same, b.store.Commits()-commits)
	}
	op := b.do("update-load-balancer", &cloud.UpdateLoadBalancerRequest{
		Name: "nlb2", Description: "web", Labels: cloud.Labels{"a": "b"}}, "id", string(id))
	l = b.nlb(id)
	if op.State != cloud.OperationSuccess || l.Name != "nlb2" || l.Description != "web" || l.Labels["a"] != "b" || l.State != cloud.BalancerRunning {
		t.Errorf("updated: %+v %+v", op, l)
	}
	b.do("reset-load-balancer-field", nil, "id", string(id), "field", "description")
	b.do("reset-load-balancer-field", nil, "id", string(id), "field", "labels")
	if l = b.nlb(id); l.Description != "" || len(l.Labels) != 0 || l.Name != "nlb2" {
		t.Errorf("reset: %+v", l)
	}
	other := b.create("nlb1")
	b.refused(cloud.Conflict, "already exists", "update-load-balancer", &cloud.UpdateLoadBalancerRequest{Name: "nlb1"}, "id", string(id))
	list, err := b.call("list-load-balancers", nil)
	if all := list.(cloud.LoadBalancerList).LoadBalancers; err != nil || len(all) != 2 || all[1].ID != other || all[1].IP.String() != "203.0.113.2" {
		t.Errorf("list %+v %v", list, err)
	}
	for _, one := range []cloud.ID{id, other} {
		if op := b.do("delete-load-balancer", nil, "id", string(one)); op.State != cloud.OperationSuccess || op.Reference.ID != one {
			t.Errorf("delete: %+v", op)
		}
	}
	if left := b.left(); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
	if next := b.nlb(b.create("nlb1")); next.IP.String() == l.IP.String() {
		t.Errorf("%s is given away again at once", next.IP)
	}
}

func TestAddressPoolExhausted(t *testing.T) {
	b := newBench(t)
	for i := range 6 {
		b.create(fmt.Sprint(i))
	}
	b.refused(cloud.Conflict, "203.0.113.0/29", "create-load-balancer", &cloud.CreateLoadBalancerRequest{Name: "one too many"})
}

func TestServiceOverTime(t *testing.T) {
	b := newBench(t)
	b.runs(3)
	nlb := b.create("nlb")
	id, op := b.add(nlb, web(b.pool, "web", 80))
	if op.State != cloud.OperationPending || op.Reference.ID != nlb || op.Reference.Command != "get-load-balancer" {
		t.Errorf("add: %+v", op)
	}
	s := b.nlb(nlb).Services[0]
	if s.State != cloud.ServiceCreating || len(s.HealthcheckStatus) != 0 || s.HealthcheckStatus == nil {
		t.Errorf("at first: %+v", s)
	}
	if got := b.owners(id); got != "[1 2 3]" {
		t.Errorf("owners %s", got)
	}
	if stored := b.stored(op); stored.Deadline.Sub(stored.Created) != time.Minute {
		t.Errorf("deadline %v", stored.Deadline)
	}
	b.settled(op, true)
	if s = b.nlb(nlb).Services[0]; s.State != cloud.ServiceRunning {
		t.Errorf("acked: %+v", s)
	}

	// Two updates at once: the second one decides when it runs again.
	first := b.do("update-load-balancer-service", &cloud.UpdateServiceRequest{Port: 81}, "id", string(nlb), "service-id", string(id))
	second := b.do("update-load-balancer-service", &cloud.UpdateServiceRequest{Port: 82}, "id", string(nlb), "service-id", string(id))
	b.settled(first, true)
	if s = b.nlb(nlb).Services[0]; s.State != cloud.ServiceUpdating || s.Port != 82 {
		t.Errorf("first of two: %+v", s)
	}
	b.settled(second, false)
	if s = b.nlb(nlb).Services[0]; s.State != cloud.ServiceRunning || s.Port != 82 {
		t.Errorf("second of two, refused: %+v", s)
	}
	if o := b.stored(second); o.State != cloud.OperationFailure || o.Reason != cloud.ReasonFault || o.Message != "hv1: slots: no space left" {
		t.Errorf("refused: %+v", o)
	}

	gone := b.do("delete-load-balancer-service", nil, "id", string(nlb), "service-id", string(id))
	again := b.do("delete-load-balancer-service", nil, "id", string(nlb), "service-id", string(id))
	if again.ID != gone.ID || gone.Reference.ID != nlb {
		t.Errorf("deleted twice: %+v, %+v", gone, again)
	}
	if got := b.intents(gone.ID); got != "announcement 1;backend 3;check 3;service 1;slots 1;" {
		t.Errorf("intents %s", got)
	}
	b.refused(cloud.Conflict, "busy", "update-load-balancer-service", &cloud.UpdateServiceRequest{Port: 83}, "id", string(nlb), "service-id", string(id))
	if s = b.nlb(nlb).Services[0]; s.State != cloud.ServiceDeleting {
		t.Errorf("deleting: %+v", s)
	}
	b.settled(gone, true)
	if l := b.nlb(nlb); len(l.Services) != 0 {
		t.Errorf("deleted: %+v", l.Services)
	}
	if left := b.left(); !slices.Equal(left, []string{store.AddressVIP}) {
		t.Errorf("left: %v", left)
	}
}

func TestServiceAsSent(t *testing.T) {
	b := newBench(t)
	nlb := b.create("nlb")
	r := web(b.pool, "web", 80)
	r.Healthcheck = cloud.Healthcheck{Mode: cloud.CheckHTTP, Port: 80, Interval: 12, Timeout: 3, Retries: 4, URI: "/up"}
	id, op := b.add(nlb, r)
	b.settled(op, true)
	read := func() (m map[string]any) {
		s, err := b.call("get-load-balancer-service", nil, "id", string(nlb), "service-id", string(id))
		text, err2 := json.Marshal(s)
		if err != nil || err2 != nil || json.Unmarshal(text, &m) != nil {
			t.Fatal(err, err2)
		}
		return m
	}
	want := map[string]any{
		"id": string(id), "name": "web", "protocol": "tcp", "port": 80.0, "target-port": 8080.0, "strategy": "round-robin",
		"state": "running", "healthcheck-status": []any{}, "instance-pool": map[string]any{"id": string(b.pool)},
		"healthcheck": map[string]any{"mode": "http", "port": 80.0, "interval": 12.0, "timeout": 3.0, "retries": 4.0, "uri": "/up"},
	}
	if got := read(); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	// A check without uri has none any more; all else stays.
	b.settled(b.do("update-load-balancer-service", &cloud.UpdateServiceRequest{
		Healthcheck: &cloud.Healthcheck{Mode: cloud.CheckTCP, Port: 80, Interval: 12, Timeout: 3, Retries: 4}},
		"id", string(nlb), "service-id", string(id)), true)
	want["healthcheck"] = map[string]any{"mode": "tcp", "port": 80.0, "interval": 12.0, "timeout": 3.0, "retries": 4.0}
	if got := read(); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	commits := b.store.Commits()
	same := b.do("update-load-balancer-service", &cloud.UpdateServiceRequest{Name: "web", Port: 80,
		Healthcheck: &cloud.Healthcheck{Mode: cloud.CheckTCP, Port: 80, Interval: 12, Timeout: 3, Retries: 4}},
		"id", string(nlb), "service-id", string(id))
	if same.State != cloud.OperationSuccess || same.Reference.ID != nlb || b.store.Commits() != commits {
		t.Errorf("the same again: %+v, %d commits", same, b.store.Commits()-commits)
	}
	b.settled(b.do("update-load-balancer-service", &cloud.UpdateServiceRequest{ConnectionLimit: 200}, "id", string(nlb), "service-id", string(id)), true)
	want["connection-limit"] = 200.0
	if got := read(); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	b.settled(b.do("reset-load-balancer-service-field", nil, "id", string(nlb), "service-id", string(id), "field", "connection-limit"), true)
	delete(want, "connection-limit")
	b.settled(b.do("update-load-balancer-service", &cloud.UpdateServiceRequest{SourceRate: 5000}, "id", string(nlb), "service-id", string(id)), true)
	want["source-rate"] = 5000.0
	if got := read(); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	b.settled(b.do("reset-load-balancer-service-field", nil, "id", string(nlb), "service-id", string(id), "field", "source-rate"), true)
	delete(want, "source-rate")
	b.refused(cloud.Invalid, "quic", "update-load-balancer-service", &cloud.UpdateServiceRequest{QUIC: true}, "id", string(nlb), "service-id", string(id))
	b.settled(b.do("update-load-balancer-service", &cloud.UpdateServiceRequest{Description: "d"}, "id", string(nlb), "service-id", string(id)), true)
	b.settled(b.do("reset-load-balancer-service-field", nil, "id", string(nlb), "service-id", string(id), "field", "description"), true)
	if got := read(); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

func TestServiceRefusals(t *testing.T) {
	b := newBench(t)
	nlb, other := b.create("nlb"), b.create("other")
	id, _ := b.add(nlb, web(b.pool, "web", 80))
	add := func(kind cloud.Kind, text string, r *cloud.AddServiceRequest, to cloud.ID) {
		t.Helper()
		b.refused(kind, text, "add-service-to-load-balancer", r, "id", string(to))
	}
	add(cloud.Conflict, `service "web" already exists`, web(b.pool, "web", 81), nlb)
	add(cloud.Conflict, "port 80/tcp already exists", web(b.pool, "web2", 80), nlb)
	add(cloud.Invalid, "instance-pool.id", web(cloud.NewID(), "web2", 81), nlb)
	add(cloud.NotFound, "not found", web(b.pool, "web2", 81), cloud.NewID())
	udp := web(b.pool, "dns", 80)
	udp.Protocol = cloud.UDP
	b.add(nlb, udp)
	b.add(other, web(b.pool, "web", 80))
	for i := range cloud.MaxServices - 2 {
		b.add(nlb, web(b.pool, fmt.Sprint(i), uint16(1000+i)))
	}
	add(cloud.Conflict, "10 services", web(b.pool, "one too many", 2000), nlb)
	args := []string{"id", string(nlb), "service-id", string(id)}
	b.refused(cloud.Conflict, "1000/tcp", "update-load-balancer-service", &cloud.UpdateServiceRequest{Port: 1000}, args...)
	b.refused(cloud.Conflict, `"dns" already exists`, "update-load-balancer-service", &cloud.UpdateServiceRequest{Name: "dns"}, args...)
	b.refused(cloud.Invalid, "healthcheck.timeout", "update-load-balancer-service",
		&cloud.UpdateServiceRequest{Healthcheck: &cloud.Healthcheck{Interval: 5, Timeout: 6}}, args...)
	b.refused(cloud.NotFound, string(id), "get-load-balancer-service", nil, "id", string(other), "service-id", string(id))
	_, err := b.store.Write(t.Context(), func(tx *store.Tx) error { return tx.Delete("", store.Ref{Kind: store.KindPool, ID: b.pool}) })
	if err == nil {
		t.Error("a pool goes from under its services")
	}
}

func TestDeleteWithServices(t *testing.T) {
	b := newBench(t)
	b.runs(4)
	nlb := b.create("nlb")
	id, add := b.add(nlb, web(b.pool, "web", 80))
	b.add(nlb, web(b.pool, "tls", 443))
	op := b.do("delete-load-balancer", nil, "id", string(nlb))
	if got := b.intents(op.ID); got != "announcement 1;backend 8;check 8;service 2;slots 2;" {
		t.Errorf("intents %s", got)
	}
	if o := b.stored(add); o.State != cloud.OperationFailure || o.Reason != cloud.ReasonInterrupted {
		t.Errorf("what was under way: %+v", o)
	}
	if again := b.do("delete-load-balancer-service", nil, "id", string(nlb), "service-id", string(id)); again.ID != op.ID {
		t.Errorf("delete of a service that goes along: %+v", again)
	}
	b.refused(cloud.Conflict, "being deleted", "add-service-to-load-balancer", web(b.pool, "late", 8), "id", string(nlb))
	l := b.nlb(nlb)
	if l.State != cloud.BalancerDeleting || l.Services[0].State != cloud.ServiceDeleting {
		t.Errorf("deleting: %+v", l)
	}
	b.goes("", b.members[0]) // pools go on changing
	b.settled(add, true)     // late
	b.settled(op, true)
	b.refused(cloud.NotFound, string(nlb), "get-load-balancer", nil, "id", string(nlb))
	if left := b.left(); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// A deletion that was given up is asked for again, or found after a restart.
func TestDeletionGivenUp(t *testing.T) {
	for name, way := range map[string]func(b *bench, nlb cloud.ID){
		"refused, asked for again": func(b *bench, nlb cloud.ID) {
			b.settled(b.do("delete-load-balancer", nil, "id", string(nlb)), false)
			if b.nlb(nlb).State != cloud.BalancerDeleting {
				t.Errorf("refused: %+v", b.nlb(nlb))
			}
			b.settled(b.do("delete-load-balancer", nil, "id", string(nlb)), true)
		},
		"timed out, found after a restart": func(b *bench, nlb cloud.ID) {
			op := b.do("delete-load-balancer", nil, "id", string(nlb))
			b.write(func(tx *store.Tx) error {
				return b.gate.Finish(tx, op.ID, cloud.OperationTimeout, cloud.ReasonUnavailable, "hv1")
			})
			b.reopen()
		},
		"timed out, acknowledged late": func(b *bench, nlb cloud.ID) {
			op := b.do("delete-load-balancer", nil, "id", string(nlb))
			b.write(func(tx *store.Tx) error {
				return b.gate.Finish(tx, op.ID, cloud.OperationTimeout, cloud.ReasonUnavailable, "hv1")
			})
			b.settled(op, true)
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.runs(2)
			nlb := b.create("nlb")
			b.add(nlb, web(b.pool, "web", 80))
			way(b, nlb)
			b.refused(cloud.NotFound, string(nlb), "get-load-balancer", nil, "id", string(nlb))
			if left := b.left(); len(left) != 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
}
