// SPDX-License-Identifier: Apache-2.0

//go:build program

package bpf_test

import (
	"cairn/bpf"
	"cairn/bpf/packet"
)

// model says in plain Go what a port does with packets: who may open a flow,
// what belongs to one, and what the packet becomes. It knows no maps and no
// clock: nothing in it expires.
type model struct {
	flows   map[tuple]*mflow
	aliases map[wire]uint16 // wire tuple → the peer's port as the VM sees it

	admitsIn   bool // a rule for TCP and UDP to 8080 from 192.0.2.0/24
	opensOut   bool
	generation uint32
}

// tuple is a flow as the VM sees it; the VM is always the same one.
type tuple struct {
	proto    uint8
	peer     string
	peerPort uint16
	ownPort  uint16
}

// wire is a flow whose port is translated, as the wire sees it.
type wire struct {
	tuple
	service uint32
}

type mflow struct {
	inward     bool // the direction of the first packet
	host       bool
	state      uint8
	finIn      bool
	finOut     bool
	service    uint32
	generation uint32
	wirePort   uint16
	match      uint16
	packets    uint64
}

// arrival is a packet at the port, in either direction.
type arrival struct {
	tuple
	inward  bool
	host    bool
	door    bool // towards the door
	flags   uint8
	service uint32
	match   uint16
}

func (a arrival) syn() bool {
	return a.proto == packet.ProtoTCP && a.flags&(packet.SYN|packet.ACK|packet.RST) == packet.SYN
}

func (a arrival) opens() bool { return a.proto != packet.ProtoTCP || a.syn() }

// judged says whether the policy lets a flow begin, or go on.
func (m *model) judged(inward bool, t tuple, match uint16) bpf.Reason {
	if !inward {
		if m.opensOut {
			return bpf.ReasonNone
		}
		return bpf.ReasonNoPolicy
	}
	if m.admitsIn && t.proto != packet.ProtoICMP && match == 8080 && t.peer != stranger1 {
		return bpf.ReasonNone
	}
	return bpf.ReasonPolicyIn
}

const stranger1 = "192.0.3.1"

// verdict is what becomes of the packet: why it drops, or its flow. free is
// true if the model wants a port that only the program can name.
func (m *model) verdict(a arrival) (why bpf.Reason, seen tuple, f *mflow, free bool) {
	seen = a.tuple
	f = m.flows[seen]
	if f != nil && a.syn() && f.state >= bpf.CtClosing {
		f = nil
	}
	if f != nil && a.inward && f.service != a.service {
		if a.opens() && (f.state >= bpf.CtClosing || f.state == bpf.CtNew) {
			f = nil
		} else {
			port, known := m.aliases[wire{a.tuple, a.service}]
			if !known {
				return m.judged(true, seen, a.match), seen, nil, true
			}
			seen.peerPort = port
			f = m.flows[seen]
			if f != nil && a.syn() && f.state >= bpf.CtClosing {
				f = nil
			}
		}
	}
	if f == nil {
		switch {
		case a.door:
			return bpf.ReasonNoDoorFlow, seen, nil, false
		case a.host:
			return bpf.ReasonNone, seen, nil, false
		}
		return m.judged(a.inward, seen, a.match), seen, nil, false
	}
	if f.generation != m.generation && !f.host {
		if why := m.judged(f.inward, seen, f.match); why != bpf.ReasonNone {
			delete(m.flows, seen)
			return why, seen, nil, false
		}
		f.generation = m.generation
	}
	return bpf.ReasonNone, seen, f, false
}

// account has an admitted packet change its flow, which begins if it is nil.
func (m *model) account(a arrival, seen tuple, f *mflow) *mflow {
	if f == nil {
		f = &mflow{
			inward: a.inward, host: a.host, state: bpf.CtNew, service: a.service, generation: m.generation,
			wirePort: a.peerPort, match: a.match,
		}
		m.flows[seen] = f
		if seen != a.tuple {
			m.aliases[wire{a.tuple, a.service}] = seen.peerPort
		}
	}
	f.packets++
	if a.flags&packet.RST != 0 {
		f.state = bpf.CtReset
	}
	if f.state == bpf.CtReset {
		return f
	}
	if a.flags&packet.FIN != 0 {
		f.finIn = f.finIn || a.inward
		f.finOut = f.finOut || !a.inward
	}
	switch {
	case f.finIn && f.finOut:
		f.state = bpf.CtClosed
	case f.finIn || f.finOut:
		f.state = bpf.CtClosing
	case a.inward != f.inward && f.state == bpf.CtNew:
		f.state = bpf.CtReplied
	case a.inward == f.inward && f.state == bpf.CtReplied:
		f.state = bpf.CtEstablished
	}
	return f
}
