// SPDX-License-Identifier: Apache-2.0

package store

import (
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
func (d *InstanceDoc) Attachment(network cloud.ID) *Attachment {
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
	}
}

// HasElastic says that an elastic IP is attached to the instance.
func (d *InstanceDoc) HasElastic(id cloud.ID) bool {
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
func (d *ElasticIPDoc) Place(instance cloud.ID) *ElasticPlace {
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
