// SPDX-License-Identifier: Apache-2.0

package replica

import (
	"errors"
	"log/slog"

	"github.com/cilium/statedb"

	"cairn/controlplane/store"
)

// kinds of resources that are held here.
var kinds = []store.Kind{
	store.KindHypervisor, store.KindSecurityGroup, store.KindInstance, store.KindLoadBalancer, store.KindService,
	store.KindPrivateNetwork, store.KindElasticIP, store.KindPublicGroup, store.KindSMTP,
}

// Rows are what a commit wrote and deleted.
type Rows struct {
	Revision  store.Revision
	Whole     bool // what is not here is gone
	Hosts     []*Host
	Groups    []*Group
	Instances []*Instance
	Balancers []*Balancer
	Services  []*Service
	Networks  []*Network
	Elastics  []*Elastic
	Publics   []*PublicGroup
	SMTP      []*SMTPPermit
	Deleted   []store.Ref
	Bad       []store.Ref // cannot be decoded: what is known of them stays as it was
}

// add decodes a row. One that cannot be decoded is set aside: it must not stop
// the others.
func (rows *Rows) add(tx *store.Tx, row store.Row, log *slog.Logger) error {
	var err error
	switch row.Kind {
	case store.KindHypervisor:
		err = decode(&rows.Hosts, row)
	case store.KindSecurityGroup:
		err = decode(&rows.Groups, row)
	case store.KindInstance:
		err = decode(&rows.Instances, row)
	case store.KindLoadBalancer:
		err = decode(&rows.Balancers, row)
	case store.KindPrivateNetwork:
		err = decode(&rows.Networks, row)
	case store.KindElasticIP:
		err = decode(&rows.Elastics, row)
	case store.KindPublicGroup:
		err = decode(&rows.Publics, row)
	case store.KindSMTP:
		err = decode(&rows.SMTP, row)
	case store.KindService:
		var s Service
		if s.Doc, err = store.Decode[store.ServiceDoc](row); err != nil {
			break
		}
		slots, err := tx.Slots(s.ID)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
		s.Slots = slots.Cells
		rows.Services = append(rows.Services, &s)
	}
	if err != nil {
		log.Error("row set aside", "error", err)
		rows.Bad = append(rows.Bad, store.Ref{Kind: row.Kind, ID: row.ID})
	}
	return nil
}

func decode[T store.Document](to *[]*store.Doc[T], row store.Row) error {
	d, err := store.Decode[T](row)
	if err == nil {
		*to = append(*to, &d)
	}
	return err
}

// Commit takes rows in: whoever takes a snapshot sees all of them or none.
func (r *Replica) Commit(rows Rows) {
	txn := r.db.WriteTxn(r.all...)
	defer txn.Abort()
	if rows.Whole {
		r.clear(txn)
	}
	// The errors of Insert and Delete are those of a closed transaction or an
	// unlocked table, which cannot be here.
	for _, h := range rows.Hosts {
		_, _, _ = r.hosts.Insert(txn, h)
	}
	for _, g := range rows.Groups {
		_, _, _ = r.groups.Insert(txn, g)
	}
	for _, i := range rows.Instances {
		old, had, _ := r.instances.Insert(txn, i)
		if !had {
			old = nil
		}
		r.recount(txn, old, i)
	}
	for _, b := range rows.Balancers {
		_, _, _ = r.balancers.Insert(txn, b)
	}
	for _, s := range rows.Services {
		_, _, _ = r.services.Insert(txn, s)
	}
	for _, n := range rows.Networks {
		_, _, _ = r.networks.Insert(txn, n)
	}
	for _, e := range rows.Elastics {
		_, _, _ = r.elastics.Insert(txn, e)
	}
	for _, p := range rows.Publics {
		_, _, _ = r.publics.Insert(txn, p)
	}
	for _, p := range rows.SMTP {
		_, _, _ = r.smtp.Insert(txn, p)
	}
	for _, ref := range rows.Deleted {
		r.remove(txn, ref)
	}
	_, _, _ = r.position.Insert(txn, position{rows.Revision})
	txn.Commit()
}

func (r *Replica) clear(txn statedb.WriteTxn) {
	_ = r.hosts.DeleteAll(txn)
	_ = r.groups.DeleteAll(txn)
	_ = r.instances.DeleteAll(txn)
	_ = r.balancers.DeleteAll(txn)
	_ = r.services.DeleteAll(txn)
	_ = r.networks.DeleteAll(txn)
	_ = r.elastics.DeleteAll(txn)
	_ = r.publics.DeleteAll(txn)
	_ = r.smtp.DeleteAll(txn)
	_ = r.classes.DeleteAll(txn)
}

func (r *Replica) remove(txn statedb.WriteTxn, ref store.Ref) {
	switch ref.Kind {
	case store.KindHypervisor:
		_, _, _ = r.hosts.Delete(txn, &Host{ID: ref.ID})
	case store.KindSecurityGroup:
		_, _, _ = r.groups.Delete(txn, &Group{ID: ref.ID})
	case store.KindInstance:
		if old, had, _ := r.instances.Delete(txn, &Instance{ID: ref.ID}); had {
			r.recount(txn, old, nil)
		}
	case store.KindPrivateNetwork:
		_, _, _ = r.networks.Delete(txn, &Network{ID: ref.ID})
	case store.KindElasticIP:
		_, _, _ = r.elastics.Delete(txn, &Elastic{ID: ref.ID})
	case store.KindPublicGroup:
		_, _, _ = r.publics.Delete(txn, &PublicGroup{ID: ref.ID})
	case store.KindSMTP:
		_, _, _ = r.smtp.Delete(txn, &SMTPPermit{ID: ref.ID})
	case store.KindLoadBalancer:
		_, _, _ = r.balancers.Delete(txn, &Balancer{ID: ref.ID})
	case store.KindService:
		_, _, _ = r.services.Delete(txn, &Service{Doc: store.Doc[store.ServiceDoc]{ID: ref.ID}})
	}
}
