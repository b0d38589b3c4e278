// SPDX-License-Identifier: Apache-2.0

package check

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Door opens connections in another network namespace. A socket stays in the
// namespace in which it was made, so one thread there makes them all and the
// rest is done anywhere.
type Door struct {
	requests chan request
	done     chan struct{}
}

type request struct {
	family int
	answer chan<- socket
}

type socket struct {
	fd  int
	err error
}

// OpenDoor into a named namespace.
func OpenDoor(namespace string) (*Door, error) {
	d := &Door{requests: make(chan request), done: make(chan struct{})}
	entered := make(chan error, 1)
	go d.serve(namespace, entered)
	if err := <-entered; err != nil {
		return nil, fmt.Errorf("enter namespace %s: %w", namespace, err)
	}
	return d, nil
}

// Close ends the thread. Connections stay.
func (d *Door) Close() { close(d.done) }

// serve never unlocks its thread: that ends with it, still in the namespace.
func (d *Door) serve(namespace string, entered chan<- error) {
	runtime.LockOSThread()
	ns, err := netns.GetFromName(namespace)
	if err == nil {
		err = errors.Join(netns.Set(ns), ns.Close())
	}
	entered <- err
	if err != nil {
		return
	}
	for {
		select {
		case <-d.done:
			return
		case r := <-d.requests:
			fd, err := unix.Socket(r.family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
			r.answer <- socket{fd, err}
		}
	}
}

// Dial connects to an address and port over TCP. What the namespace has for the
// family is the source.
func (d *Door) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	to, err := netip.ParseAddrPort(address)
	if err != nil || network != "tcp" {
		return nil, fmt.Errorf("dial %s %s: only TCP goes through the door", network, address)
	}
	family := unix.AF_INET
	if to.Addr().Is6() {
		family = unix.AF_INET6
	}
	answer := make(chan socket, 1)
	select {
	case d.requests <- request{family, answer}:
	case <-d.done:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	s := <-answer
	if s.err != nil {
		return nil, os.NewSyscallError("socket", s.err)
	}
	file := os.NewFile(uintptr(s.fd), address)
	defer file.Close()
	if err := connect(ctx, file, s.fd, to); err != nil {
		return nil, err
	}
	return net.FileConn(file)
}

// connect waits for the answer of the other side, or for ctx.
func connect(ctx context.Context, file *os.File, fd int, to netip.AddrPort) error {
	var peer unix.Sockaddr = &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()}
	if to.Addr().Is4() {
		peer = &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
	}
	err := unix.Connect(fd, peer)
	if err == nil {
		return nil
	}
	if !errors.Is(err, unix.EINPROGRESS) {
		return os.NewSyscallError("connect", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = file.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var result error
	waited := raw.Write(func(fd uintptr) bool {
		code, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		if err != nil || code != 0 {
			result = errors.Join(err, os.NewSyscallError("connect", unix.Errno(code)))
			return true
		}
		_, err = unix.Getpeername(int(fd))
		return err == nil
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return errors.Join(result, waited)
}
