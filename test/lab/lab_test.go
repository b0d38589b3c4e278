// SPDX-License-Identifier: Apache-2.0

//go:build lab

package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

var testVIP = netip.MustParsePrefix("203.0.113.7/32")

var buildEcho = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "clab")
	if err != nil {
		return "", err
	}
	program := filepath.Join(dir, "cairn-echo")
	cmd := exec.Command("go", "build", "-o", program, "cairn/cmd/cairn-echo")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w\n%s", err, out)
	}
	return program, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if program, err := buildEcho(); err == nil {
		os.RemoveAll(filepath.Dir(program))
	}
	os.Exit(code)
}

// announce makes a hypervisor answer for the test VIP by hand: the address on
// lo, an echo workload, and a BIRD of its own that tells the router.
func announce(t *testing.T, l *Lab, hv int) (speaker *Daemon) {
	t.Helper()
	echo, err := buildEcho()
	if err != nil {
		t.Fatal(err)
	}
	ns := l.Hypervisor(hv)
	if err := ns.netlink(func(h *netlink.Handle) error {
		lo, err := h.LinkByName("lo")
		if err != nil {
			return err
		}
		return h.AddrAdd(lo, &netlink.Addr{IPNet: ipNet(testVIP)})
	}); err != nil {
		t.Fatal(err)
	}
	dir := l.hypervisorFolder(hv)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	router, own := uplinkAddresses(hv)
	conf := filepath.Join(dir, "bird.conf")
	text := fmt.Sprintf(`log stderr all;
router id %[1]s;
protocol device {}
protocol static { ipv4; route %[2]s blackhole; }
protocol bfd { interface "uplink" { interval %[3]d ms; multiplier %[4]d; }; }
protocol bgp upstream { direct; local %[1]s as %[5]d; neighbor %[6]s as %[7]d; bfd on; hold time 3; keepalive time 1;
	connect delay time 1; connect retry time 1; error wait time 1, 3; ipv4 { import none; export all; next hop self; }; }
`, own, testVIP, bfdInterval, bfdMultiplier, HypervisorAS, router, RouterAS)
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	speaker = l.add(daemonState{Name: fmt.Sprintf("hv%d/bgpd", hv), Namespace: ns.Namespace,
		Argv: []string{"/usr/sbin/bird", "-f", "-c", conf, "-s", filepath.Join(dir, "bird.ctl"), "-P", filepath.Join(dir, "bird.pid")}})
	workload := l.add(daemonState{Name: fmt.Sprintf("hv%d/echo", hv), Namespace: ns.Namespace,
		Argv: []string{echo, "-name", fmt.Sprintf("hv%d", hv)}})
	for _, d := range []*Daemon{speaker, workload} {
		if err := d.Start(); err != nil {
			t.Fatal(err)
		}
	}
	return speaker
}

func nextHops(l *Lab, want int) func() error {
	return func() error {
		hops, err := l.RouterRoutes(testVIP)
		if err == nil && len(hops) != want {
			err = fmt.Errorf("next hops %v, want %d", hops, want)
		}
		return err
	}
}

// ask sends one request from a source port and returns who answered and the
// address it saw.
func ask(l *Lab, port int) (instance, peer string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	conn, err := l.Client(1).DialFrom(ctx, "tcp", port, netip.AddrPortFrom(testVIP.Addr(), 80).String())
	if err != nil {
		return "", "", err
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET / HTTP/1.0\r\n\r\n"); err != nil {
		return "", "", err
	}
	b, err := io.ReadAll(conn)
	if err != nil {
		return "", "", err
	}
	_, body, _ := strings.Cut(string(b), "\r\n\r\n")
	var answer struct{ Instance, Peer string }
	err = json.Unmarshal([]byte(body), &answer)
	return answer.Instance, answer.Peer, err
}

// The network and each router without any of our daemons: a client reaches a
// VIP that three speakers announce, its connections spread over all of them by
// their ports, a dead speaker and a dead link leave the route within their bars,
// the underlay stays out of reach, and nothing is left behind.
func TestClientsReachAnnouncedVIPs(t *testing.T) {
	t.Parallel()
	for _, router := range []string{BIRD, FRR} {
		t.Run(router, func(t *testing.T) {
			t.Parallel()
			l := New(t, Config{Router: router, Bare: true})
			speakers := map[int]*Daemon{}
			for hv := 1; hv <= 3; hv++ {
				speakers[hv] = announce(t, l, hv)
			}
			Eventually(t, "three next hops", time.Minute, nextHops(l, 3))
			if err := l.SessionsEstablished(); err != nil {
				t.Error(err)
			}
			clientsSpread(t, l)
			underlayIsOutOfReach(t, l)

			begin := time.Now()
			if err := speakers[1].Kill(); err != nil {
				t.Fatal(err)
			}
			Eventually(t, "the dead speaker's route gone", 5*time.Second, nextHops(l, 2))
			t.Logf("speaker killed: route gone after %s", time.Since(begin).Round(time.Millisecond))
			if err := speakers[1].Start(); err != nil {
				t.Fatal(err)
			}
			Eventually(t, "three next hops again", time.Minute, nextHops(l, 3))

			begin = time.Now()
			if err := l.Uplink(2, false); err != nil {
				t.Fatal(err)
			}
			Eventually(t, "the unplugged hypervisor's route gone", 5*time.Second, nextHops(l, 2))
			t.Logf("uplink pulled: route gone after %s", time.Since(begin).Round(time.Millisecond))
			// The kernel stops using a dead hop before the router's BGP knows.
			Eventually(t, "the unplugged hypervisor's session down", 8*time.Second, func() error {
				if l.SessionsEstablished() == nil {
					return errors.New("all sessions are established")
				}
				return nil
			})
			if err := l.Uplink(2, true); err != nil {
				t.Fatal(err)
			}
			Eventually(t, "three next hops after plugging in", time.Minute, nextHops(l, 3))
			Eventually(t, "sessions after plugging in", time.Minute, l.SessionsEstablished)

			// Frozen, it neither withdraws nor closes: hold time or BFD ends it.
			begin = time.Now()
			if err := speakers[3].Freeze(); err != nil {
				t.Fatal(err)
			}
			// The hop that was plugged in again may still come and go, so this asks
			// for the frozen one alone.
			Eventually(t, "the frozen speaker's route gone", 8*time.Second, func() error {
				hops, err := l.RouterRoutes(testVIP)
				if err == nil && slices.Contains(hops, l.Endpoint(3)) {
					err = fmt.Errorf("next hops are %v", hops)
				}
				return err
			})
			t.Logf("speaker frozen: route gone after %s", time.Since(begin).Round(time.Millisecond))
			if err := speakers[3].Thaw(); err != nil {
				t.Fatal(err)
			}
			Eventually(t, "three next hops after thawing", time.Minute, nextHops(l, 3))
		})
	}
}

func clientsSpread(t *testing.T, l *Lab) {
	t.Helper()
	const requests = 120
	count := map[string]int{}
	for port := 20000; port < 20000+requests; port++ {
		instance, peer, err := ask(l, port)
		if err != nil {
			t.Fatalf("request from port %d: %v", port, err)
		}
		if want := fmt.Sprintf("%s:%d", l.Client(1).Address, port); peer != want {
			t.Errorf("%s saw %s, want %s", instance, peer, want)
		}
		count[instance]++
	}
	for hv := 1; hv <= 3; hv++ {
		// 40 expected; fewer than 20 is 4 standard deviations away.
		if name := fmt.Sprintf("hv%d", hv); count[name] < 20 {
			t.Errorf("%s answered %d of %d requests", name, count[name], requests)
		}
	}
}

// underlayIsOutOfReach also dials the same address from the router, so that it
// fails when nothing would have answered anyhow.
func underlayIsOutOfReach(t *testing.T, l *Lab) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	endpoint := netip.AddrPortFrom(l.Endpoint(1), 80).String()
	conn, err := l.Router().DialContext(ctx, "tcp", endpoint)
	if err != nil {
		t.Fatalf("the router does not reach %s: %v", endpoint, err)
	}
	conn.Close()
	short, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if conn, err := l.Client(1).DialContext(short, "tcp", endpoint); err == nil {
		conn.Close()
		t.Errorf("a client reaches %s", endpoint)
	}
}

// The links are what the programs need: packet size, checksums, XDP, and a
// management path that is not the uplink.
func TestLinksAreAsPlanned(t *testing.T) {
	t.Parallel()
	l := New(t, Config{Hypervisors: 2, Bare: true})
	for _, c := range []struct {
		host Host
		link string
		mtu  int
		xdp  bool
	}{
		{l.Router(), "hv1", UplinkMTU, true}, {l.Hypervisor(1), uplinkName, UplinkMTU, false},
		{l.Router(), "cli1", 1500, false}, {l.Client(1), clientName, 1500, true}, {l.Hypervisor(2), managementName, 1500, false},
	} {
		if err := c.host.netlink(func(h *netlink.Handle) error {
			link, err := h.LinkByName(c.link)
			if err != nil {
				return err
			}
			xdp := link.Attrs().Xdp
			if got := xdp != nil && xdp.Attached && xdp.AttachMode == 1; got != c.xdp { // 1: in the driver
				t.Errorf("%s %s: native XDP %t, want %t", c.host.Namespace, c.link, got, c.xdp)
			}
			if link.Attrs().MTU != c.mtu || link.Attrs().OperState != netlink.OperUp {
				t.Errorf("%s %s: mtu %d, %s", c.host.Namespace, c.link, link.Attrs().MTU, link.Attrs().OperState)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
	}
	features, err := l.Router().Run(t.Context(), "ethtool", "-k", "hv1")
	if err != nil || !strings.Contains(features, "tx-checksumming: off") {
		t.Errorf("%v: %s", err, features)
	}
	control := Host{Namespace: controlNamespace(l.Name())}
	listener, err := control.Listen("tcp4", "10.65.0.1:7443")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	if err := l.Uplink(2, false); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	conn, err := l.Hypervisor(2).DialContext(ctx, "tcp4", listener.Addr().String())
	if err != nil {
		t.Fatalf("management with the uplink down: %v", err)
	}
	defer conn.Close()
	if got := conn.LocalAddr().(*net.TCPAddr).AddrPort().Addr(); got != managementAddress(2) {
		t.Errorf("management comes from %s", got)
	}
	for key, want := range map[string]string{"ipv4/ip_forward": "1", "ipv4/fib_multipath_hash_policy": "1", "ipv4/conf/hv1/rp_filter": "0", "ipv6/conf/hv1/disable_ipv6": "0", "ipv6/conf/all/forwarding": "1"} {
		if err := l.Router().Do(func() error {
			b, err := os.ReadFile("/proc/sys/net/" + key)
			if got := strings.TrimSpace(string(b)); err == nil && got != want {
				err = fmt.Errorf("%s is %s, want %s", key, got, want)
			}
			return err
		}); err != nil {
			t.Error(err)
		}
	}
}

func TestUpRefusesASecondLabOfTheName(t *testing.T) {
	t.Parallel()
	l := New(t, Config{Hypervisors: 1, Bare: true})
	if _, err := Up(t.Context(), Config{Name: l.Name(), Hypervisors: 1, Bare: true}); err == nil {
		t.Fatal("two labs of one name")
	}
	if !l.Daemon("router/bird").Alive() {
		t.Error("the refused lab ended the first")
	}
	again, err := Open(l.Name())
	if err != nil {
		t.Fatal(err)
	}
	if s := again.Status(); !s.Ready || len(s.Namespaces) != 4 || len(s.Daemons) != 1 {
		t.Errorf("status %+v", s)
	}
	if err := l.Daemon("router/bird").Kill(); err != nil {
		t.Fatal(err)
	}
	if s := again.Status(); s.Ready || len(s.Problems) == 0 {
		t.Errorf("status with a dead router %+v", s)
	}
}

// Whatever a crash of Up leaves, Down removes it, with and without state.json.
func TestDownEndsAHalfMadeLab(t *testing.T) {
	t.Parallel()
	name := fmt.Sprintf("clab-%d-half", os.Getpid())
	t.Cleanup(func() { _ = Down(name) })
	for what, leave := range map[string]func() error{
		"nothing":  func() error { return nil },
		"a folder": func() error { return os.MkdirAll(labFolder(name), 0o755) },
		"an empty state": func() error {
			return errors.Join(os.MkdirAll(labFolder(name), 0o755), os.WriteFile(statePath(name), nil, 0o600))
		},
		"a namespace": func() error { return createNamespace(name + "-rtr") },
		"a name without namespace": func() error {
			return errors.Join(os.MkdirAll(namespaceFolder, 0o755), os.WriteFile(namespacePath(name+"-hv1"), nil, 0o444))
		},
		"links and a marked process": func() error {
			top := plan(name, 1, 1)
			cmd := exec.Command("sleep", "1000")
			cmd.Env = append(os.Environ(), mark+"="+name)
			err := errors.Join(top.build(t.Context()), inNamespace(name+"-hv1", cmd.Start))
			if err == nil {
				go func() { _ = cmd.Wait() }()
				// The child has its environment once it has become sleep.
				Eventually(t, "sleep", time.Second, func() error {
					if len(belonging(name)) != 1 {
						return errors.New("no marked process")
					}
					return nil
				})
			}
			return err
		},
	} {
		t.Run(what, func(t *testing.T) {
			if err := leave(); err != nil {
				t.Fatal(err)
			}
			if what != "nothing" && len(Left(name)) == 0 {
				t.Fatal("nothing was left to remove")
			}
			if err := Down(name); err != nil {
				t.Fatal(err)
			}
			if left := Left(name); len(left) != 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
}

func TestUpTakesDownWhatItMadeWhenItFails(t *testing.T) {
	t.Parallel()
	name := fmt.Sprintf("clab-%d-fail", os.Getpid())
	t.Cleanup(func() { _ = Down(name) })
	ctx, cancel := context.WithCancel(t.Context())
	cfg := Config{Name: name, Bare: true, Progress: func(s Took) {
		if s.Step == "daemons started" {
			cancel() // as Ctrl-C does
		}
	}}
	if _, err := Up(ctx, cfg); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
	if left := Left(name); len(left) != 0 {
		t.Errorf("interrupted: left %v", left)
	}
	// A program that cannot work: its last words are in the error.
	bin := t.TempDir()
	for _, p := range []string{"cairnd", "cairn-agent", "cairn-bgpd", "cairn-echo"} {
		if err := os.WriteFile(filepath.Join(bin, p), []byte("#!/bin/sh\necho cannot work >&2\nexit 3\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	_, err := Up(t.Context(), Config{Name: name, Bin: bin})
	if err == nil || !strings.Contains(err.Error(), "cannot work") {
		t.Errorf("broken cairnd: %v", err)
	}
	if left := Left(name); len(left) != 0 {
		t.Errorf("broken cairnd: left %v", left)
	}
}

// The API's socket outlives cairnd: a connection made while cairnd is away
// waits for the next one.
func TestTheAPISocketOutlivesItsDaemon(t *testing.T) {
	t.Parallel()
	l := New(t, Config{Hypervisors: 1, Bare: true})
	d := l.add(daemonState{Name: "cairnd", Namespace: controlNamespace(l.Name()), Inherits: true,
		Argv: []string{"/bin/sh", "-c", `test "$LISTEN_FDS" = 1 && test -S /proc/self/fd/3 || test -e /proc/self/fd/3; exec sleep 1000`}})
	if err := d.Start(); err != nil {
		t.Fatal(err)
	}
	target, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/3", d.PID()))
	if err != nil || !strings.HasPrefix(target, "socket:") {
		t.Errorf("descriptor 3 is %q, %v", target, err)
	}
	for _, act := range []func() error{d.Kill, d.Start, d.Restart, func() error { return nil }} {
		if err := act(); err != nil {
			t.Fatal(err)
		}
		conn, err := net.DialTimeout("tcp", l.state.Listen, time.Second)
		if err != nil {
			t.Fatalf("the API refuses a connection: %v", err)
		}
		conn.Close()
	}
	if err := d.Freeze(); err != nil || d.process().state() != 'T' {
		t.Errorf("frozen: %v", err)
	}
	if err := errors.Join(d.Thaw(), d.Terminate()); err != nil || d.Alive() {
		t.Errorf("terminated: %v", err)
	}
	if err := d.Kill(); !errors.Is(err, unix.ESRCH) {
		t.Errorf("killing a dead daemon: %v", err)
	}
}

func TestNamesListsLabs(t *testing.T) {
	t.Parallel()
	l := New(t, Config{Hypervisors: 1, Bare: true})
	names, err := Names()
	if err != nil || !slices.Contains(names, l.Name()) {
		t.Errorf("labs %v, %v", names, err)
	}
	// Its owner, this test, is alive.
	if err := DownStale(); err != nil || !l.Daemon("router/bird").Alive() {
		t.Errorf("DownStale ended a lab whose test runs: %v", err)
	}
	l.state.Owner = &process{PID: 1, Start: 1}
	if err := l.state.save(); err != nil {
		t.Fatal(err)
	}
	if err := DownStale(); err != nil || len(Left(l.Name())) != 0 {
		t.Errorf("DownStale left %v: %v", Left(l.Name()), err)
	}
}
