// SPDX-License-Identifier: Apache-2.0

//go:build program

package host_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"cairn/dataplane/host"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// A bench is a router that is its own client, a hypervisor with a VM, and an LB
// node without one:
//
//	cbpf-rtr r0 ── up0 cbpf-hv cp5 ── eth0 cbpf-vm
//	         r1 ── up0 cbpf-lb
type bench struct {
	*testing.T
	cfg, lb host.Config
	cp5     int // ifindex
	r1MAC   string
}

const (
	clientAddr = "192.0.2.9"
	vmAddr     = "198.51.100.5"
	vmMAC      = "02:ca:00:00:00:05"
	gwMAC      = "02:cc:00:00:00:01"
	endpoint   = "10.64.0.1"
	vip        = "203.0.113.1:80"
	lbEndpoint = "10.64.0.3"
	doorNetns  = "cbpf-svc"
)

var namespaces = []string{"cbpf-rtr", "cbpf-hv", "cbpf-lb", "cbpf-vm"}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{T: t}
	pins := filepath.Join(t.TempDir(), "bpf")
	b.cfg = host.Config{Pins: pins, Uplink: "up0", Endpoint: netip.MustParseAddr(endpoint), Door: doorNetns,
		Sizes: map[string]uint32{"slots": 1024}}
	b.lb = b.cfg
	b.lb.Pins, b.lb.Endpoint, b.lb.Door = filepath.Join(pins, "lb"), netip.MustParseAddr(lbEndpoint), ""
	t.Cleanup(b.remove)
	for _, ns := range namespaces {
		makeNamespace(t, ns)
	}
	must(t, host.EnsureBPFFS(pins))
	b.wire()
	return b
}

// remove takes down what newBench and the test made, also half of it.
func (b *bench) remove() {
	b.in("cbpf-hv", func() {
		if err := host.Remove(b.cfg); err != nil {
			b.Errorf("remove the host: %v", err)
		}
	})
	b.in("cbpf-lb", func() {
		if err := host.Remove(b.lb); err != nil {
			b.Errorf("remove the LB node: %v", err)
		}
	})
	for _, ns := range namespaces {
		if err := netns.DeleteNamed(ns); err != nil && !errors.Is(err, os.ErrNotExist) {
			b.Errorf("remove %s: %v", ns, err)
		}
	}
	if err := unix.Unmount(b.cfg.Pins, 0); err != nil {
		b.Errorf("unmount the bpffs: %v", err)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%+v", err)
	}
}

func makeNamespace(t *testing.T, name string) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // the thread ends in the new namespace
		if err := netns.DeleteNamed(name); err != nil && !errors.Is(err, os.ErrNotExist) {
			done <- err
			return
		}
		ns, err := netns.NewNamed(name)
		if err == nil {
			ns.Close()
		}
		done <- err
	}()
	must(t, <-done)
}

// in runs f on a thread in the namespace. A namespace that is not there runs
// nothing: then there is nothing to remove.
func (b *bench) in(name string, f func()) {
	b.Helper()
	ns, err := netns.GetFromName(name)
	if err != nil {
		return
	}
	defer ns.Close()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		err := netns.Set(ns)
		defer func() { done <- err }()
		if err == nil {
			f()
		}
	}()
	if err := <-done; err != nil {
		b.Fatalf("enter %s: %v", name, err)
	}
}

func run(args ...string) error {
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%v: %w: %s", args, err, out)
	}
	return nil
}

// all runs commands in a namespace.
func (b *bench) all(ns string, commands ...[]string) {
	b.Helper()
	var errs []error
	b.in(ns, func() {
		for _, c := range commands {
			errs = append(errs, run(c...))
		}
	})
	must(b, errors.Join(errs...))
}

func ip(args ...string) []string { return append([]string{"ip"}, args...) }

func (b *bench) wire() {
	b.Helper()
	b.all("cbpf-hv",
		ip("link", "add", "up0", "mtu", "1600", "type", "veth", "peer", "name", "r0", "mtu", "1600", "netns", "cbpf-rtr"),
		ip("addr", "add", endpoint+"/31", "dev", "up0"),
		ip("link", "set", "up0", "up"),
		ip("route", "add", "default", "via", "10.64.0.0"),
		[]string{"ethtool", "-K", "up0", "tx", "off"},
		ip("link", "add", "cp5", "address", gwMAC, "type", "veth", "peer", "name", "eth0", "address", vmMAC, "netns", "cbpf-vm"),
		ip("link", "set", "cp5", "up"),
	)
	b.all("cbpf-lb",
		ip("link", "add", "up0", "mtu", "1600", "type", "veth", "peer", "name", "r1", "mtu", "1600", "netns", "cbpf-rtr"),
		ip("addr", "add", lbEndpoint+"/31", "dev", "up0"),
		ip("link", "set", "up0", "up"),
		ip("route", "add", "default", "via", "10.64.0.2"),
	)
	b.all("cbpf-rtr",
		ip("addr", "add", "10.64.0.2/31", "dev", "r1"),
		ip("link", "set", "r1", "up"),
		[]string{"ethtool", "-K", "r1", "tx", "off"},
		ip("addr", "add", "10.64.0.0/31", "dev", "r0"),
		ip("addr", "add", clientAddr+"/32", "dev", "lo"),
		ip("link", "set", "lo", "up"),
		ip("link", "set", "r0", "up"),
		[]string{"ethtool", "-K", "r0", "tx", "off"},
		ip("route", "add", "203.0.113.0/24", "via", endpoint, "src", clientAddr),
		ip("route", "add", "198.51.100.0/24", "via", endpoint, "src", clientAddr),
	)
	b.all("cbpf-vm",
		ip("addr", "add", vmAddr+"/32", "dev", "eth0"),
		ip("link", "set", "lo", "up"),
		ip("link", "set", "eth0", "up"),
		ip("route", "add", "default", "via", "169.254.0.1", "dev", "eth0", "onlink"),
	)
	var err error
	b.in("cbpf-rtr", func() { err = os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1\n"), 0o644) })
	must(b, err)
	b.in("cbpf-hv", func() {
		var l netlink.Link
		if l, err = netlink.LinkByName("cp5"); err == nil {
			b.cp5 = l.Attrs().Index
		}
	})
	must(b, err)
	b.in("cbpf-rtr", func() {
		err = errors.Join(b.passAll("r0"), b.passAll("r1"))
		if l, e := netlink.LinkByName("r1"); e == nil {
			b.r1MAC = l.Attrs().HardwareAddr.String()
		}
	})
	must(b, err)
}

// passAll attaches a program that passes everything: what XDP_TX sends arrives
// at a veth end only if that end has a native program too.
func (b *bench) passAll(dev string) error {
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.XDP, License: "Apache-2.0",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()},
	})
	if err != nil {
		return err
	}
	at, err := netlink.LinkByName(dev)
	if err != nil {
		return err
	}
	l, err := link.AttachXDP(link.XDPOptions{Program: prog, Interface: at.Attrs().Index, Flags: link.XDPDriverMode})
	if err != nil {
		return err
	}
	b.Cleanup(func() { l.Close(); prog.Close() })
	return nil
}

// open opens the hypervisor, as a process that starts would.
func (b *bench) open() *host.Host { return b.openIn("cbpf-hv", b.cfg) }

// openLB opens the LB node.
func (b *bench) openLB() *host.Host { return b.openIn("cbpf-lb", b.lb) }

func (b *bench) openIn(ns string, cfg host.Config) *host.Host {
	b.Helper()
	var h *host.Host
	var err error
	b.in(ns, func() { h, err = host.Open(cfg) })
	must(b, err)
	b.Cleanup(func() { h.Close() })
	return h
}

// dial connects from a namespace.
func (b *bench) dial(ns, network, addr string) (conn net.Conn, err error) {
	b.Helper()
	b.in(ns, func() { conn, err = net.DialTimeout(network, addr, time.Second) })
	if err == nil {
		b.Cleanup(func() { conn.Close() })
	}
	return conn, err
}

// serve answers every line on a port of the VM with the line, and says who
// asks.
func (b *bench) serve(addr string) (clients <-chan string) { return b.serveIn("cbpf-vm", addr) }

func (b *bench) serveIn(ns, addr string) (clients <-chan string) {
	b.Helper()
	var l net.Listener
	var err error
	b.in(ns, func() { l, err = net.Listen("tcp", addr) })
	must(b, err)
	b.Cleanup(func() { l.Close() })
	seen := make(chan string, 16)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			seen <- conn.RemoteAddr().String()
			go echo(conn)
		}
	}()
	return seen
}

func echo(conn net.Conn) {
	defer conn.Close()
	buf := make([]byte, 64<<10)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return
		}
		if _, err := conn.Write(buf[:n]); err != nil {
			return
		}
	}
}

// mustEcho sends a line and reads it back.
func (b *bench) mustEcho(conn net.Conn, line string) {
	b.Helper()
	must(b, conn.SetDeadline(time.Now().Add(2*time.Second)))
	if _, err := conn.Write([]byte(line)); err != nil {
		b.Fatal(err)
	}
	buf := make([]byte, len(line))
	for got := 0; got < len(line); {
		n, err := conn.Read(buf[got:])
		if err != nil {
			b.Fatalf("after %d of %d bytes: %v", got, len(line), err)
		}
		got += n
	}
	if string(buf) != line {
		b.Fatal("the echo is not what was sent")
	}
}
