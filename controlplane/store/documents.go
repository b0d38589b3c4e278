// SPDX-License-Identifier: Apache-2.0

package store

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"cairn/cloud"
)

// The documents embed the noun that a customer sees and add what only the zone
// needs. Numbers are those of the wire, allocated in the transaction that
// makes the document.

// SSHKeyDoc is a key. Customers know it by its name; its id is the store's.
type SSHKeyDoc struct {
	cloud.SSHKey
	PublicKey string `json:"public-key"`
}

// AntiAffinityDoc is a group; its members are found by their references.
type AntiAffinityDoc struct {
	cloud.AntiAffinityGroup
}

// SecurityGroupDoc is a group with its rules. Status is the state of its
// machine, which the contract does not show.
type SecurityGroupDoc struct {
	cloud.SecurityGroup
	Number      uint32              `json:"number"`
	RuleNumbers map[cloud.ID]uint32 `json:"rule-numbers"` // by rule id
	Status      string              `json:"status"`
}

// What an instance is wanted to be.
const (
	WantedRunning = "running"
	WantedStopped = "stopped"
)

// InstanceDoc is an instance and where it is.
type InstanceDoc struct {
	cloud.Instance
	Hypervisor cloud.ID   `json:"hypervisor,omitempty"`
	HostNumber uint32     `json:"host-number,omitempty"`
	Port       uint32     `json:"port,omitempty"`
	Class      uint32     `json:"class,omitempty"` // of its set of security groups; also the id of its policy
	Wanted     string     `json:"wanted"`
	Pool       cloud.ID   `json:"pool,omitempty"`
	Address    netip.Addr `json:"address,omitzero"`
	MAC        string     `json:"mac,omitempty"`
	Driver     string     `json:"driver"`
	Command    string     `json:"command"`

	// Leaving is since when it is on its way out: it runs, but whoever sends it
	// flows lets go of it. Zero if it stays. Closed: all hosts know that, so its
	// own may refuse those that come all the same.
	Leaving time.Time `json:"leaving,omitzero"`
	Closed  bool      `json:"closed,omitempty"`

	UserDataRaw []byte `json:"user-data-raw,omitempty"` // decoded

	Address6   netip.Addr   `json:"address6,omitzero"`
	Networks   []Attachment `json:"networks,omitempty"` // in the order in which it was attached
	Keys       []string     `json:"keys,omitempty"`     // its SSH keys in authorized_keys form, as they were when it was made
	Protected  bool         `json:"protected,omitempty"`
	Password   *Password    `json:"password,omitempty"`
	ReverseDNS string       `json:"reverse-dns,omitempty"` // without the dot at its end
}

// Password of an instance, sealed.
type Password struct {
	Sealed []byte    `json:"sealed"`
	Set    time.Time `json:"set"`
}

// PoolDoc is an instance pool. Its members are instances with Pool set, found
// by their references; Size is how many it is to have.
type PoolDoc struct {
	cloud.InstancePool
}

// LoadBalancerDoc is a load balancer. Its services are resources of their own
// and are not stored in it.
type LoadBalancerDoc struct {
	cloud.LoadBalancer
	VIP netip.Addr `json:"vip"`
}

// Verdicts on a backend.
const (
	VerdictInitial = "initial" // not asked yet; used as if it were well
	VerdictSuccess = "success"
	VerdictFailure = "failure"
)

// States of a backend.
const (
	BackendJoining  = "joining" // waits for its first verdict; gets no flow yet
	BackendActive   = "active"
	BackendDraining = "draining" // gets no new flow, keeps its old ones
	BackendDead     = "dead"     // gone: its port or its hypervisor
)

// ServiceDoc is a service of a load balancer with its backends. Its slot table
// is a row of its own (Slots), of generation SlotsGeneration.
type ServiceDoc struct {
	cloud.LoadBalancerService
	LoadBalancer    cloud.ID     `json:"load-balancer"`
	VIP             netip.Addr   `json:"vip"`
	Number          uint32       `json:"number"`
	Seed            uint32       `json:"seed"`
	PrevSeed        uint32       `json:"prev-seed,omitempty"`
	Rotating        bool         `json:"rotating,omitempty"` // flows may live that began by PrevSeed
	Panic           bool         `json:"panic,omitempty"`    // too few backends are well: all are used
	Backends        []BackendDoc `json:"backends"`
	SlotsGeneration uint64       `json:"slots-generation"`
}

// AddressAt is where the service's flows enter an instance: its address of the VIP's
// family, the zero address if it has none.
func (d ServiceDoc) AddressAt(i InstanceDoc) netip.Addr {
	if d.VIP.Is6() {
		return i.Address6
	}
	return i.Address
}

// BackendDoc is an instance behind a service.
type BackendDoc struct {
	Number     uint32     `json:"number"`
	Instance   cloud.ID   `json:"instance"`
	Host       uint32     `json:"host"` // number of the instance's hypervisor
	Address    netip.Addr `json:"address"`
	Weight     int        `json:"weight,omitempty"` // beside the others'; 0 is 1
	Generation uint64     `json:"generation"`       // of what is checked; a verdict on an older one is void
	Verdict    string     `json:"verdict"`
	State      string     `json:"state"`
	Down       bool       `json:"down,omitempty"`   // its instance does not run
	Since      time.Time  `json:"since,omitzero"`   // in this state
	Removed    time.Time  `json:"removed,omitzero"` // last taken out because of a verdict
	Leaving    time.Time  `json:"leaving,omitzero"` // its instance is on its way out, since then
	Closed     bool       `json:"closed,omitempty"` // and all hosts know it
	Empty      uint64     `json:"empty,omitempty"`  // generation of the slots by which it has no flow in another's
}

// HypervisorDoc is a hypervisor: what the operator said when adding it, what
// its agent brought when it joined, and what is known of it now.
type HypervisorDoc struct {
	ID            cloud.ID   `json:"id"`
	Name          string     `json:"name"`
	Number        uint32     `json:"number"`
	FailureDomain string     `json:"failure-domain"`
	Joined        bool       `json:"joined"`
	Endpoint      netip.Addr `json:"endpoint,omitzero"` // of the tunnel
	MTU           uint32     `json:"mtu,omitempty"`
	Roles         []string   `json:"roles,omitempty"`
	Drivers       []string   `json:"drivers,omitempty"`
	CPUs          int        `json:"cpus,omitempty"`
	Memory        int64      `json:"memory,omitempty"` // octets
	Version       string     `json:"version,omitempty"`
	Draining      bool       `json:"draining,omitempty"`

	// Unreachable is a fact that was committed: the lease has expired or the
	// uplink is down.
	Unreachable bool      `json:"unreachable,omitempty"`
	UplinkDown  bool      `json:"uplink-down,omitempty"`
	Since       time.Time `json:"since,omitzero"` // unreachable since
}

// States of a hypervisor, as they can be counted.
const (
	HypervisorAdded       = "added" // its agent has not joined yet
	HypervisorJoined      = "joined"
	HypervisorUnreachable = "unreachable"
)

// Roles of a hypervisor.
const (
	RoleCompute = "compute"
	RoleLB      = "lb"
	RoleDNS     = "dns"
)

// HasRole reports whether the hypervisor's agent serves in a role.
func (h HypervisorDoc) HasRole(role string) bool { return slices.Contains(h.Roles, role) }

// ClassOwner is the owner of the number of a class: the set of groups itself,
// in one order, so that equal sets have one number.
func ClassOwner(groups []cloud.Ref) string {
	if len(groups) == 0 {
		return "none"
	}
	ids := make([]string, len(groups))
	for i, g := range groups {
		ids[i] = string(g.ID)
	}
	slices.Sort(ids)
	return strings.Join(slices.Compact(ids), ",")
}

// ClassRef is what instances of a class refer to, so that the last one to
// leave is known. There is no resource of this kind.
func ClassRef(groups []cloud.Ref) Ref {
	return Ref{Kind: NumberClass, ID: cloud.ID(ClassOwner(groups))}
}

// Kind and Index of each document.

func (SSHKeyDoc) Kind() Kind { return KindSSHKey }
func (d SSHKeyDoc) Index() Index {
	return Index{Name: d.Name, Unique: d.Name, State: "registered"}
}

func (AntiAffinityDoc) Kind() Kind { return KindAntiAffinity }
func (d AntiAffinityDoc) Index() Index {
	return Index{Name: d.Name, Unique: d.Name, State: "running"}
}

func (SecurityGroupDoc) Kind() Kind { return KindSecurityGroup }
func (d SecurityGroupDoc) Index() Index {
	return Index{Name: d.Name, Unique: d.Name, State: d.Status}
}

func (InstanceDoc) Kind() Kind { return KindInstance }
func (d InstanceDoc) Index() Index {
	return Index{Name: d.Name, State: string(d.State)}
}

func (PoolDoc) Kind() Kind { return KindPool }
func (d PoolDoc) Index() Index {
	return Index{Name: d.Name, State: string(d.State)}
}

func (LoadBalancerDoc) Kind() Kind { return KindLoadBalancer }
func (d LoadBalancerDoc) Index() Index {
	return Index{Name: d.Name, Unique: d.Name, State: string(d.State)}
}

func (ServiceDoc) Kind() Kind { return KindService }

// Index makes the name unique within the load balancer only.
func (d ServiceDoc) Index() Index {
	return Index{Name: d.Name, Unique: string(d.LoadBalancer) + "/" + d.Name, State: string(d.State)}
}

func (HypervisorDoc) Kind() Kind { return KindHypervisor }
func (d HypervisorDoc) Index() Index {
	state := HypervisorAdded
	switch {
	case d.Unreachable:
		state = HypervisorUnreachable
	case d.Joined:
		state = HypervisorJoined
	}
	return Index{Name: d.Name, Unique: d.Name, State: state}
}

// References of each document that uses others.

// References of an instance: its groups, its class, its networks, its elastic
// IPs, and its pool.
func (d InstanceDoc) References() []Ref {
	refs := append(refsTo(KindSecurityGroup, d.SecurityGroups), refsTo(KindAntiAffinity, d.AntiAffinityGroups)...)
	refs = append(refs, refsTo(KindElasticIP, d.ElasticIPs)...)
	for _, a := range d.Networks {
		refs = append(refs, Ref{KindPrivateNetwork, a.Network})
	}
	if d.Pool != "" {
		refs = append(refs, Ref{KindPool, d.Pool})
	}
	return append(refs, ClassRef(d.SecurityGroups))
}

// References of a pool: the groups and networks its next members will be in, and
// the elastic IPs they will have.
func (d PoolDoc) References() []Ref {
	return slices.Concat(refsTo(KindSecurityGroup, d.SecurityGroups), refsTo(KindAntiAffinity, d.AntiAffinityGroups),
		refsTo(KindPrivateNetwork, d.PrivateNetworks), refsTo(KindElasticIP, d.ElasticIPs))
}

// References of a service: its pool.
func (d ServiceDoc) References() []Ref { return refsTo(KindPool, []cloud.Ref{d.InstancePool}) }

// References of a security group: the groups its rules name, but itself.
func (d SecurityGroupDoc) References() []Ref {
	var refs []Ref
	for _, r := range d.Rules {
		if g := r.SecurityGroup; g != nil && g.ID != "" && g.ID != d.ID {
			refs = append(refs, Ref{KindSecurityGroup, g.ID})
		}
	}
	return refs
}

func refsTo(kind Kind, to []cloud.Ref) []Ref {
	refs := make([]Ref, len(to))
	for i, r := range to {
		refs[i] = Ref{kind, r.ID}
	}
	return refs
}
