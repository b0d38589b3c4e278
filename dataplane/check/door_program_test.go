// SPDX-License-Identifier: Apache-2.0

//go:build program

package check

import (
	"context"
	"errors"
	"net"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"cairn/lb/health"
)

const doorNamespace = "cchk-svc"

// listen makes the namespace and listens there on loopback.
func listen(t *testing.T) net.Listener { return listenAt(t, "127.0.0.1:0")[0] }

// listenAt makes the namespace and listens there. A socket stays in the namespace
// that opened it.
func listenAt(t *testing.T, addresses ...string) []net.Listener {
	t.Helper()
	var listeners []net.Listener
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends in the other namespace
		err := inNewNamespace(func() error {
			for _, address := range addresses {
				l, err := net.Listen("tcp4", address)
				if err != nil {
					return err
				}
				listeners = append(listeners, l)
			}
			return nil
		})
		done <- err
	}()
	err := <-done
	t.Cleanup(func() {
		if err := netns.DeleteNamed(doorNamespace); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Errorf("remove the namespace: %v", err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return listeners
}

func inNewNamespace(do func() error) error {
	_ = netns.DeleteNamed(doorNamespace)
	ns, err := netns.NewNamed(doorNamespace)
	if err != nil {
		return err
	}
	defer ns.Close()
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return err
	}
	return do()
}

func TestDoorLeadsIntoTheNamespace(t *testing.T) {
	l := listen(t)
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	door, err := OpenDoor(doorNamespace)
	if err != nil {
		t.Fatal(err)
	}
	defer door.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	c, err := door.Dial(ctx, "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	// The negative control: from here nobody listens at that address.
	if c, err := net.DialTimeout("tcp", l.Addr().String(), time.Second); err == nil {
		c.Close()
		t.Error("the listener is reached without the door")
	}
	l.Close()
	if _, err := door.Dial(ctx, "tcp", l.Addr().String()); err == nil || ctx.Err() != nil {
		t.Errorf("a closed port: %v", err)
	}
	check := health.Check{Mode: health.TCP, Address: l.Addr().(*net.TCPAddr).AddrPort().Addr(), Port: 1, Interval: time.Second, Timeout: time.Second}
	if err := health.Probe(ctx, door.Dial, check); err == nil {
		t.Error("a probe of a closed port succeeds")
	}
}

func TestDoorKeepsToItsDeadline(t *testing.T) {
	l := listen(t)
	defer l.Close()
	door, err := OpenDoor(doorNamespace)
	if err != nil {
		t.Fatal(err)
	}
	defer door.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	began := time.Now()
	var last error
	for range 4096 { // a listener that does not accept answers until its queue is full
		if _, last = door.Dial(ctx, "tcp", l.Addr().String()); last != nil {
			break
		}
	}
	if last == nil || time.Since(began) > 2*time.Second {
		t.Errorf("%v after %s", last, time.Since(began))
	}
}

func TestDoorIntoNoNamespace(t *testing.T) {
	if _, err := OpenDoor("cchk-none"); err == nil {
		t.Error("opened")
	}
}
