// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"golang.org/x/sys/unix"
)

// errRefused is the server's NAK.
var errRefused = errors.New("the server refuses")

// How long it waits for an answer at first, twice as long each time, and how
// often it asks before it begins anew.
const (
	patience = 200 * time.Millisecond
	tries    = 5
)

var wanted = dhcpv4.WithRequestedOptions(
	dhcpv4.OptionSubnetMask, dhcpv4.OptionRouter, dhcpv4.OptionDomainNameServer, dhcpv4.OptionInterfaceMTU,
	dhcpv4.OptionNTPServers, dhcpv4.OptionDNSDomainSearchList, dhcpv4.OptionClasslessStaticRoute)

// client talks on one link. Its socket sees the frames of the link, because an
// answer comes before there is an address.
type client struct {
	fd      int
	ifindex int
	mac     net.HardwareAddr
}

func dial(ifindex int, mac net.HardwareAddr) (*client, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open a socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: typeIPv4(), Ifindex: ifindex}); err != nil {
		return nil, errors.Join(fmt.Errorf("bind to link %d: %w", ifindex, err), unix.Close(fd))
	}
	return &client{fd, ifindex, mac}, nil
}

func typeIPv4() uint16 { return binary.NativeEndian.Uint16([]byte{0x08, 0x00}) }

func (c *client) close() { _ = unix.Close(c.fd) }

// lease asks for an address, or for the one it has again.
func (c *client) lease(ctx context.Context, have *dhcpv4.DHCPv4) (*dhcpv4.DHCPv4, error) {
	if have != nil {
		renew, err := dhcpv4.NewRenewFromAck(have, wanted, dhcpv4.WithBroadcast(true))
		if err != nil {
			return nil, err
		}
		return c.talk(ctx, renew)
	}
	discover, err := dhcpv4.NewDiscovery(c.mac, wanted, dhcpv4.WithBroadcast(true))
	if err != nil {
		return nil, err
	}
	offer, err := c.talk(ctx, discover)
	if err != nil {
		return nil, err
	}
	request, err := dhcpv4.NewRequestFromOffer(offer, wanted, dhcpv4.WithBroadcast(true))
	if err != nil {
		return nil, err
	}
	return c.talk(ctx, request)
}

// talk sends a message until it is answered.
func (c *client) talk(ctx context.Context, m *dhcpv4.DHCPv4) (*dhcpv4.DHCPv4, error) {
	frame := datagram(m.ClientIPAddr, m.ToBytes())
	to := &unix.SockaddrLinklayer{
		Protocol: typeIPv4(), Ifindex: c.ifindex, Halen: 6, Addr: [8]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
	}
	for i := range tries {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if err := unix.Sendto(c.fd, frame, 0, to); err != nil {
			return nil, fmt.Errorf("send %s: %w", m.MessageType(), err)
		}
		answer, err := c.answer(ctx, m, patience<<i)
		if answer != nil || err != nil {
			return answer, err
		}
	}
	return nil, fmt.Errorf("%s is not answered", m.MessageType())
}

// answer waits for that to m; nil when the time is over.
func (c *client) answer(ctx context.Context, m *dhcpv4.DHCPv4, patience time.Duration) (*dhcpv4.DHCPv4, error) {
	buf := make([]byte, 2048)
	for deadline := time.Now().Add(patience); ctx.Err() == nil; {
		ready, err := c.poll(time.Until(deadline))
		if err != nil || !ready {
			return nil, err
		}
		n, _, err := unix.Recvfrom(c.fd, buf, unix.MSG_DONTWAIT)
		if err != nil {
			continue // taken by nobody, or of no use
		}
		a := read(buf[:n])
		if a == nil || a.TransactionID != m.TransactionID || !bytes.Equal(a.ClientHWAddr, c.mac) {
			continue
		}
		if a.MessageType() == dhcpv4.MessageTypeNak {
			return nil, errRefused
		}
		return a, nil
	}
	return nil, ctx.Err()
}

// wait until it is time to ask again, or the link is gone.
func (c *client) wait(ctx context.Context, d time.Duration) error {
	timer, ticker := time.NewTimer(d), time.NewTicker(look)
	defer timer.Stop()
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
			return nil
		case <-ticker.C:
			if _, err := net.InterfaceByIndex(c.ifindex); err != nil {
				return unix.ENODEV
			}
		}
	}
}

func (c *client) poll(d time.Duration) (bool, error) {
	if d <= 0 {
		return false, nil
	}
	fds := []unix.PollFd{{Fd: int32(c.fd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, int(d/time.Millisecond)+1)
	if err != nil && !errors.Is(err, unix.EINTR) {
		return false, err
	}
	if n > 0 && fds[0].Revents&(unix.POLLERR|unix.POLLHUP) != 0 {
		return false, unix.ENETDOWN
	}
	return n > 0, nil
}

// datagram is a message in UDP and IPv4, to all.
func datagram(from net.IP, payload []byte) []byte {
	b := make([]byte, 28, 28+len(payload))
	b[0], b[8], b[9] = 0x45, 64, 17
	binary.BigEndian.PutUint16(b[2:], uint16(28+len(payload)))
	copy(b[12:], from.To4())
	copy(b[16:], net.IPv4bcast.To4())
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	sum = sum&0xffff + sum>>16
	binary.BigEndian.PutUint16(b[10:], ^uint16(sum&0xffff+sum>>16))
	binary.BigEndian.PutUint16(b[20:], 68)
	binary.BigEndian.PutUint16(b[22:], 67)
	binary.BigEndian.PutUint16(b[24:], uint16(8+len(payload))) // without a checksum, which UDP over IPv4 allows
	return append(b, payload...)
}

// read takes a server's datagram apart; nil for anything else.
func read(b []byte) *dhcpv4.DHCPv4 {
	if len(b) < 28 || b[0]>>4 != 4 || b[9] != 17 {
		return nil
	}
	head := int(b[0]&15) * 4
	if head < 20 || len(b) < head+8 || binary.BigEndian.Uint16(b[head:]) != 67 || binary.BigEndian.Uint16(b[head+2:]) != 68 {
		return nil
	}
	m, err := dhcpv4.FromBytes(b[head+8:])
	if err != nil {
		return nil
	}
	return m
}
