// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"cairn/cloud"
)

// Attachment is an instance's interface in a private network. Port is its
// number, Address the one it has by DHCP: the zero address in a network that is
// not managed.
type Attachment struct {
	Network cloud.ID       `json:"network"`
	Port    uint32         `json:"port"`
	MAC     string         `json:"mac"`
	Address netip.Addr     `json:"address,omitzero"`
	Static  bool           `json:"static,omitempty"` // the customer chose the address
	Allowed []netip.Prefix `json:"allowed,omitempty"`
}

// AttachmentOwner is who holds the number of an interface's port.
func AttachmentOwner(instance, network cloud.ID) string {
	return string(instance) + "/" + string(network)
}

// Attachment of the instance to a network, nil if it is not in it.
func (d InstanceDoc) Attachment(network cloud.ID) *Attachment {
	for i := range d.Networks {
		if d.Networks[i].Network == network {
			return &d.Networks[i]
		}
	}
	return nil
}

// ShowNetworks keeps what the customer sees of the attachments in step with
// them.
func (d *InstanceDoc) ShowNetworks() {
	d.PrivateNetworks = make([]cloud.InstanceNetwork, len(d.Networks))
	for i, a := range d.Networks {
		d.PrivateNetworks[i] = cloud.InstanceNetwork{ID: a.Network, MACAddress: a.MAC}
		for _, p := range a.Allowed {
			d.PrivateNetworks[i].AllowedAddresses = append(d.PrivateNetworks[i].AllowedAddresses, p.String())
		}
	}
}

// HasElastic says that an elastic IP is attached to the instance.
func (d InstanceDoc) HasElastic(id cloud.ID) bool {
	return slices.Contains(d.ElasticIPs, cloud.Ref{ID: id})
}

// PrivateNetworkDoc is a private network; its number is its VNI. Who is in it is
// said by the instances. Status is the state of its machine, which the contract
// does not show.
type PrivateNetworkDoc struct {
	cloud.PrivateNetwork
	Status string `json:"status"`
}

// ElasticIPDoc is an elastic IP and the instances that it is attached to. It
// comes to those that are Active.
type ElasticIPDoc struct {
	cloud.ElasticIP
	Number     uint32         `json:"number"`
	Prefix     netip.Prefix   `json:"prefix"`
	Attached   []ElasticPlace `json:"attached"` // in the order in which they were attached
	Status     string         `json:"status"`
	ReverseDNS string         `json:"reverse-dns,omitempty"` // without the dot at its end
}

// ElasticPlace is an instance that an elastic IP is attached to.
type ElasticPlace struct {
	Instance   cloud.ID  `json:"instance"`
	Port       uint32    `json:"port"`
	Host       uint32    `json:"host"`
	Generation uint64    `json:"generation"` // of what is checked; a verdict on an older one is void
	Verdict    string    `json:"verdict"`
	Active     bool      `json:"active,omitempty"`
	Since      time.Time `json:"since,omitzero"` // active, or not
}

// Place of an instance, nil if the elastic IP is not attached to it.
func (d ElasticIPDoc) Place(instance cloud.ID) *ElasticPlace {
	for i := range d.Attached {
		if d.Attached[i].Instance == instance {
			return &d.Attached[i]
		}
	}
	return nil
}

// Kind and Index of each document.

func (PrivateNetworkDoc) Kind() Kind { return KindPrivateNetwork }
func (d PrivateNetworkDoc) Index() Index {
	return Index{Name: d.Name, State: d.Status}
}

func (ElasticIPDoc) Kind() Kind { return KindElasticIP }

// Index names an elastic IP by its address, which is all the name it has.
func (d ElasticIPDoc) Index() Index { return Index{Name: d.IP, State: d.Status} }

// leaseKind is the kind of the addresses of one network: they are unique in it,
// and never rest, since who gets one next is of the same network.
func leaseKind(network cloud.ID) string { return "lease/" + string(network) }

// Lease gives an instance an address of a network; ErrExists if another one has
// it. What it had there before is free.
func (tx *Tx) Lease(network, instance cloud.ID, address netip.Addr) error {
	var owner cloud.ID
	err := tx.queryRow([]any{&owner}, `SELECT owner FROM address WHERE kind = $1 AND address = $2`,
		leaseKind(network), addressText(address))
	switch {
	case err == nil && owner == instance:
		return nil
	case err == nil:
		return ErrExists
	case !errors.Is(err, ErrNotFound):
		return fmt.Errorf("lease of %s: %w", address, err)
	}
	if err := tx.FreeLease(network, instance); err != nil {
		return err
	}
	_, err = tx.exec(`INSERT INTO address (kind, address, prefix, owner, freed_at) VALUES ($1, $2, '', $3, 0)`,
		leaseKind(network), addressText(address), instance)
	if err != nil {
		return fmt.Errorf("lease of %s: %w", address, err)
	}
	return nil
}

// FreeLease takes the address of an instance in a network away, if it has one.
func (tx *Tx) FreeLease(network, instance cloud.ID) error {
	_, err := tx.exec(`DELETE FROM address WHERE kind = $1 AND owner = $2`, leaseKind(network), instance)
	if err != nil {
		return fmt.Errorf("free the lease of %s: %w", instance, err)
	}
	return nil
}

// LeaseOf is an address of a network and the instance that has it.
type LeaseOf struct {
	Address  netip.Addr
	Instance cloud.ID
}

// Leases lists the addresses of a network, ascending.
func (tx *Tx) Leases(network cloud.ID) ([]LeaseOf, error) {
	return query(tx, func(scan func(...any) error) (l LeaseOf, err error) {
		var text string
		if err := scan(&text, &l.Instance); err != nil {
			return l, err
		}
		l.Address, err = addressOf(text)
		return l, err
	}, `SELECT address, owner FROM address WHERE kind = $1 ORDER BY address`, leaseKind(network))
}

// LeaseNext gives an instance an address from a range, but never but: the one
// after the highest that is taken or, when the range has been gone through once,
// the lowest that is free. An *ExhaustedError says that none is.
func (tx *Tx) LeaseNext(network, instance cloud.ID, start, end, but netip.Addr) (netip.Addr, error) {
	var highest *string
	err := tx.queryRow([]any{&highest}, `SELECT MAX(address) FROM address WHERE kind = $1 AND address >= $2 AND address <= $3`,
		leaseKind(network), addressText(start), addressText(end))
	if err != nil {
		return netip.Addr{}, fmt.Errorf("lease in %s-%s: %w", start, end, err)
	}
	next := start
	if highest != nil {
		if next, err = addressOf(*highest); err != nil {
			return netip.Addr{}, err
		}
		next = next.Next()
	}
	if next == but {
		next = next.Next()
	}
	if end.Less(next) {
		if next, err = tx.leaseGap(network, start, end, but); err != nil {
			return netip.Addr{}, err
		}
	}
	return next, tx.Lease(network, instance, next)
}

func (tx *Tx) leaseGap(network cloud.ID, start, end, but netip.Addr) (netip.Addr, error) {
	taken, err := tx.Leases(network)
	if err != nil {
		return netip.Addr{}, err
	}
	next := start
	for _, l := range taken {
		if next == but {
			next = next.Next()
		}
		if next == l.Address {
			next = next.Next()
		}
	}
	if next == but {
		next = next.Next()
	}
	if end.Less(next) {
		return netip.Addr{}, &ExhaustedError{Kind: leaseKind(network)}
	}
	return next, nil
}
