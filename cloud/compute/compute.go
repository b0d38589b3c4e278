// SPDX-License-Identifier: Apache-2.0

// Package compute owns the hypervisor's side of an instance: the Driver that
// makes a machine out of a Spec, and the drivers we have. It never decides
// which instances a hypervisor has and never touches a packet program; the
// agent compares what it wants with List and calls Ensure and Remove. A machine
// belongs to nobody's process tree: it outlives the agent that made it. Start
// at Driver; the driver for network namespaces starts at netns.go.
package compute

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
)

// The states of a machine. StateError means that the machine is half made or
// half gone; the next Ensure repairs it and the next Remove ends it.
const (
	StateRunning = "running"
	StateStopped = "stopped"
	StateError   = "error"
)

// Spec is everything a driver has to know of an instance.
type Spec struct {
	ID         string           // uuid of the instance
	Port       uint32           // id of its public port, unique in the zone; 0: none
	Name       string           // the customer's name for it, handed to the workload
	Driver     string           // which driver makes it, from its template
	Command    string           // which workload runs, from its template: "echo"
	UserData   []byte           // decoded; runs first when it starts with "#!"
	MAC        net.HardwareAddr // of eth0
	Address    netip.Addr       // the public address, a /32 on eth0
	Gateway    netip.Addr       // 169.254.0.1, answered by the port's program
	MTU        int              // of eth0; 0 is 1500
	Running    bool             // wanted: running or stopped
	Generation uint64           // of the item this Spec came from
	Zone       string           // handed to the workload

	Address6 netip.Addr `json:",omitzero"` // the public IPv6 address, a /128 on eth0; none: eth0 speaks no IPv6
	Gateway6 netip.Addr `json:",omitzero"` // its router, link-local, answered by the port's program

	Networks []Interface `json:",omitempty"` // in private networks; they come and go while it runs
}

// Interface is one in a private network. The guest gives it its address.
type Interface struct {
	Port   uint32 // id, unique in the zone
	MAC    net.HardwareAddr
	MTU    int  // 0 is 1500
	Leased bool // the network leases addresses
}

// Hash names the contents of a Spec, all but its generation: equal hashes mean
// that Ensure has nothing to do for a machine in the wanted state.
func (s Spec) Hash() string {
	s.Generation = 0
	b, err := json.Marshal(s)
	if err != nil {
		// Only strings, numbers, bytes and marshalers that never fail are in it.
		panic(fmt.Sprintf("hash of spec %s: %v", s.ID, err))
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// Machine is what a driver finds on this hypervisor.
type Machine struct {
	ID         string
	Port       uint32
	State      string // StateRunning, StateStopped or StateError
	Generation uint64 // of the last Spec that Ensure fulfilled
	PID        int    // of the workload, as this hypervisor counts; 0 when stopped
	SpecHash   string // of the last Spec that Ensure fulfilled
	Err        string // why State is StateError, or why a machine that should run does not
}

// Driver makes, finds and ends machines of one kind. All methods may be called
// from several goroutines; calls for the same machine wait for each other.
type Driver interface {
	Name() string

	// List returns every machine of this driver on this hypervisor, also those
	// that another process made before and those that are half made. It reads
	// the machine's real state, never only what was written down.
	List() ([]Machine, error)

	// Ensure makes the machine be as the Spec says: it creates, starts, stops
	// or repairs it, and does nothing when there is nothing to do. It returns
	// when the workload's process runs or is gone, not when the guest answers.
	// A machine whose guest ended by itself is started again.
	Ensure(Spec) error

	// Remove ends the machine and everything that belongs to it. It succeeds
	// when there is no such machine.
	Remove(id string) error
}

// LogPath is the file with what the workload of a machine prints; state is the
// driver's state folder. For the workload "echo" it is one JSON line a request.
func LogPath(state, id string) string {
	return filepath.Join(machineFolder(state, id), "log")
}

// PortLink is the name of the hypervisor's end of a port.
func PortLink(port uint32) string { return fmt.Sprintf("cp%d", port) }

func machineFolder(state, id string) string {
	return filepath.Join(MachinesFolder(state), id)
}

// MachinesFolder holds a folder for each machine that the driver knows, named
// by its id.
func MachinesFolder(state string) string {
	return filepath.Join(state, "machines")
}
