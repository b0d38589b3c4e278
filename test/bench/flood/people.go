// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"cairn/test/bench"
	"cairn/test/rig"
)

// patience with a connection and with an echo over one: a SYN that is lost is
// sent again after 1 and after 3 seconds.
const patience = 5 * time.Second

// serveElsewhere has a process be the machine: both ends of 10,000 connections
// are more descriptors than one process may have.
func serveElsewhere(g *rig.Guest) (func() error, error) {
	cmd := exec.Command("/proc/self/exe", "-serve")
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := g.Space.Do(cmd.Start); err != nil {
		return nil, err
	}
	return func() error {
		err := cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
		return err
	}, nil
}

// serveHere echoes what comes to the open port, until it cannot.
func serveHere() error {
	l, err := net.Listen("tcp4", fmt.Sprintf(":%d", open))
	if err != nil {
		return err
	}
	conn, err := net.ListenPacket("udp4", fmt.Sprintf(":%d", open))
	if err != nil {
		return err
	}
	go echoDatagrams(conn)
	return echoConnections(l)
}

func echoConnections(l net.Listener) error {
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			buf := make([]byte, 64)
			_, _ = io.CopyBuffer(struct{ io.Writer }{conn}, struct{ io.Reader }{conn}, buf)
		}()
	}
}

func echoDatagrams(conn net.PacketConn) {
	buf := make([]byte, 2048)
	for {
		n, from, err := conn.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			_, _ = conn.WriteTo(buf[:n], from) // to a forged source
		}
	}
}

// connections that are open.
type connections struct{ all []net.Conn }

func (c *connections) close() {
	for _, conn := range c.all {
		conn.Close()
	}
}

// connect opens connections to the flooded port, each of which has echoed.
func (w *world) connect(n int) (*connections, error) {
	c := &connections{all: make([]net.Conn, n)}
	err := w.clients.Do(func() error {
		for i := range n {
			deadline := time.Now().Add(30 * time.Second) // of a machine that begins to serve
			for {
				conn, err := connectFrom(source(1+i/2000), w.target)
				if err == nil {
					c.all[i] = conn
					break
				}
				if time.Now().After(deadline) {
					return fmt.Errorf("connection %d: %w", i, err)
				}
			}
			if err := echo(c.all[i]); err != nil {
				return fmt.Errorf("connection %d: %w", i, err)
			}
		}
		return nil
	})
	return c, err
}

// source is one of the clients.
func source(i int) netip.Addr {
	a := clientPrefix.Addr().As4()
	a[3] = byte(1 + i%250)
	return netip.AddrFrom4(a)
}

// connectFrom is for a thread in the clients' namespace.
func connectFrom(from netip.Addr, to *rig.Guest) (net.Conn, error) {
	d := net.Dialer{Timeout: patience, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))}
	return d.Dial("tcp4", netip.AddrPortFrom(to.Address, open).String())
}

func echo(conn net.Conn) error {
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := conn.Write([]byte("hello")); err != nil {
		return err
	}
	var buf [5]byte
	_, err := io.ReadFull(conn, buf[:])
	return err
}

// ask all connections whether they are there, and count those that are not.
func (c *connections) ask() (silent int) {
	for _, conn := range c.all {
		if echo(conn) != nil {
			silent++
		}
	}
	return silent
}

// used tells how echoes went.
type used struct {
	took   bench.Durations
	failed int
}

// use connections, one after the other, until stop.
func (c *connections) use(stop <-chan struct{}) <-chan used {
	done := make(chan used, 1)
	go func() {
		var u used
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				done <- u
				return
			case <-tick.C:
			}
			began := time.Now()
			if err := echo(c.all[rand.IntN(len(c.all))]); err != nil {
				u.failed++
				continue
			}
			u.took = append(u.took, time.Since(began))
		}
	}()
	return done
}

// dialled tells of new connections: how long each took until its first echo.
type dialled struct {
	took     bench.Durations
	failures []error
}

const dialers = 4

// dial so many new connections from other sources, one every few milliseconds.
func (w *world) dial(to *rig.Guest, n int) dialled {
	var mu sync.Mutex
	var out dialled
	var all sync.WaitGroup
	for d := range dialers {
		all.Go(func() {
			err := w.clients.Do(func() error {
				pace := time.NewTicker(20 * time.Millisecond)
				defer pace.Stop()
				for i := d; i < n; i += dialers {
					<-pace.C
					took, err := dialOne(source(100+i), to)
					mu.Lock()
					if err != nil {
						out.failures = append(out.failures, err)
					} else {
						out.took = append(out.took, took)
					}
					mu.Unlock()
				}
				return nil
			})
			if err != nil {
				mu.Lock()
				out.failures = append(out.failures, err)
				mu.Unlock()
			}
		})
	}
	all.Wait()
	return out
}

func dialOne(from netip.Addr, to *rig.Guest) (time.Duration, error) {
	began := time.Now()
	conn, err := connectFrom(from, to)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	err = echo(conn)
	return time.Since(began), err
}
