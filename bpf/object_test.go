// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"maps"
	"net/netip"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

func specs(t *testing.T) *Specs {
	t.Helper()
	s, err := LoadCollectionSpecs()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// loadsFrom lists, for every lookup in a map, the sizes of the loads from the
// value it finds.
func loadsFrom(prog *ebpf.ProgramSpec, mapName string) (loads [][]asm.Size) {
	w := walk{ins: prog.Instructions, at: map[int]int{}}
	raw := 0
	for i, in := range w.ins {
		w.raw = append(w.raw, raw)
		w.at[raw] = i
		raw += int(in.Size() / asm.InstructionSize)
	}
	for i := range w.ins {
		if w.ins[i].Reference() != mapName {
			continue
		}
		for !w.ins[i].IsBuiltinCall() {
			i++
		}
		w.seen, w.found = map[int]bool{}, nil
		w.from(i+1, map[asm.Register]bool{asm.R0: true})
		loads = append(loads, w.found)
	}
	return loads
}

// walk follows every way through the instructions from a lookup to the next
// call, with the set of registers that hold the address of the value.
type walk struct {
	ins   asm.Instructions
	raw   []int       // offset of an instruction, as jumps count
	at    map[int]int // and back
	seen  map[int]bool
	found []asm.Size
}

func (w *walk) from(i int, holds map[asm.Register]bool) {
	for ; !w.seen[i]; i++ {
		w.seen[i] = true
		in := w.ins[i]
		switch op := in.OpCode; {
		case op.JumpOp() == asm.Call, op.JumpOp() == asm.Exit:
			return
		case op.Class().IsJump():
			w.from(w.at[w.raw[i]+1+int(in.Offset)], maps.Clone(holds))
			if op.JumpOp() == asm.Ja {
				return
			}
		case op.Class() == asm.LdXClass:
			if holds[in.Src] {
				w.found = append(w.found, op.Size())
			}
			delete(holds, in.Dst)
		case op.Class().IsALU():
			if op.ALUOp() == asm.Mov && op.Source() == asm.RegSource && holds[in.Src] {
				holds[in.Dst] = true
			} else {
				delete(holds, in.Dst)
			}
		case op.Class() == asm.LdClass:
			delete(holds, in.Dst)
		}
	}
}

// A slot's two owners, and a next hop's MAC and flags, are read in one load:
// two would let a reader see half of a change.
func TestSlotsAndNexthopsAreReadInOneLoad(t *testing.T) {
	uplink := specs(t).Uplink.Programs["uplink"]
	for _, name := range []string{"slots", "nexthops"} {
		all := loadsFrom(uplink, name)
		if len(all) == 0 {
			t.Errorf("%s: the program does not look it up", name)
		}
		for _, loads := range all {
			if len(loads) != 1 || loads[0] != asm.DWord {
				t.Errorf("%s: loads of %v, want one of 8 bytes", name, loads)
			}
		}
	}
	// The measure itself: a service record is read field by field.
	split := false
	for _, loads := range loadsFrom(uplink, "svc") {
		split = split || len(loads) > 1
	}
	if !split {
		t.Error("svc: no second load is found, so this test would not find one in slots either")
	}
}

func TestAllObjectsDeclareTheSameMaps(t *testing.T) {
	s := specs(t)
	for name, m := range s.Uplink.Maps {
		if strings.HasPrefix(name, ".") {
			continue
		}
		for object, other := range map[string]*ebpf.MapSpec{"port": s.Port.Maps[name], "overlay": s.Overlay.Maps[name]} {
			if other == nil {
				t.Errorf("%s: not in the %s object", name, object)
				continue
			}
			if m.Type != other.Type || m.KeySize != other.KeySize || m.ValueSize != other.ValueSize ||
				m.MaxEntries != other.MaxEntries || m.Flags != other.Flags {
				t.Errorf("%s: %v and %v", name, m, other)
			}
		}
	}
}

// The layouts that stay: a change of size is a change of format.
func TestSizesOfRecords(t *testing.T) {
	declared := specs(t).Uplink.Maps
	for name, want := range map[string][2]uint32{
		"cfg": {4, 36}, "meta": {4, 64}, "reasons": {4, 8}, "vip_bits": {4, 8}, "vip4": {8, 4}, "vipaddr4": {4, 4},
		"vip6": {20, 4}, "vipaddr6": {16, 4},
		"svc": {4, 64}, "slots": {4, 8}, "backends": {4, 32}, "nexthops": {4, 8}, "svc_stat": {4, 32},
		"backend_stat": {4, 64 * 32}, "backend_conn": {4, 64}, "svc_latency": {4, 208}, "vteps": {4, 8}, "vtep_seen": {4, 16}, "local": {8, 24}, "fdb": {12, 8}, "port_cfg": {4, 64},
		"ifindex_port": {4, 4}, "addr_ok": {20, 4}, "addr_port": {16, 4}, "prefixes": {20, 4}, "members": {20, 4},
		"cidr": {24, 4}, "peer_bm": {12, 128}, "cidr_bm": {12, 128}, "port_bounds": {16, 260}, "port_bm": {12, 128},
		"rule_ids": {12, 264}, "rule_stats": {4, 16}, "ct_est": {4, 4}, "ct_new": {4, 4}, "ct_swept": {4, 8}, "refusals": {4, 16},
		"neigh": {20, 12}, "bum": {4, 3088}, "listeners": {28, 8}, "pace": {4, 32}, "told": {4, 16}, "addr_allow": {24, 4}, "addr_net": {20, 4}, "frag": {44, 56}, "punts": {0, 0},
		"vip_nodes": {16, 196}, "vip_frag": {40, 32}, "vip_pace": {16, 16}, "vtep_errors": {4, 24},
		"port_stat": {4, 48}, "events": {0, 0}, "event_stat": {4, 40}, "captures": {0, 0}, "watch": {4, 48},
		"quic": {8, 4}, "allowances": {4, 96},
	} {
		if m := declared[name]; m == nil || m.KeySize != want[0] || m.ValueSize != want[1] {
			t.Errorf("%s: %v, want key %d, value %d", name, m, want[0], want[1])
		}
	}
	for _, name := range []string{"ct_est", "ct_new"} {
		if flows := declared[name].InnerMap; flows.KeySize != 40 || flows.ValueSize != 112 {
			t.Errorf("%s: key %d, value %d, want 40 and 112", name, flows.KeySize, flows.ValueSize)
		}
	}
}

func TestEveryReasonHasAName(t *testing.T) {
	for _, c := range []struct {
		reason Reason
		want   string
		drop   bool
	}{
		{ReasonPassHost, "pass_host", false}, {ReasonSent, "sent", false}, {ReasonMalformed, "malformed", true},
		{ReasonPolicyIn, "policy_in", true}, {Reason(255), "reason_255", true},
	} {
		if got := c.reason.String(); got != c.want || c.reason.IsDrop() != c.drop {
			t.Errorf("%d: %s, drop %v", uint32(c.reason), got, c.reason.IsDrop())
		}
	}
	all := Reasons()
	if len(all) < 40 || all[0] != ReasonPassNotInet || all[len(all)-1].String() == "" {
		t.Errorf("reasons: %v", all)
	}
}

func TestAddresses(t *testing.T) {
	a := netip.MustParseAddr("192.0.2.1")
	if got := IP16(a); got.B != netip.MustParseAddr("::ffff:192.0.2.1").As16() || got.Addr() != a {
		t.Errorf("IP16: %v", got)
	}
	if got := BE32(a); got != 0x010200c0 || AddrBE32(got) != a {
		t.Errorf("BE32: %#x", got)
	}
	if got := BE16(80); got != 0x5000 || BE16(got) != 80 {
		t.Errorf("BE16: %#x", got)
	}
	if got := PrefixBits(netip.MustParsePrefix("10.0.0.0/8"), 32); got != 136 {
		t.Errorf("PrefixBits: %d", got)
	}
	if got := Slot(1, 2); got != 0x200000001 {
		t.Errorf("Slot: %#x", got)
	}
}
