// SPDX-License-Identifier: Apache-2.0

package host

import (
	"fmt"
	"net"
	"net/netip"
	"time"

	"cairn/bpf"
	"cairn/bpf/packet"

	"golang.org/x/sys/unix"
)

// Reacher asks other hosts through the tunnel whether this one reaches them.
// Their XDP program answers, whatever their agent does, and this host's writes
// the answer's time down. It judges nothing: three questions without an answer
// are for the asker to count.
type Reacher struct {
	h    *Host
	conn *net.UDPConn
}

const vxlanPort = 4789

// Reacher opens a socket on the tunnel endpoint, in the caller's namespace.
func (h *Host) Reacher() (*Reacher, error) {
	conn, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(h.cfg.Endpoint, 0)))
	if err != nil {
		return nil, fmt.Errorf("open a socket to ask for reachability: %w", err)
	}
	return &Reacher{h: h, conn: conn}, nil
}

// Ask sends one question to a host's tunnel endpoint. size is that of the outer
// IP packet, at most the path's MTU; 0 is the smallest.
func (r *Reacher) Ask(endpoint netip.Addr, size int) error {
	sent, err := monotonic()
	if err != nil {
		return err
	}
	const outer = 20 + 8 + 8
	question := append(packet.VXLAN(bpf.LBVNI), packet.Reach(bpf.ReachAsk, uint64(sent), size-outer)...)
	if _, err := r.conn.WriteToUDPAddrPort(question, netip.AddrPortFrom(endpoint, vxlanPort)); err != nil {
		return fmt.Errorf("ask %s: %w", endpoint, err)
	}
	return nil
}

// Seen tells how long ago a host answered last, and how long that answer took.
// A host that never did is not ok.
func (r *Reacher) Seen(host uint32) (ago, took time.Duration, ok bool, err error) {
	var seen bpf.Reach
	if err := r.h.Maps.VtepSeen.Lookup(host, &seen); err != nil {
		return 0, 0, false, fmt.Errorf("read vtep_seen of host %d: %w", host, err)
	}
	if seen.Seen == 0 {
		return 0, 0, false, nil
	}
	now, err := monotonic()
	if err != nil {
		return 0, 0, false, err
	}
	return now - time.Duration(seen.Seen), time.Duration(seen.Seen - seen.Sent), true, nil
}

// Close the socket.
func (r *Reacher) Close() error { return r.conn.Close() }

// monotonic is the clock that programs read.
func monotonic() (time.Duration, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 0, fmt.Errorf("read the monotonic clock: %w", err)
	}
	return time.Duration(ts.Nano()), nil
}
