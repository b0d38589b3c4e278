// SPDX-License-Identifier: Apache-2.0

// Package debug is how people look into an agent: a service on its unix socket
// and the verbs of `cairn debug`. It works without a control plane. It changes
// nothing but what `diff --repair` mends, and knows nothing but what its Source
// tells. Start at Source.
package debug

import (
	"context"
	"net/netip"
	"time"

	"cairn/dataplane/sync"
	"cairn/dataplane/table"
)

// Source answers for an agent.
type Source interface {
	Status() Status
	Ports() []Port
	Services() []Service
	Flow(Flow) (Path, error)
	Diff() (Diff, error)
	Drops() ([]Drop, error)

	// Repair makes the maps as they are wanted, and tells what it did.
	Repair(context.Context) (Repair, error)
	// WatchDrops tells of each drop until ctx ends or line fails; first with
	// nothing, when it has begun.
	WatchDrops(ctx context.Context, f DropFilter, line func(DropEvent) error) error
	// WatchSamples does the same of the packets that services are sampled by; 0:
	// of all services.
	WatchSamples(ctx context.Context, service uint32, line func(SampleEvent) error) error
	// Capture is the same for the frames of a port.
	Capture(ctx context.Context, r CaptureRequest, line func(CaptureEvent) error) error
	// Trace follows a packet without sending it. It changes nothing.
	Trace(TraceRequest) (Trace, error)
	Why(WhyRequest) (Why, error)
}

// Status of an agent.
type Status struct {
	Name       string            `json:"name"`
	Version    string            `json:"version"`
	Started    time.Time         `json:"started"`
	Restarts   uint64            `json:"restarts"` // starts before this one, with the same state
	Desired    table.Mark        `json:"desired"`
	Programmed table.Mark        `json:"programmed"`
	Control    sync.State        `json:"control"`
	UplinkDown bool              `json:"uplink_down"`
	UplinkMTU  uint32            `json:"uplink_mtu"`
	Digests    map[string]Digest `json:"digests"`
	Alarm      string            `json:"alarm,omitempty"` // why the last change was refused
	Refusals   uint64            `json:"refusals"`
	Tunnels    []Tunnel          `json:"tunnels,omitempty"`   // that met errors on their way
	Unsettled  map[string]string `json:"unsettled,omitempty"` // unit → why it is not as wanted
	Repaired   uint64            `json:"repaired"`            // map entries that somebody else had changed
	Programs   map[string]uint32 `json:"programs"`            // name → id
	Maps       map[string]uint32 `json:"maps"`
	Memory     uint64            `json:"memory"` // resident bytes of the process
	Flows      uint64            `json:"flows"`  // live, as of the last sweep
	Rounds     []Round           `json:"rounds"` // the last ones, the latest last
}

// Tunnel to a host whose packets met errors in the underlay.
type Tunnel struct {
	Host     uint32        `json:"host"`
	Endpoint netip.Addr    `json:"endpoint"`
	Errors   uint64        `json:"errors"` // ICMP errors that came back, since the programs were loaded first
	Ago      time.Duration `json:"ago_ns"` // the last one
	Last     string        `json:"last"`   // what it says
}

// Digest of a kind; Sum is in hexadecimal.
type Digest struct {
	Count uint64 `json:"count"`
	Sum   string `json:"sum"`
}

// Port as wanted and as programmed.
type Port struct {
	ID         uint32       `json:"id"`
	Instance   string       `json:"instance"`
	Machine    string       `json:"machine"` // running, stopped, error, absent
	Addresses  []netip.Addr `json:"addresses"`
	MAC        string       `json:"mac"`
	Policy     uint32       `json:"policy"`     // the zone's
	Programmed uint32       `json:"programmed"` // this host's own policy id, 0: drops all
	Generation uint32       `json:"generation"`
	Device     uint32       `json:"device"` // interface index, 0: none
	Attached   bool         `json:"attached"`
	Flows      int          `json:"flows"`
	Counters   Counters     `json:"counters"`
}

// Counters of a port since it was attached. Bytes are of IP.
type Counters struct {
	PacketsIn  uint64 `json:"packets_in"` // to the instance
	BytesIn    uint64 `json:"bytes_in"`
	PacketsOut uint64 `json:"packets_out"` // from it
	BytesOut   uint64 `json:"bytes_out"`
	Dropped    uint64 `json:"packets_dropped"` // either way
}

// Service as programmed.
type Service struct {
	ID         uint32    `json:"id"`
	VIP        string    `json:"vip"` // address:port/protocol
	Record     uint32    `json:"record"`
	Base       uint32    `json:"base"`
	Slots      int       `json:"slots"`
	Generation uint32    `json:"generation"`
	Panic      bool      `json:"panic,omitempty"`
	Limit      uint32    `json:"connection_limit,omitempty"` // of each backend
	Backends   []Backend `json:"backends"`
	Traffic    Traffic   `json:"traffic"`
	Latency    Latency   `json:"latency"`
}

// Backend of a service.
type Backend struct {
	ID       uint32 `json:"id"`
	Host     uint32 `json:"host"`
	Endpoint string `json:"endpoint"` // "local" on this host
	Address  string `json:"address"`
	Slots    int    `json:"slots"`           // it owns
	Former   int    `json:"former"`          // it owned before
	State    string `json:"state"`           // ready, draining, unhealthy
	Check    string `json:"check,omitempty"` // the verdict of this host's own check

	Traffic     Traffic     `json:"traffic"`
	Connections Connections `json:"connections"`
}

// Flow is a client's connection to a VIP.
type Flow struct {
	Client   netip.AddrPort `json:"client"`
	VIP      netip.AddrPort `json:"vip"`
	Protocol uint8          `json:"protocol"`
}

// Path is where a flow goes, by the same arithmetic as the program's.
type Path struct {
	Flow       Flow   `json:"flow"`
	Service    uint32 `json:"service"`
	Hash       uint32 `json:"hash"`
	Slot       uint32 `json:"slot"`
	Cur        uint32 `json:"cur"`
	Prev       uint32 `json:"prev"`
	Generation uint32 `json:"generation"`
	Endpoint   string `json:"endpoint"` // of cur's host, "local" on this one
	Address    string `json:"address"`  // of cur
	Known      bool   `json:"known"`    // a port of this host has the flow
}

// Diff is desired against programmed: empty when they agree.
type Diff struct {
	Missing []string `json:"missing"` // wanted, and not so in the maps
	Foreign []string `json:"foreign"` // in the maps, and wanted by nobody
	Faults  []string `json:"faults"`  // units that cannot be made
}

// Empty tells whether desired and programmed agree.
func (d Diff) Empty() bool { return len(d.Missing)+len(d.Foreign)+len(d.Faults) == 0 }

// Repair is what was mended.
type Repair struct {
	Mended []string `json:"mended"` // entries that were missing, changed or foreign
	Left   Diff     `json:"left"`   // what differs all the same
}

// Drop is the counter of one reason.
type Drop struct {
	Reason string `json:"reason"`
	Count  uint64 `json:"count"`
	Drop   bool   `json:"drop"` // the packet was dropped, not sent on
}

// Round is one in which an agent wrote to its maps.
type Round struct {
	Revision     uint64 `json:"revision"`
	ProgrammedNS int64  `json:"programmed_ns"` // CLOCK_MONOTONIC when the last map write was done
	Steps        int    `json:"steps"`
	Faults       int    `json:"faults"` // items that could not be made
}
