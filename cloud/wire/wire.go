// SPDX-License-Identifier: Apache-2.0

// Package wire owns the compiled nouns: what the control plane makes of stored
// resources and an agent makes map contents of. A noun is free of anything a
// host allocates (no ifindex, no map slot). The package is also the only
// translation between these nouns and proto. It judges nothing and does no I/O.
//
// Start at Item and Kind; codec.go encodes and decodes.
package wire

import (
	"fmt"
	"net/netip"
	"strconv"
	"time"
)

// Kind of an item. The numbers order a delta: upserts ascend, tombstones
// descend, so that nothing is named before it exists.
type Kind uint8

// The kinds, with the hosts that hold their items.
const (
	KindHost         Kind = iota + 1 // all hosts
	KindClass                        // hosts with a policy that names one of the class's groups
	KindMember                       // the same
	KindPolicy                       // hosts of its ports
	KindInstance                     // its host
	KindPort                         // its host
	KindBackend                      // hosts that hold the backend's service
	KindSlots                        // LB nodes, and hosts of the service's backends
	KindService                      // the same
	KindCheck                        // the backend's host
	KindAnnouncement                 // LB nodes (service) or the instance's host
	KindNetwork                      // hosts with a port in it
	KindNeighbour                    // the same
	kindEnd
)

// KindLast is the last of the kinds: arrays by kind have room for it.
const KindLast = kindEnd - 1

var kindNames = [kindEnd]string{
	KindHost: "host", KindClass: "class", KindMember: "member", KindPolicy: "policy",
	KindInstance: "instance", KindPort: "port", KindBackend: "backend", KindSlots: "slots",
	KindService: "service", KindCheck: "check", KindAnnouncement: "announcement",
	KindNetwork: "network", KindNeighbour: "neighbour",
}

// Kinds lists all kinds in the order of upserts.
func Kinds() []Kind {
	kinds := make([]Kind, 0, kindEnd-1)
	for k := KindHost; k < kindEnd; k++ {
		kinds = append(kinds, k)
	}
	return kinds
}

// Valid reports whether k is one of the kinds.
func (k Kind) Valid() bool { return k > 0 && k < kindEnd }

func (k Kind) String() string {
	if !k.Valid() {
		return "kind " + strconv.Itoa(int(k))
	}
	return kindNames[k]
}

// ParseKind is the reverse of String.
func ParseKind(s string) (Kind, error) {
	for k := KindHost; k < kindEnd; k++ {
		if kindNames[k] == s {
			return k, nil
		}
	}
	return 0, fmt.Errorf("kind %q is not known", s)
}

// Key names an item among all items of a zone.
type Key struct {
	Kind Kind
	ID   string
}

func (k Key) String() string { return k.Kind.String() + "/" + k.ID }

// Item is a compiled noun.
type Item interface {
	Key() Key
}

// Direction of a rule or a flow, seen from the port's instance.
type Direction uint8

// Directions.
const (
	Ingress Direction = iota
	Egress
)

func (d Direction) String() string {
	if d == Egress {
		return "egress"
	}
	return "ingress"
}

// Host is a hypervisor as the others see it: an end of the tunnel.
type Host struct {
	ID       uint32
	Name     string
	Endpoint netip.Addr
	MTU      uint32
}

// Class is a distinct set of security groups. A port's class and its policy
// have the same number: both stand for its set of groups.
type Class struct {
	ID     uint32
	Groups []uint32 // ascending
}

// Member says of which class an address is. Scope 0 is the public one.
type Member struct {
	Scope   uint32
	Address netip.Addr
	Class   uint32
}

// Policy is the union of the rules of a set of security groups.
type Policy struct {
	ID    uint32
	Rules []Rule // ascending by ID
}

// Rule admits traffic. PeerGroup 0 means that the peer is Peer, else it is the
// group's members and Sources; Protocol 0 is any protocol. Flows that a rule
// with Keep has admitted outlive it. Origin is what the rule is in the API, for
// people: "GROUP/UUID".
type Rule struct {
	ID                 uint32
	Direction          Direction
	Protocol           uint8
	PortMin, PortMax   uint16 // TCP and UDP, both inclusive
	ICMPType, ICMPCode int16  // -1 any
	Peer               netip.Prefix
	PeerGroup          uint32
	Sources            []netip.Prefix
	Keep               bool
	Origin             string
}

// Instance is a machine wanted on its host. ID is the API's UUID; Networks are
// its ports in private networks; PublicAddress may be the zero address.
type Instance struct {
	ID         string
	Name       string
	Driver     string
	Command    string
	UserData   []byte
	Port       uint32
	Running    bool
	Generation uint64
	Zone       string

	Networks      []uint32
	Type          string
	SSHKeys       []string
	PublicAddress netip.Addr
}

// PortFlag is an option of a port.
type PortFlag uint32

// Port flags.
const (
	PortFirewall PortFlag = 1 << iota // policy and flow table also in a private network
	PortSMTP                          // outbound SMTP is not blocked
	PortFlowLog                       // flows that open and close are logged
)

// Port is an instance's interface, in the public network or, with Network, in a
// private one.
type Port struct {
	ID        uint32
	Instance  string
	MAC       [6]byte
	Addresses []netip.Addr
	Policy    uint32
	MTU       uint32
	Flags     PortFlag

	Network     uint32         // VNI; 0: the public network
	Allowed     []netip.Prefix // further sources: elastic IPs, extra addresses
	Active      []netip.Prefix // the elastic IPs of Allowed that come to this port
	RateFrom    uint64         // bytes a second from the instance; 0: any
	RateTo      uint64         // bytes a second towards it; 0: any
	Flows       uint32         // quota of the flow table; 0: the host's default
	Established time.Duration  // idle time of an established TCP flow; 0: an hour
}

// Backend is one instance behind one service. Its number is unique in the zone
// and not reused while a slot or a flow can name it.
type Backend struct {
	ID         uint32
	Service    uint32
	Host       uint32
	Port       uint32
	MAC        [6]byte
	Address    netip.Addr
	TargetPort uint16
	Draining   bool
	Unhealthy  bool
}

// Slots is a service's table: 2^n times {cur, prev}, u32 little-endian.
type Slots struct {
	Service    uint32
	Generation uint64
	Table      []byte
}

// Service is a VIP, a port and a protocol. Panic: too few backends are healthy,
// so all are used.
type Service struct {
	ID              uint32
	VIP             netip.Addr
	Port            uint16
	Protocol        uint8
	SourceHash      bool
	Panic           bool
	Seed            uint32
	SlotsGeneration uint64
	ConnectionLimit uint32 // live connections that a backend takes; 0: any
	SourceRate      uint32 // packets a second from a /24 or /56; 0: any
	QUIC            bool   // connection IDs name backends
	Rotating        bool   // the seed has changed, and flows from before live
	PrevSeed        uint32 // the seed before
}

// Check is a health check, done by the host of what is checked: of one backend,
// or of one Port that an elastic IP is attached to; then Service and Backend
// are 0.
type Check struct {
	Service     uint32
	Backend     uint32
	Elastic     uint32
	CheckedPort uint32
	Mode        string // tcp, http, https
	Address     netip.Addr
	Port        uint16
	Interval    time.Duration
	Timeout     time.Duration
	Retries     uint32
	URI         string
	Generation  uint64

	TLSSNI        string
	TLSSkipVerify bool
	StrikesOK     uint32 // successes in a row that end a failure; 0: as lb/health has it
}

// Announcement is a prefix to announce. Announcers are hosts in order of rank:
// rank 0 never withdraws a VIP on its own judgement of a probe.
type Announcement struct {
	Prefix      netip.Prefix
	Communities []uint32
	Service     bool // else the origin is an instance
	Announcers  []uint32
}

// Network is a private network: an L2 segment of the hosts with a port in it.
type Network struct {
	VNI           uint32
	ID            string
	MTU           uint32
	Hosts         []uint32 // ascending; broadcast goes to them
	Lease         *Lease   // nil: addresses are the customer's own matter
	BroadcastRate uint32   // packets a second and port; 0: the default
	Snooping      bool     // multicast only to ports that joined its group
}

// Lease is what a managed network hands out beside the address. Server is the
// network's own address.
type Lease struct {
	Server       netip.Addr
	Bits         uint8
	Start, End   netip.Addr
	Routers      []netip.Addr
	DNSServers   []netip.Addr
	NTPServers   []netip.Addr
	DomainSearch []string
}

// Neighbour is a port of a private network as all hosts of the network see it.
// Addresses are the leased one and those it is allowed to have.
type Neighbour struct {
	VNI       uint32
	Port      uint32
	Host      uint32
	MAC       [6]byte
	Addresses []netip.Addr
	Name      string
}

func number(kind Kind, id uint32) Key { return Key{kind, strconv.FormatUint(uint64(id), 10)} }

// CheckKey names the check of a backend of a service.
func CheckKey(service, backend uint32) Key {
	return Key{KindCheck, fmt.Sprintf("%d/%d", service, backend)}
}

// ElasticCheckKey names the check of a port that an elastic IP is attached to.
func ElasticCheckKey(elastic, port uint32) Key {
	return Key{KindCheck, fmt.Sprintf("elastic/%d/%d", elastic, port)}
}

// Key of each noun.
func (h Host) Key() Key     { return number(KindHost, h.ID) }
func (c Class) Key() Key    { return number(KindClass, c.ID) }
func (m Member) Key() Key   { return Key{KindMember, fmt.Sprintf("%d/%s", m.Scope, m.Address)} }
func (p Policy) Key() Key   { return number(KindPolicy, p.ID) }
func (i Instance) Key() Key { return Key{KindInstance, i.ID} }
func (p Port) Key() Key     { return number(KindPort, p.ID) }
func (b Backend) Key() Key  { return number(KindBackend, b.ID) }
func (s Slots) Key() Key    { return number(KindSlots, s.Service) }
func (s Service) Key() Key  { return number(KindService, s.ID) }
func (c Check) Key() Key {
	if c.Elastic != 0 {
		return ElasticCheckKey(c.Elastic, c.CheckedPort)
	}
	return CheckKey(c.Service, c.Backend)
}
func (a Announcement) Key() Key {
	return Key{KindAnnouncement, a.Prefix.String()}
}
func (n Network) Key() Key   { return number(KindNetwork, n.VNI) }
func (n Neighbour) Key() Key { return number(KindNeighbour, n.Port) }
