// SPDX-License-Identifier: Apache-2.0

package elasticip

import (
	"errors"
	"slices"

	"cairn/cloud"
	"cairn/cloud/wire"
	"cairn/controlplane/replica"
	"cairn/controlplane/store"
)

// hosts is what is known of the zone's hypervisors.
type hosts struct {
	joined      int
	unreachable map[uint32]bool
	numbers     map[string]uint32 // by name
}

func readHosts(tx *store.Tx) (hosts, error) {
	h := hosts{unreachable: map[uint32]bool{}, numbers: map[string]uint32{}}
	docs, err := store.List[store.HypervisorDoc](tx, "")
	for _, d := range docs {
		h.numbers[d.Body.Name] = d.Body.Number
		if d.Body.Joined {
			h.joined++
		}
		if d.Body.Joined && d.Body.Unreachable {
			h.unreachable[d.Body.Number] = true
		}
	}
	return h, err
}

// reachable: when more than half of the hypervisors look unreachable, the one
// that is cut off is whoever looks. Then nothing moves.
func (h hosts) reachable(n uint32) bool { return 2*len(h.unreachable) > h.joined || !h.unreachable[n] }

// runs says that an instance runs, or is about to.
func runs(d store.InstanceDoc) bool {
	return d.Wanted == store.WantedRunning && (d.State == cloud.InstanceRunning || d.State == cloud.InstanceStarting)
}

// revise stores an elastic IP whose body was before, for op, once it has decided
// where it comes to. What hosts lose by it op gets leave for; if there is no op,
// the move is made an operation of its own, since nothing is removed without leave.
func (e *Elastics) revise(tx *store.Tx, op cloud.ID, before store.ElasticIPDoc, d Doc) error {
	h, err := readHosts(tx)
	if err != nil {
		return err
	}
	facts := map[uint32]fact{}
	d.Body.Attached = slices.Clone(d.Body.Attached)
	for n := range d.Body.Attached {
		p := &d.Body.Attached[n]
		i, err := store.Get[store.InstanceDoc](tx, "", p.Instance)
		if errors.Is(err, store.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		if p.Port != i.Body.Port || p.Host != i.Body.HostNumber {
			p.Port, p.Host, p.Verdict = i.Body.Port, i.Body.HostNumber, store.VerdictInitial
			p.Generation++
		}
		facts[p.Port] = fact{runs: replica.Public(i.Body) && runs(i.Body), reachable: h.reachable(p.Host)}
	}
	d.Body.Attached = judge(d.Body.Healthcheck != nil, d.Body.Attached, facts, tx.Now().UTC())
	intents := losses(before, d.Body)
	if len(intents) > 0 && op == "" {
		if op, err = e.own(tx, d); err != nil {
			return err
		}
	}
	for _, i := range intents {
		i.Operation = op
		if err := tx.AddIntent(i); err != nil {
			return err
		}
	}
	return store.Put(tx, op, d)
}

// own makes the move of an elastic IP an operation, which has succeeded: nobody
// asked for it, and nobody waits.
func (e *Elastics) own(tx *store.Tx, d Doc) (cloud.ID, error) {
	now := tx.Now()
	op := store.Operation{
		ID: cloud.NewID(), Org: d.Org, Command: "move-elastic-ip", Subject: d.Ref(),
		State: cloud.OperationSuccess, Created: now, Deadline: now, Finished: now, Detail: "null",
	}
	return op.ID, tx.AddOperation(op)
}

// losses counts what hosts lose when an elastic IP changes.
func losses(before, after store.ElasticIPDoc) []store.Intent {
	announces := func(d store.ElasticIPDoc) map[uint32]bool {
		at := map[uint32]bool{}
		for _, p := range d.Attached {
			if p.Active {
				at[p.Host] = true
			}
		}
		return at
	}
	var intents []store.Intent
	now := announces(after)
	for host := range announces(before) {
		if !now[host] {
			intents = append(intents, store.Intent{Class: wire.KindAnnouncement.String(), Count: 1})
			break // of each host one at most
		}
	}
	gone := 0
	for _, p := range before.Attached {
		if now := after.Place(p.Instance); before.Healthcheck != nil && (now == nil || now.Port != p.Port || now.Host != p.Host) {
			gone++
		}
	}
	if gone > 0 {
		intents = append(intents, store.Intent{Class: wire.KindCheck.String(), Count: gone})
	}
	return intents
}

// HostsChanged brings all elastic IPs in step with hypervisors that were found
// reachable or not, in the transaction that found it.
func (e *Elastics) HostsChanged(tx *store.Tx, found []store.Doc[store.HypervisorDoc]) error {
	if len(found) == 0 {
		return nil
	}
	all, err := store.List[store.ElasticIPDoc](tx, "")
	if err != nil {
		return err
	}
	for _, d := range all {
		if d.Body.Healthcheck == nil || len(d.Body.Attached) < 2 {
			continue
		}
		if err := e.revise(tx, "", d.Body, d); err != nil {
			return err
		}
	}
	return nil
}
