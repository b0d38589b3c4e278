// SPDX-License-Identifier: Apache-2.0

// Package instance keeps instances: it checks what is asked for, decides where
// it runs, gives it its address and numbers, and follows what the hosts report
// of it. It owns the machine of an instance and its allocations. It reaches no
// agent: hosts follow the rows by the change log, and Report brings what they
// say.
//
// Start at Handlers, then machine.go; create.go, change.go and report.go are
// what moves the machine.
package instance

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"

	"cairn/cloud"
	"cairn/controlplane/api"
	"cairn/controlplane/fsm"
	"cairn/controlplane/operation"
	"cairn/controlplane/store"
)

const noun = string(store.KindInstance)

// Doc is an instance as it is stored.
type Doc = store.Doc[store.InstanceDoc]

// Manager keeps instances alive as members of a pool, and hears of them in the
// transaction that moves them.
type Manager interface {
	// Leaves is told that a customer deletes a member, which has just been marked
	// destroying.
	Leaves(tx *store.Tx, op cloud.ID, member Doc) error
	// Moved is told the new state of members; of one that is destroyed nothing is
	// stored any more. why says in words what is wrong with them, if anything is.
	Moved(tx *store.Tx, op cloud.ID, why string, members ...Doc) error
	// Busy names the operation of a pool that moves the member at present, "" if
	// there is none.
	Busy(tx *store.Tx, member Doc) (cloud.ID, error)
}

// Elastics moves the elastic IPs of instances.
type Elastics interface {
	// Moved is told that an instance was stored for op, which may be empty.
	Moved(tx *store.Tx, op cloud.ID, i Doc) error
	// LeaveAll detaches what is attached to an instance that goes.
	LeaveAll(tx *store.Tx, op cloud.ID, i *Doc) error
	// Join attaches an elastic IP to an instance, and stores both.
	Join(tx *store.Tx, op cloud.ID, e store.Doc[store.ElasticIPDoc], i *Doc) error
}

// Instances keeps instances in a store. What is exported is set before it is
// used.
type Instances struct {
	Manager  Manager
	Elastics Elastics       // may be nil: then there are no elastic IPs
	Root     *store.RootKey // seals passwords; may be nil: then there are none

	store *store.Store
	gate  *operation.Gate
}

// New keeps instances, and registers them with the gate.
func New(s *store.Store, g *operation.Gate) *Instances {
	i := &Instances{store: s, gate: g}
	g.Register(operation.Noun{Kind: store.KindInstance, ByStatus: true, Settle: i.settle})
	return i
}

// Handlers performs the operations on instances.
func (i *Instances) Handlers() api.Handlers {
	return api.Handlers{
		"list-instances":  i.list,
		"create-instance": i.create,
		"get-instance":    i.get,
		"delete-instance": i.delete,
		"start-instance":  i.start,
		"stop-instance":   i.stop,
		"reboot-instance": i.reboot,

		"update-instance":            i.update,
		"reset-instance-field":       i.reset,
		"scale-instance":             i.scale,
		"add-instance-protection":    i.protect(true),
		"remove-instance-protection": i.protect(false),
		"reveal-instance-password":   i.revealPassword,
		"reset-instance-password":    i.resetPassword,
	}
}

// Find reads an instance. A refusal says that there is none.
func Find(tx *store.Tx, org, id cloud.ID) (Doc, error) {
	d, err := store.Get[store.InstanceDoc](tx, org, id)
	if errors.Is(err, store.ErrNotFound) {
		err = cloud.Missing(noun, id)
	}
	return d, err
}

func state(d Doc) fsm.State { return fsm.State(d.Body.State) }

// shown is an instance as its owner sees it.
func shown(d Doc) cloud.Instance {
	answer := d.Body.Instance
	if state(d) == rebooting {
		answer.State = cloud.InstanceStopping
	}
	return answer
}

func (i *Instances) get(ctx context.Context, c api.Call) (any, error) {
	var answer cloud.Instance
	err := i.store.Read(ctx, func(tx *store.Tx) error {
		d, err := Find(tx, c.Org, c.ID("id"))
		answer = shown(d)
		return err
	})
	return answer, err
}

func (i *Instances) list(ctx context.Context, c api.Call) (any, error) {
	wanted, err := newFilter(c)
	if err != nil {
		return nil, err
	}
	answer := cloud.InstanceList{Instances: []cloud.InstanceRow{}}
	err = i.store.Read(ctx, func(tx *store.Tx) error {
		docs, err := store.List[store.InstanceDoc](tx, c.Org)
		for _, d := range docs {
			if one := shown(d); wanted.fits(&one) {
				answer.Instances = append(answer.Instances, one.Row())
			}
		}
		return err
	})
	return answer, err
}

// filter is what a list is narrowed to; what is zero does not narrow.
type filter struct {
	manager     cloud.ID
	managerType string
	address     netip.Addr
	labels      cloud.Labels
}

func newFilter(c api.Call) (filter, error) {
	f := filter{
		manager: cloud.ID(strings.ToLower(c.Query.Get("manager-id"))), managerType: c.Query.Get("manager-type"),
		labels: cloud.Labels{},
	}
	if text := c.Query.Get("ip-address"); text != "" {
		var err error
		if f.address, err = netip.ParseAddr(text); err != nil {
			return f, cloud.Invalidf("ip-address", "expected an address")
		}
	}
	if text := c.Query.Get("labels"); text != "" {
		for pair := range strings.SplitSeq(text, ",") {
			key, value, ok := strings.Cut(pair, "=")
			if !ok {
				return f, cloud.Invalidf("labels", "expected key=value, joined by commas")
			}
			f.labels[key] = value
		}
	}
	return f, nil
}

func (f filter) fits(i *cloud.Instance) bool {
	m := i.Manager
	if m == nil {
		m = &cloud.Manager{}
	}
	for key, value := range f.labels {
		if have, ok := i.Labels[key]; !ok || have != value {
			return false
		}
	}
	return (f.manager == "" || f.manager == m.ID) && (f.managerType == "" || f.managerType == m.Type) &&
		(!f.address.IsValid() || f.address == i.PublicIP || f.address == i.IPv6Address)
}

// commands that a pending operation on a starting or stopping instance may have.
var bringing = map[fsm.State][]string{
	starting: {"create-instance", "start-instance", "reboot-instance"}, stopping: {"stop-instance"},
	rebooting: {"reboot-instance"}, destroying: {"delete-instance"},
}

// UnderWay finds the operation that does to an instance what is asked for once
// more: one of its own, or that of its pool; "" if there is none.
func (i *Instances) UnderWay(tx *store.Tx, d Doc) (cloud.ID, error) {
	pending, err := tx.Pending(d.Ref())
	if err != nil {
		return "", err
	}
	for _, op := range pending {
		if slices.Contains(bringing[state(d)], op.Command) {
			return op.ID, nil
		}
	}
	if d.Body.Pool == "" || i.Manager == nil {
		return "", nil
	}
	return i.Manager.Busy(tx, d)
}
