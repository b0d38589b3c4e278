// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"cairn/bpf"
	"cairn/test/model/firewall"
)

// tables of flows, and whether a flow in it is confirmed.
var tables = map[string]bool{"ct_new": false, "ct_est": true}

// Wait makes everything that is remembered older, which is the same as time
// passing: the programs' clock is the kernel's own. That may be before the
// machine has started.
func (k *Kernel) Wait(d time.Duration) error {
	k.passed += d
	for name := range tables {
		for _, m := range k.inner[name] {
			older := map[bpf.CtKey]bpf.Ct{}
			var key bpf.CtKey
			var f bpf.Ct
			entries := m.Iterate()
			for entries.Next(&key, &f) {
				f.Seen -= uint64(d)
				older[key] = f
			}
			if err := entries.Err(); err != nil {
				return fmt.Errorf("read %s: %w", name, err)
			}
			for key, f := range older {
				if err := m.Put(key, &f); err != nil {
					return fmt.Errorf("make a flow of %s older: %w", name, err)
				}
			}
		}
	}
	return k.olderPieces(d)
}

// olderPieces of datagrams; when the first one was seen is what a record begins
// with.
func (k *Kernel) olderPieces(d time.Duration) error {
	m := k.maps["frag"]
	older := map[bpf.FragKey][]byte{}
	var key bpf.FragKey
	var value []byte
	entries := m.Iterate()
	for entries.Next(&key, &value) {
		v := slices.Clone(value)
		binary.NativeEndian.PutUint64(v, binary.NativeEndian.Uint64(v)-uint64(d))
		older[key] = v
	}
	if err := entries.Err(); err != nil {
		return fmt.Errorf("read frag: %w", err)
	}
	for key, v := range older {
		if err := m.Put(key, v); err != nil {
			return fmt.Errorf("make pieces older: %w", err)
		}
	}
	return nil
}

// Flows of a port, as the model would have them. Expired ones are there until
// something sweeps them.
func (k *Kernel) Flows(id firewall.PortID) (map[firewall.Tuple]*firewall.Flow, error) {
	out := map[firewall.Tuple]*firewall.Flow{}
	for name, confirmed := range tables {
		m := k.inner[name][id]
		if m == nil {
			continue
		}
		var key bpf.CtKey
		var f bpf.Ct
		entries := m.Iterate()
		for entries.Next(&key, &f) {
			if key.Alias != 0 {
				continue
			}
			t := firewall.Tuple{
				Proto: key.Proto, Peer: key.Peer.Addr(), Own: key.Own.Addr(),
				PeerPort: bpf.BE16(key.PeerPort), OwnPort: bpf.BE16(key.OwnPort),
			}
			flow := k.flow(&f, confirmed)
			if out[t] != nil && out[t].Left(t.Proto, k.Now()) >= 0 {
				if flow.Left(t.Proto, k.Now()) >= 0 {
					return nil, fmt.Errorf("flow %+v lives in both tables", t)
				}
				continue
			}
			out[t] = flow
		}
		if err := entries.Err(); err != nil {
			return nil, errors.Join(fmt.Errorf("read %s", name), err)
		}
	}
	return out, nil
}

// chosen is the port that a peer's was translated to last. A packet that begins
// a flow and is too large for the port shows it nowhere else.
func (k *Kernel) chosen() (port uint16, err error) {
	var last uint64
	for name := range tables {
		for _, m := range k.inner[name] {
			var key bpf.CtKey
			var f bpf.Ct
			entries := m.Iterate()
			for entries.Next(&key, &f) {
				if key.Alias != 0 && f.Seen > last {
					port, last = bpf.BE16(f.PeerPort), f.Seen
				}
			}
			if err := entries.Err(); err != nil {
				return 0, fmt.Errorf("read %s: %w", name, err)
			}
		}
	}
	return port, nil
}

func (k *Kernel) flow(f *bpf.Ct, confirmed bool) *firewall.Flow {
	has := func(flag uint8) bool { return f.Flags&flag != 0 }
	flow := &firewall.Flow{
		First: firewall.Direction(f.Direction), State: firewall.State(f.State), FINs: [2]bool{has(bpf.CtFinIn), has(bpf.CtFinOut)},
		Seen: time.Duration(f.Seen) + k.passed, Packets: f.Packets, Match: f.Match, Generation: f.Generation,
		Rule: firewall.RuleID(f.Rule), Host: has(bpf.CtHost), Keep: has(bpf.CtKeep), Loose: has(bpf.CtLoose), Confirmed: confirmed,
		Service: firewall.ServiceID(f.Service), WirePort: bpf.BE16(f.PeerPort),
		Idle: time.Duration(f.Idle) * time.Second,
	}
	heard := func(flag uint8) bool { return f.Heard&flag != 0 }
	for d, side := range f.Side {
		flow.Ends[d] = firewall.End{Sent: side.End, Awaits: side.Ack, Edge: side.Edge, Scale: int(f.Scale[d])}
		if f.Scale[d] == 255 {
			flow.Ends[d].Scale = -1
		}
	}
	flow.Ends[firewall.In].HasSent, flow.Ends[firewall.Out].HasSent = heard(bpf.CtEndIn), heard(bpf.CtEndOut)
	flow.Ends[firewall.In].HasAcked, flow.Ends[firewall.Out].HasAcked = heard(bpf.CtAckIn), heard(bpf.CtAckOut)
	return flow
}
