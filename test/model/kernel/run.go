// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"cairn/bpf"
	"cairn/test/model/firewall"
	"cairn/test/model/scenario"
)

// skb is struct __sk_buff.
type skb struct {
	Len, PktType, Mark, QueueMapping, Protocol, VlanPresent, VlanTci, VlanProto uint32
	Priority, IngressIfindex, Ifindex, TcIndex                                  uint32
	Cb                                                                          [5]uint32
	Hash, TcClassid, Data, DataEnd, NapiID, Family, RemoteIP4, LocalIP4         uint32
	RemoteIP6, LocalIP6                                                         [4]uint32
	RemotePort, LocalPort, DataMeta                                             uint32
	FlowKeys, Tstamp                                                            uint64
	WireLen, GsoSegs                                                            uint32
	Sk                                                                          uint64
	GsoSize                                                                     uint32
	TstampType                                                                  uint8
	_                                                                           [3]uint8
	Hwtstamp                                                                    uint64
}

const shot = 2

// CanSend tells whether a test run takes the frame: it wants all of the IP
// header that the Ethernet header promises.
func CanSend(s scenario.Send) bool {
	b := s.Frame()
	if len(b) < 14+20 {
		return false
	}
	return bigEndian(b, 12) != 0x86dd || len(b) >= 14+40
}

// Send a frame through the program whose it is.
func (k *Kernel) Send(s scenario.Send) (scenario.Outcome, error) {
	var ctx skb
	prog := map[scenario.Hook]string{scenario.VM: "vm_in", scenario.Uplink: "uplink_in", scenario.Door: "svc_in"}[s.Hook]
	if s.Hook == scenario.VM { // every run is on the same device: it is the port's now
		if err := k.maps["ifindex_port"].Put(uint32(loopback), uint32(s.Port)); err != nil {
			return scenario.Outcome{}, err
		}
	}
	if s.Service != 0 { // in this world the index is the service's number
		ctx.Cb = [5]uint32{bpf.NotePresent, uint32(s.Service), 12, 1}
	}
	in := s.Frame()
	run := &ebpf.RunOptions{Data: in, DataOut: make([]byte, len(in)+256), Context: &ctx}
	action, err := k.progs[prog].Run(run)
	if err != nil {
		return scenario.Outcome{}, fmt.Errorf("run %s: %w", prog, err)
	}
	why, err := k.counted()
	if err != nil {
		return scenario.Outcome{}, err
	}
	out := scenario.Outcome{Reason: firewall.Reason(why.String())}
	k.Seen[out.Reason]++
	switch {
	case why.IsDrop() != (action == shot):
		return out, fmt.Errorf("%s, but the program answers %d", why, action)
	case action == 7:
		out.Out = run.DataOut
	}
	return out, nil
}

// counts of all reasons, over all CPUs.
func (k *Kernel) counts() (map[bpf.Reason]uint64, error) {
	m := k.maps["reasons"]
	n := int(m.MaxEntries())
	cpus := ebpf.MustPossibleCPU()
	keys, values := make([]uint32, n), make([]uint64, n*cpus)
	var cursor ebpf.MapBatchCursor
	got, err := m.BatchLookup(&cursor, keys, values, nil)
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil, fmt.Errorf("read the reasons: %w", err)
	}
	if got != n {
		return nil, fmt.Errorf("read %d of %d reasons", got, n)
	}
	counts := map[bpf.Reason]uint64{}
	for i := range got {
		for cpu := range cpus {
			if v := values[i*cpus+cpu]; v > 0 {
				counts[bpf.Reason(keys[i])] += v
			}
		}
	}
	return counts, nil
}

// beside are counted together with the reason of an exit.
var beside = map[bpf.Reason]bool{bpf.ReasonCtQuota: true}

// counted is the one reason that was counted since it was last asked.
func (k *Kernel) counted() (bpf.Reason, error) {
	now, err := k.counts()
	if err != nil {
		return 0, err
	}
	var why []bpf.Reason
	for r, n := range now {
		for range n - k.reasons[r] {
			if !beside[r] {
				why = append(why, r)
			}
		}
	}
	k.reasons = now
	if len(why) != 1 {
		return 0, fmt.Errorf("one exit counted %v", why)
	}
	return why[0], nil
}

// Now is the time that the programs have, since the machine started, and what
// has passed by Wait.
func (k *Kernel) Now() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err) // there is no kernel without this clock
	}
	return time.Duration(ts.Nano()) + k.passed
}

func bigEndian(b []byte, at int) uint16 { return binary.BigEndian.Uint16(b[at:]) }
