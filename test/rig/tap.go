// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Tap is a packet socket on a device: it sends frames there and sees those that
// enter.
type Tap struct {
	fd    int
	index int
	ended atomic.Bool
	reads sync.WaitGroup
}

// Tap on a device of the namespace.
func (s *Space) Tap(device string) (*Tap, error) {
	t := &Tap{fd: -1}
	err := s.Do(func() error {
		l, err := netlink.LinkByName(device)
		if err != nil {
			return err
		}
		t.index = l.Attrs().Index
		all := binary.NativeEndian.Uint16([]byte{0, unix.ETH_P_ALL})
		if t.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(all)); err != nil {
			return err
		}
		pause := unix.Timeval{Usec: 50_000}
		return errors.Join(
			unix.SetsockoptInt(t.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20),
			unix.SetsockoptTimeval(t.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &pause),
			unix.SetsockoptInt(t.fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
			unix.Bind(t.fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: t.index}))
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("tap %s: %w", device, err), t.Close())
	}
	return t, nil
}

// Send a frame as it is.
func (t *Tap) Send(frame []byte) error {
	if _, err := unix.Write(t.fd, frame); err != nil {
		return fmt.Errorf("send a frame of %d bytes: %w", len(frame), err)
	}
	return nil
}

// Watch has a function see every frame that enters, until Close. The frame is
// the function's only while it runs.
func (t *Tap) Watch(see func(frame []byte)) {
	t.reads.Go(func() {
		buf := make([]byte, 1<<16)
		for !t.ended.Load() {
			n, err := unix.Read(t.fd, buf)
			if err == nil && n > 0 {
				see(buf[:n])
			}
		}
	})
}

// Lost counts the frames that found no room in the socket.
func (t *Tap) Lost() (uint32, error) {
	stats, err := unix.GetsockoptTpacketStats(t.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil {
		return 0, err
	}
	return stats.Drops, nil
}

// Close ends it.
func (t *Tap) Close() error {
	if t.fd < 0 {
		return nil
	}
	t.ended.Store(true)
	t.reads.Wait()
	err := unix.Close(t.fd)
	t.fd = -1
	return err
}
