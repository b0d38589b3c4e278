// SPDX-License-Identifier: Apache-2.0

//go:build lab

package compute

import (
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	inNamespaceOfItsOwn = "CAIRN_TEST_OWN_NAMESPACE"  // its value: prefix of all names
	ensureAndDie        = "CAIRN_TEST_ENSURE_AND_DIE" // its value: state folder
	echoProgram         = "CAIRN_TEST_ECHO"
)

// TestMain runs the tests as a hypervisor of their own: a process whose network
// namespace nobody else is in.
func TestMain(m *testing.M) {
	if os.Getenv(inNamespaceOfItsOwn) == "" {
		os.Exit(reexec())
	}
	if state := os.Getenv(ensureAndDie); state != "" {
		if err := newDriver(state).Ensure(spec(1)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	}
	os.Exit(m.Run())
}

func reexec() int {
	folder, err := os.MkdirTemp("", "cairn-compute")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(folder)
	echo := filepath.Join(folder, "cairn-echo")
	build := exec.Command("go", "build", "-o", echo, "cairn/cmd/cairn-echo")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build cairn-echo: %v\n%s", err, out)
		return 1
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=ct-%d", inNamespaceOfItsOwn, os.Getpid()), echoProgram+"="+echo)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "in a namespace of its own:", err)
		return 1
	}
	return 0
}

func newDriver(state string) *Netns {
	echo := os.Getenv(echoProgram)
	d, err := NewNetns(Config{
		State: state, Prefix: os.Getenv(inNamespaceOfItsOwn),
		Commands: map[string][]string{"echo": {echo}, "other": {echo, "-name", "other"}},
	})
	if err != nil {
		panic(err)
	}
	return d
}

func spec(port uint32) Spec {
	return Spec{
		ID: fmt.Sprintf("0b2d4f66-6d0c-4b1e-9d53-%012d", port), Port: port, Name: fmt.Sprintf("web%d", port),
		Driver: "netns", Command: "echo", MAC: net.HardwareAddr{2, 0xca, 0, 0, 0, byte(port)},
		Address: netip.AddrFrom4([4]byte{198, 51, 100, byte(port)}), Gateway: netip.MustParseAddr("169.254.0.1"),
		Running: true, Generation: 1, Zone: "test-1",
	}
}

// host is one hypervisor with the driver on it; its cleanup checks that nothing
// stays behind.
type host struct {
	*testing.T
	*Netns
	state string
}

func newHost(t *testing.T) *host {
	h := &host{T: t, state: t.TempDir()}
	h.Netns = newDriver(h.state)
	t.Cleanup(func() {
		machines, err := h.List()
		if err != nil {
			t.Error(err)
		}
		for _, m := range machines {
			if err := h.Remove(m.ID); err != nil {
				t.Error(err)
			}
		}
		h.nothingIsLeft()
	})
	return h
}

func (h *host) nothingIsLeft() {
	h.Helper()
	names, _ := filepath.Glob(namespacePath(h.cfg.Prefix + "-*"))
	links, _ := netlink.LinkList()
	ids, _ := listIDs(h.state)
	if len(names) != 0 || len(links) != 1 || len(ids) != 0 {
		h.Errorf("left: namespaces %v, folders %v, %d links (want lo alone)", names, ids, len(links))
	}
}

func (h *host) ensure(s Spec) {
	h.Helper()
	if err := h.Ensure(s); err != nil {
		h.Fatal(err)
	}
}

func (h *host) machine(id string) Machine {
	h.Helper()
	machines, err := h.List()
	if err != nil {
		h.Fatal(err)
	}
	for _, m := range machines {
		if m.ID == id {
			return m
		}
	}
	h.Fatalf("machine %s is not listed", id)
	return Machine{}
}

// reach does what the port's program and the router do elsewhere: it answers
// for the gateway and routes to the instance.
func (h *host) reach(s Spec) {
	h.Helper()
	link, err := netlink.LinkByName(PortLink(s.Port))
	if err != nil {
		h.Fatal(err)
	}
	if addresses, _ := netlink.AddrList(link, netlink.FAMILY_ALL); len(addresses) != 0 {
		h.Errorf("the host end has addresses of its own: %v", addresses)
	}
	if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: hostNet(s.Gateway)}); err != nil {
		h.Fatal(err)
	}
	defer func() { _ = netlink.AddrDel(link, &netlink.Addr{IPNet: hostNet(s.Gateway)}) }()
	if err := netlink.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: hostNet(s.Address), Src: s.Gateway.AsSlice(), Scope: netlink.SCOPE_LINK}); err != nil {
		h.Fatal(err)
	}
	client := http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	var body []byte
	h.eventually(func() error {
		response, err := client.Get("http://" + s.Address.String() + "/hello")
		if err != nil {
			return err
		}
		defer response.Body.Close()
		body, err = io.ReadAll(response.Body)
		return err
	})
	if want := fmt.Sprintf(`"instance":%q,"peer":"169.254.0.1:`, s.Name); !strings.Contains(string(body), want) {
		h.Errorf("answer %s does not hold %s", body, want)
	}
}

func (h *host) eventually(try func() error) {
	h.Helper()
	deadline := time.Now().Add(10 * time.Second)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			h.Fatal(err)
		}
		<-tick.C
	}
}

func TestLifeOfAMachine(t *testing.T) {
	h := newHost(t)
	s := spec(1)
	h.ensure(s)
	h.reach(s)
	first := h.machine(s.ID)
	if first.State != StateRunning || first.PID == 0 || first.SpecHash != s.Hash() || first.Generation != 1 || first.Port != 1 {
		t.Fatalf("listed as %+v", first)
	}
	log, err := os.ReadFile(LogPath(h.state, s.ID))
	if err != nil || !strings.Contains(string(log), `"protocol":"http","peer":"169.254.0.1:`) {
		t.Errorf("log %q, %v: no line with the peer", log, err)
	}

	// A restarted agent finds it and changes nothing.
	h.Netns = newDriver(h.state)
	s.Generation = 2
	h.ensure(s)
	if m := h.machine(s.ID); m.PID != first.PID || m.Generation != 2 || m.State != StateRunning {
		t.Errorf("after a restart of the agent: %+v, was %+v", m, first)
	}

	s.Running = false
	h.ensure(s)
	if m := h.machine(s.ID); m.State != StateStopped || m.PID != 0 || len(inits(h.Namespace(1))) != 0 {
		t.Errorf("stopped: %+v", m)
	}
	link, err := netlink.LinkByName(PortLink(1))
	if err != nil || link.Attrs().OperState == netlink.OperUp {
		t.Errorf("stopped: host end %v, %v; want it without carrier", link, err)
	}

	s.Running = true
	h.ensure(s)
	h.reach(s)
	if m := h.machine(s.ID); m.State != StateRunning || m.PID == first.PID {
		t.Errorf("started again: %+v", m)
	}

	for range 2 {
		if err := h.Remove(s.ID); err != nil {
			t.Fatal(err)
		}
	}
	h.nothingIsLeft()
}

// The guest's facts are what the Spec says, also after somebody changed them.
// guestLinks are the names and aliases of a machine's links but lo.
func (h *host) guestLinks(s Spec) map[string]string {
	h.Helper()
	guest, err := handleIn(h.namespaceOf(s))
	if err != nil {
		h.Fatal(err)
	}
	defer guest.Close()
	links, err := guest.LinkList()
	if err != nil {
		h.Fatal(err)
	}
	found := map[string]string{}
	for _, l := range links {
		if a := l.Attrs(); a.Name != "lo" {
			found[a.Name] = fmt.Sprintf("%s %d %s", a.HardwareAddr, a.MTU, a.Alias)
		}
	}
	return found
}

func TestPrivateInterfacesComeAndGoWhileItRuns(t *testing.T) {
	h := newHost(t)
	s := spec(1)
	h.ensure(s)
	pid := h.machine(s.ID).PID
	leased := Interface{Port: 31, MAC: net.HardwareAddr{2, 0xca, 0, 0, 0, 31}, MTU: 1450, Leased: true}
	bare := Interface{Port: 32, MAC: net.HardwareAddr{2, 0xca, 0, 0, 0, 32}}
	const public = "02:ca:00:00:00:01 1500 "
	for _, step := range []struct {
		networks []Interface
		want     map[string]string
	}{
		{[]Interface{leased, bare}, map[string]string{"eth0": public, "eth1": "02:ca:00:00:00:1f 1450 lease", "eth2": "02:ca:00:00:00:20 1500 "}},
		{[]Interface{bare}, map[string]string{"eth0": public, "eth2": "02:ca:00:00:00:20 1500 "}},
		{[]Interface{bare, leased}, map[string]string{"eth0": public, "eth1": "02:ca:00:00:00:1f 1450 lease", "eth2": "02:ca:00:00:00:20 1500 "}},
		{nil, map[string]string{"eth0": public}},
	} {
		s.Networks = step.networks
		s.Generation++
		h.ensure(s)
		if got := h.guestLinks(s); !maps.Equal(got, step.want) {
			t.Errorf("links %v, want %v", got, step.want)
		}
		for _, port := range []uint32{31, 32} {
			_, err := netlink.LinkByName(PortLink(port))
			if wanted := slices.ContainsFunc(step.networks, func(i Interface) bool { return i.Port == port }); wanted != (err == nil) {
				t.Errorf("host end of port %d is there: %v", port, err == nil)
			}
		}
		if m := h.machine(s.ID); m.PID != pid || m.State != StateRunning {
			t.Errorf("the machine was restarted: %+v", m)
		}
		h.reach(s)
	}
}

// addresses6 of a guest's link, link-local ones included, and the gateway of IPv6.
func (h *host) addresses6(s Spec, link string) (addresses []string, gateway string) {
	h.Helper()
	guest, err := handleIn(h.namespaceOf(s))
	if err != nil {
		h.Fatal(err)
	}
	defer guest.Close()
	l, err := guest.LinkByName(link)
	if err != nil {
		h.Fatal(err)
	}
	addrs, err := guest.AddrList(l, netlink.FAMILY_V6)
	if err != nil {
		h.Fatal(err)
	}
	for _, a := range addrs {
		addresses = append(addresses, a.IPNet.String())
	}
	routes, err := guest.RouteList(l, netlink.FAMILY_V6)
	if err != nil {
		h.Fatal(err)
	}
	for _, r := range routes {
		if r.Gw != nil {
			gateway = r.Gw.String()
		}
	}
	return addresses, gateway
}

// An IPv6 address comes, stays while the machine changes, and goes. Links without
// one speak none.
func TestAnIPv6AddressComesAndGoes(t *testing.T) {
	h := newHost(t)
	s := spec(1)
	h.ensure(s)
	if got, gw := h.addresses6(s, guestLink); len(got) != 0 || gw != "" {
		t.Fatalf("without an IPv6 address it has %v by %s", got, gw)
	}
	s.Address6, s.Gateway6 = netip.MustParseAddr("2001:db8:1::1"), netip.MustParseAddr("fe80::cb:ff:fe00:1")
	check := func(when string) {
		t.Helper()
		h.ensure(s)
		if got, gw := h.addresses6(s, guestLink); len(got) != 1 || got[0] != "2001:db8:1::1/128" || gw != "fe80::cb:ff:fe00:1" {
			t.Errorf("%s: %v by %s", when, got, gw)
		}
	}
	check("given")
	check("again")
	s.Networks = []Interface{{Port: 7, MAC: net.HardwareAddr{2, 0xca, 0, 0, 0, 7}}}
	check("with a private network")
	if got, _ := h.addresses6(s, "eth1"); len(got) != 0 {
		t.Errorf("the other link has %v", got)
	}
	s.Running = false
	h.ensure(s)
	s.Running = true
	check("started again")
	s.Address6, s.Gateway6 = netip.Addr{}, netip.Addr{}
	h.ensure(s)
	if got, gw := h.addresses6(s, guestLink); len(got) != 0 || gw != "" {
		t.Errorf("taken away: %v by %s", got, gw)
	}
}

func TestAMachineWithoutAPublicPort(t *testing.T) {
	h := newHost(t)
	s := spec(1)
	s.Port, s.MAC, s.Address = 0, nil, netip.Addr{}
	s.Networks = []Interface{{Port: 31, MAC: net.HardwareAddr{2, 0xca, 0, 0, 0, 31}}}
	h.ensure(s)
	if got := h.guestLinks(s); len(got) != 1 || got["eth1"] == "" {
		t.Errorf("links %v", got)
	}
	if m := h.machine(s.ID); m.State != StateRunning {
		t.Errorf("%+v", m)
	}
	other := spec(2)
	other.Networks = s.Networks
	if err := h.Ensure(other); err == nil || !strings.Contains(err.Error(), "port 31 still belongs to machine "+s.ID) {
		t.Errorf("a port of another machine: %v", err)
	}
}

func TestEnsureRepairsLinks(t *testing.T) {
	h := newHost(t)
	s := spec(1)
	s.MTU = 1400
	h.ensure(s)
	pid := h.machine(s.ID).PID
	guest, err := handleIn(h.Namespace(1))
	if err != nil {
		t.Fatal(err)
	}
	defer guest.Close()
	eth0, err := guest.LinkByName(guestLink)
	if err != nil {
		t.Fatal(err)
	}
	_ = guest.LinkSetMTU(eth0, 1300)
	_ = guest.LinkSetHardwareAddr(eth0, net.HardwareAddr{2, 9, 9, 9, 9, 9})
	_ = guest.AddrReplace(eth0, &netlink.Addr{IPNet: hostNet(netip.MustParseAddr("10.9.9.9"))})
	_ = guest.LinkSetDown(eth0)

	h.ensure(s)
	eth0, _ = guest.LinkByName(guestLink)
	addresses, _ := guest.AddrList(eth0, netlink.FAMILY_ALL)
	routes, _ := guest.RouteList(eth0, netlink.FAMILY_V4)
	if eth0.Attrs().MTU != 1400 || eth0.Attrs().HardwareAddr.String() != s.MAC.String() {
		t.Errorf("mtu %d, mac %s", eth0.Attrs().MTU, eth0.Attrs().HardwareAddr)
	}
	if len(addresses) != 1 || addresses[0].IPNet.String() != "198.51.100.1/32" {
		t.Errorf("addresses %v, want the /32 alone", addresses)
	}
	if len(routes) != 1 || routes[0].Gw.String() != "169.254.0.1" {
		t.Errorf("routes %v, want the default alone", routes)
	}
	if got := h.machine(s.ID).PID; got != pid {
		t.Errorf("workload %d became %d", pid, got)
	}
	h.reach(s)
}

// Whatever a crash leaves, the next Ensure ends in one working machine.
func TestEnsureRepairsWhatACrashLeaves(t *testing.T) {
	s := spec(1)
	for name, leave := range map[string]func(h *host){
		"a name without namespace": func(h *host) {
			_ = os.MkdirAll(namespaceFolder, 0o755)
			if err := os.WriteFile(namespacePath(h.Namespace(1)), nil, 0o444); err != nil {
				h.Fatal(err)
			}
		},
		"a namespace alone": func(h *host) {
			if err := createNamespace(h.Namespace(1)); err != nil {
				h.Fatal(err)
			}
		},
		"a workload not written down": func(h *host) {
			h.ensure(s)
			r, _ := readRecord(h.state, s.ID)
			r.Process, r.Hash = process{}, ""
			if err := writeRecord(h.state, r); err != nil {
				h.Fatal(err)
			}
			if m := h.machine(s.ID); m.State != StateError {
				h.Errorf("half made machine is listed as %+v", m)
			}
		},
		"an unreadable record": func(h *host) {
			h.ensure(s)
			if err := os.WriteFile(recordPath(h.state, s.ID), []byte("{"), 0o600); err != nil {
				h.Fatal(err)
			}
			if m := h.machine(s.ID); m.State != StateError {
				h.Errorf("unreadable machine is listed as %+v", m)
			}
		},
		"a workload that ended": func(h *host) {
			h.ensure(s)
			_ = syscall.Kill(h.machine(s.ID).PID, syscall.SIGKILL)
			h.eventually(func() error {
				if m := h.machine(s.ID); m.State != StateStopped || m.Err == "" {
					return fmt.Errorf("dead machine is listed as %+v", m)
				}
				return nil
			})
		},
		"a namespace that lost its name": func(h *host) {
			h.ensure(s)
			if err := deleteNamespace(h.Namespace(1)); err != nil {
				h.Fatal(err)
			}
			if m := h.machine(s.ID); m.State != StateError {
				h.Errorf("nameless machine is listed as %+v", m)
			}
		},
		"no host end": func(h *host) {
			h.ensure(s)
			if err := unwire(1); err != nil {
				h.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			leave(h)
			h.ensure(s)
			h.reach(s)
			m := h.machine(s.ID)
			if found := inits(h.Namespace(1)); m.State != StateRunning || len(found) != 1 || found[0].PID != m.PID {
				t.Errorf("machine %+v, workloads %v; want that one alone", m, found)
			}
		})
	}
}

func TestUserDataRunsFirstAndItsChildrenEndWithTheMachine(t *testing.T) {
	h := newHost(t)
	s := spec(1)
	s.UserData = []byte("#!/bin/sh\necho first in $CAIRN_INSTANCE_NAME\nsleep 1000 &\nexit 3\n")
	h.ensure(s)
	h.reach(s)
	log, _ := os.ReadFile(LogPath(h.state, s.ID))
	if !strings.HasPrefix(string(log), "first in web1\nuser data ended with status 3\n{") {
		t.Errorf("log %q", log)
	}
	namespace, err := namespaceInode(namespacePath(h.Namespace(1)))
	if err != nil {
		t.Fatal(err)
	}
	if got := inhabitants(namespace); got != 2 {
		t.Fatalf("%d processes in the namespace, want the workload and its child", got)
	}
	if err := h.Remove(s.ID); err != nil {
		t.Fatal(err)
	}
	if got := inhabitants(namespace); got != 0 {
		t.Errorf("%d processes outlived their machine", got)
	}
}

func inhabitants(namespace uint64) int {
	n := 0
	paths, _ := filepath.Glob("/proc/[0-9]*/ns/net")
	for _, p := range paths {
		if inode, err := namespaceInode(p); err == nil && inode == namespace {
			n++
		}
	}
	return n
}

func TestManyAtOnce(t *testing.T) {
	h := newHost(t)
	var all sync.WaitGroup
	for port := uint32(1); port <= 4; port++ {
		for range 4 {
			all.Go(func() {
				if err := h.Ensure(spec(port)); err != nil {
					t.Error(err)
				}
			})
		}
	}
	all.Wait()
	for port := uint32(1); port <= 4; port++ {
		if found := inits(h.Namespace(port)); len(found) != 1 {
			t.Errorf("port %d has workloads %v, want one", port, found)
		}
		h.reach(spec(port))
	}
	twin := spec(1)
	twin.ID = "another"
	if err := h.Ensure(twin); err == nil {
		t.Error("two machines share a port")
	}
}

func TestAMachineOutlivesItsAgent(t *testing.T) {
	h := newHost(t)
	agent := exec.Command("/proc/self/exe")
	agent.Env = append(os.Environ(), ensureAndDie+"="+h.state)
	agent.Stderr = os.Stderr
	if err := agent.Run(); err == nil {
		t.Fatal("the agent was not killed")
	}
	s := spec(1)
	if m := h.machine(s.ID); m.State != StateRunning {
		t.Fatalf("after its agent's death: %+v", m)
	}
	h.reach(s)
}
