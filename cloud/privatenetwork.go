// SPDX-License-Identifier: Apache-2.0

package cloud

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"net/netip"
	"strings"
)

// MaxDomainSearch is the most octets that the domains of a search list take in a
// DHCP message.
const MaxDomainSearch = 255

// The shortest and the longest prefix of a managed network: room for its server
// and one instance at least.
const (
	minNetworkBits = 8
	maxNetworkBits = 30
)

// PrivateNetwork is an L2 segment between instances. It is managed when it has a
// range: then its instances get their addresses by DHCP. Labels and options are
// absent when empty.
type PrivateNetwork struct {
	ID          ID              `json:"id" table:"true"`
	Name        string          `json:"name" table:"true"`
	Description string          `json:"description,omitempty"`
	Netmask     netip.Addr      `json:"netmask,omitzero" table:"true"`
	StartIP     netip.Addr      `json:"start-ip,omitzero" table:"true"`
	EndIP       netip.Addr      `json:"end-ip,omitzero" table:"true"`
	Options     *NetworkOptions `json:"options,omitempty"`
	Labels      Labels          `json:"labels,omitempty"`
	VNI         uint32          `json:"vni" doc:"number of the segment" table:"true"`
	Leases      []NetworkLease  `json:"leases,omitempty"`

	// Beyond the contract.
	Firewall      bool   `json:"firewall,omitempty" doc:"security groups hold in the network too"`
	Snooping      bool   `json:"snooping,omitempty" doc:"multicast goes only to who asked for it"`
	BroadcastRate uint32 `json:"broadcast-rate,omitempty" doc:"broadcasts a second and instance"`
}

// NetworkOptions are what DHCP hands out beside the address.
type NetworkOptions struct {
	Routers      []netip.Addr `json:"routers,omitempty" doc:"gateways"`
	DNSServers   []netip.Addr `json:"dns-servers,omitempty" doc:"name servers"`
	NTPServers   []netip.Addr `json:"ntp-servers,omitempty" doc:"time servers"`
	DomainSearch []string     `json:"domain-search,omitempty" doc:"domains to look names up in, 255 octets at most"`
}

// Empty says that there is nothing to hand out.
func (o *NetworkOptions) Empty() bool {
	return o == nil || len(o.Routers)+len(o.DNSServers)+len(o.NTPServers)+len(o.DomainSearch) == 0
}

// NetworkLease is an address that an instance has in a network.
type NetworkLease struct {
	IP         netip.Addr `json:"ip"`
	InstanceID ID         `json:"instance-id"`
}

// PrivateNetworkList answers list-private-networks.
type PrivateNetworkList struct {
	PrivateNetworks []PrivateNetwork `json:"private-networks"`
}

// Managed says that the network hands out addresses.
func (n *PrivateNetwork) Managed() bool { return n.Netmask.IsValid() }

// Prefix of a managed network.
func (n *PrivateNetwork) Prefix() netip.Prefix {
	if !n.Netmask.Is4() || !n.StartIP.Is4() {
		return netip.Prefix{}
	}
	return netip.PrefixFrom(n.StartIP, bits.OnesCount32(number4(n.Netmask))).Masked()
}

// Server is the network's own address, from which DHCP answers: the last one
// before the broadcast address.
func (n *PrivateNetwork) Server() netip.Addr {
	p := n.Prefix()
	if !p.IsValid() {
		return netip.Addr{}
	}
	return address4(number4(p.Addr()) | ^number4(n.Netmask)).Prev()
}

// Usable says that an instance may have the address: it is in the network, and
// neither the network's, nor for broadcast, nor the server's.
func (n *PrivateNetwork) Usable(a netip.Addr) bool {
	p := n.Prefix()
	return p.IsValid() && p.Contains(a) && a != p.Addr() && a.Less(n.Server())
}

func number4(a netip.Addr) uint32 { b := a.As4(); return binary.BigEndian.Uint32(b[:]) }

func address4(n uint32) netip.Addr {
	return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, n)))
}

// Validate checks the network as a whole, after a change.
func (n *PrivateNetwork) Validate() []FieldError {
	return append(n.validRange(), Under("options", n.Options.Validate())...)
}

func (n *PrivateNetwork) validRange() []FieldError {
	var faults []FieldError
	given := 0
	for _, one := range []struct {
		name string
		addr netip.Addr
	}{{"netmask", n.Netmask}, {"start-ip", n.StartIP}, {"end-ip", n.EndIP}} {
		switch {
		case !one.addr.IsValid():
			faults = append(faults, Fault(one.name, "required: expected netmask, start-ip and end-ip together"))
			continue
		case !one.addr.Is4():
			return []FieldError{Fault(one.name, "expected an IPv4 address")}
		}
		given++
	}
	switch given {
	case 0:
		return nil
	case 3:
	default:
		return faults
	}
	mask := number4(n.Netmask)
	if length := bits.OnesCount32(mask); bits.LeadingZeros32(^mask) != length || length < minNetworkBits || length > maxNetworkBits {
		return []FieldError{Fault("netmask", "expected a netmask from /%d to /%d", minNetworkBits, maxNetworkBits)}
	}
	if n.EndIP.Less(n.StartIP) {
		faults = append(faults, Fault("end-ip", "expected an address >= start-ip"))
	}
	if !n.Prefix().Contains(n.EndIP) {
		faults = append(faults, Fault("end-ip", "expected an address in %s, the network of start-ip", n.Prefix()))
	}
	return faults
}

// Validate checks what no single field can say.
func (o *NetworkOptions) Validate() []FieldError {
	if o == nil {
		return nil
	}
	var faults []FieldError
	for _, list := range []struct {
		name  string
		addrs []netip.Addr
	}{{"routers", o.Routers}, {"dns-servers", o.DNSServers}, {"ntp-servers", o.NTPServers}} {
		for i, a := range list.addrs {
			if !a.Is4() || a.IsUnspecified() {
				faults = append(faults, Fault(fmt.Sprintf("%s[%d]", list.name, i), "expected an IPv4 address"))
			}
		}
	}
	octets := 0
	for i, domain := range o.DomainSearch {
		if !ValidDomain(domain) {
			faults = append(faults, Fault(fmt.Sprintf("domain-search[%d]", i), "expected a domain name"))
		}
		octets += len(strings.TrimSuffix(domain, ".")) + 2 // a length octet for each label, and the end
	}
	if octets > MaxDomainSearch {
		faults = append(faults, Fault("domain-search", "expected at most %d octets, these take %d", MaxDomainSearch, octets))
	}
	return faults
}

// ValidDomain says that s is a domain name in the form of RFC 1035, with or
// without the dot at its end; labels may start with an underscore.
func ValidDomain(s string) bool {
	s = strings.TrimSuffix(s, ".")
	if len(s) == 0 || len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if len(label) == 0 || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for i := range len(label) {
			c := label[i]
			if c != '-' && c != '_' && (c < '0' || c > '9') && (c|0x20 < 'a' || c|0x20 > 'z') {
				return false
			}
		}
	}
	return true
}

// CreatePrivateNetworkRequest asks for a network; with netmask, start-ip and
// end-ip for a managed one.
type CreatePrivateNetworkRequest struct {
	Name          string          `json:"name" minLength:"1" maxLength:"255" doc:"name of the network"`
	Description   string          `json:"description,omitempty" maxLength:"255" doc:"description of the network"`
	Netmask       netip.Addr      `json:"netmask,omitzero" doc:"mask of the range's network"`
	StartIP       netip.Addr      `json:"start-ip,omitzero" doc:"first address that is handed out"`
	EndIP         netip.Addr      `json:"end-ip,omitzero" doc:"last address that is handed out"`
	Options       *NetworkOptions `json:"options,omitempty" doc:"what DHCP hands out beside the address"`
	Labels        Labels          `json:"labels,omitempty" doc:"labels"`
	Firewall      bool            `json:"firewall,omitempty" doc:"security groups hold in the network too"`
	Snooping      bool            `json:"snooping,omitempty" doc:"multicast goes only to who asked for it"`
	BroadcastRate uint32          `json:"broadcast-rate,omitempty" maximum:"1000000" doc:"broadcasts a second and instance (a default when absent)"`
}

// Network returns the network that the request asks for.
func (r *CreatePrivateNetworkRequest) Network(id ID) *PrivateNetwork {
	return &PrivateNetwork{
		ID: id, Name: r.Name, Description: r.Description, Netmask: r.Netmask, StartIP: r.StartIP, EndIP: r.EndIP,
		Options: r.Options, Labels: r.Labels, Firewall: r.Firewall, Snooping: r.Snooping, BroadcastRate: r.BroadcastRate,
	}
}

// Validate checks what no single field can say.
func (r *CreatePrivateNetworkRequest) Validate() []FieldError { return r.Network("").Validate() }

// UpdatePrivateNetworkRequest changes what it names.
type UpdatePrivateNetworkRequest struct {
	Name          string          `json:"name,omitempty" minLength:"1" maxLength:"255" doc:"name of the network"`
	Description   string          `json:"description,omitempty" maxLength:"255" clear:"true" doc:"description of the network"`
	Netmask       netip.Addr      `json:"netmask,omitzero" doc:"mask of the range's network"`
	StartIP       netip.Addr      `json:"start-ip,omitzero" doc:"first address that is handed out"`
	EndIP         netip.Addr      `json:"end-ip,omitzero" doc:"last address that is handed out"`
	Options       *NetworkOptions `json:"options,omitempty" clear:"true" doc:"what DHCP hands out beside the address; replaced whole"`
	Labels        Labels          `json:"labels,omitempty" clear:"true" doc:"labels"`
	Firewall      bool            `json:"firewall,omitempty" doc:"security groups hold in the network too"`
	Snooping      bool            `json:"snooping,omitempty" doc:"multicast goes only to who asked for it"`
	BroadcastRate uint32          `json:"broadcast-rate,omitempty" maximum:"1000000" clear:"true" doc:"broadcasts a second and instance"`
}

// Validate checks what no single field can say; the network as a whole is
// checked when the change is laid over it.
func (r *UpdatePrivateNetworkRequest) Validate() []FieldError {
	return Under("options", r.Options.Validate())
}

// AttachToNetworkRequest puts an instance into a network.
type AttachToNetworkRequest struct {
	Instance         Ref        `json:"instance" ref:"instance" doc:"the instance"`
	IP               netip.Addr `json:"ip,omitzero" doc:"its address in a managed network (one of the range when absent)"`
	AllowedAddresses []string   `json:"allowed-addresses,omitempty" maxItems:"64" doc:"further addresses or prefixes it may use"`
}

// Allowed are the further addresses of the request.
func (r *AttachToNetworkRequest) Allowed() ([]netip.Prefix, []FieldError) {
	var allowed []netip.Prefix
	var faults []FieldError
	for i, text := range r.AllowedAddresses {
		p, err := netip.ParsePrefix(text)
		if a, e := netip.ParseAddr(text); e == nil && a.Zone() == "" {
			p, err = netip.PrefixFrom(a, a.BitLen()), nil
		}
		if err != nil || p.Addr().IsMulticast() || p.Addr().Is4In6() {
			faults = append(faults, Fault(fmt.Sprintf("allowed-addresses[%d]", i), "expected an address or a prefix"))
			continue
		}
		allowed = append(allowed, p.Masked())
	}
	return allowed, faults
}

// Validate checks what no single field can say.
func (r *AttachToNetworkRequest) Validate() []FieldError {
	_, faults := r.Allowed()
	if r.IP.IsValid() && !r.IP.Is4() {
		faults = append(faults, Fault("ip", "expected an IPv4 address"))
	}
	return faults
}

// UpdateNetworkIPRequest changes the address of an instance in a managed network.
type UpdateNetworkIPRequest struct {
	Instance Ref        `json:"instance" ref:"instance" doc:"the instance"`
	IP       netip.Addr `json:"ip,omitzero" doc:"its address (one of the range when absent)"`
}

// Validate checks what no single field can say.
func (r *UpdateNetworkIPRequest) Validate() []FieldError {
	if r.IP.IsValid() && !r.IP.Is4() {
		return []FieldError{Fault("ip", "expected an IPv4 address")}
	}
	return nil
}
