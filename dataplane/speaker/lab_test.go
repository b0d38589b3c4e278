// SPDX-License-Identifier: Apache-2.0

//go:build lab

package speaker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"cairn/bpf"
	"cairn/dataplane/announce"
	"cairn/dataplane/host"
)

// The rig of these tests: a router (BIRD or FRR) and a host with the real
// programs on its uplink, each in a namespace without a name. Namespaces, the
// host's bpffs and all processes end with the test, however it ends.

var (
	routerEnd = netip.MustParseAddr("10.64.0.0")
	hostEnd   = netip.MustParseAddr("10.64.0.1")
	binary    string
)

func TestMain(m *testing.M) {
	folder, err := os.MkdirTemp("", "cbgp-bin-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	binary = filepath.Join(folder, "cairn-bgpd")
	build := exec.Command("go", "build", "-o", binary, "cairn/cmd/cairn-bgpd")
	build.Stderr = os.Stderr
	code := 1
	if err := build.Run(); err == nil {
		code = m.Run()
	}
	os.RemoveAll(folder)
	os.Exit(code)
}

// space is a thread that lives in namespaces of its own. Processes started from
// it live there too and are killed when it ends.
type space struct {
	work chan func()
	net  *netlink.Handle
}

func newSpace(t testing.TB) *space {
	t.Helper()
	s := &space{work: make(chan func())}
	ready := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with its namespaces
		err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS)
		if err == nil {
			err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
		}
		if err == nil {
			err = unix.Mount("sysfs", "/sys", "sysfs", 0, "")
		}
		ready <- err
		for f := range s.work {
			f()
		}
	}()
	must(t, <-ready)
	t.Cleanup(func() { close(s.work) })
	s.do(t, func() error {
		ns, err := netns.Get()
		if err != nil {
			return err
		}
		defer ns.Close()
		if s.net, err = netlink.NewHandleAt(ns); err != nil {
			return err
		}
		lo, err := s.net.LinkByName("lo")
		if err != nil {
			return err
		}
		return s.net.LinkSetUp(lo)
	})
	t.Cleanup(s.net.Close)
	return s
}

func (s *space) do(t testing.TB, f func() error) {
	t.Helper()
	done := make(chan error)
	s.work <- func() { done <- f() }
	must(t, <-done)
}

// start runs a program in the space until the test ends.
func (s *space) start(t testing.TB, argv ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	s.do(t, cmd.Start)
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			kill(t, cmd, syscall.SIGKILL)
		}
		if t.Failed() {
			t.Logf("%s said:\n%s", filepath.Base(argv[0]), output.String())
		}
	})
	return cmd
}

func kill(t testing.TB, cmd *exec.Cmd, signal syscall.Signal) {
	t.Helper()
	must(t, cmd.Process.Signal(signal))
	if err := cmd.Wait(); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			t.Error(err)
		}
	}
}

type rig struct {
	t            testing.TB
	folder       string
	router, host *space
	file         string
	dataplane    host.Config
	speaker      *exec.Cmd
	revision     uint64
}

func newRig(t testing.TB, router string) *rig {
	t.Helper()
	folder, err := os.MkdirTemp("", "cbgp-")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(folder) })
	r := &rig{t: t, folder: folder, router: newSpace(t), host: newSpace(t), file: filepath.Join(folder, "announcements.json")}
	r.wire()
	r.host.do(t, func() error {
		r.dataplane = host.Config{Pins: filepath.Join(folder, "bpf"), Uplink: "uplink", Endpoint: hostEnd}
		if err := host.EnsureBPFFS(r.dataplane.Pins); err != nil {
			return err
		}
		return r.openDataplane()
	})
	switch router {
	case "frr":
		r.startFRR()
	case "bird":
		r.startBIRD("")
	}
	return r
}

// wire lays the veth between router and host. Its router's end must not leave
// checksums to a device that there is not: XDP would see them unfinished.
func (r *rig) wire() {
	var hostSpace int
	r.host.do(r.t, func() error { ns, err := netns.Get(); hostSpace = int(ns); return err })
	defer unix.Close(hostSpace)
	r.router.do(r.t, func() error {
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "hv1", MTU: 1600}, PeerName: "uplink",
			PeerNamespace: netlink.NsFd(hostSpace), PeerMTU: 1600}
		if err := r.router.net.LinkAdd(veth); err != nil {
			return err
		}
		if out, err := exec.Command("ethtool", "-K", "hv1", "tx", "off").CombinedOutput(); err != nil {
			return fmt.Errorf("ethtool: %w: %s", err, out)
		}
		return nil
	})
	for _, end := range []struct {
		space   *space
		name    string
		address netip.Addr
	}{{r.router, "hv1", routerEnd}, {r.host, "uplink", hostEnd}} {
		dev, err := end.space.net.LinkByName(end.name)
		must(r.t, err)
		address, err := netlink.ParseAddr(end.address.String() + "/31")
		must(r.t, err)
		must(r.t, end.space.net.AddrAdd(dev, address))
		must(r.t, end.space.net.LinkSetUp(dev))
	}
}

// openDataplane is what an agent does at its start; then it is gone again.
func (r *rig) openDataplane() error {
	h, err := host.Open(r.dataplane)
	if err != nil {
		return err
	}
	mac := [6]byte{2, 0xCA, 0, 0, 0, 1}
	const service, backend, hop = 1, 1, 1
	key := bpf.Vip4Key{Ip: bpf.BE32(vip), Port: bpf.BE16(80), Proto: 6}
	word, bit := bpf.VIPBit(vip)
	for _, put := range []func() error{
		func() error { return h.Maps.Nexthops.Put(uint32(hop), bpf.Nexthop{Mac: mac, Flags: bpf.NexthopValid}) },
		func() error {
			return h.Maps.Backends.Put(uint32(backend), bpf.Backend{
				Endpoint: bpf.BE32(netip.MustParseAddr("10.64.0.3")), Nexthop: hop, Flags: bpf.BackendValid, Mac: mac})
		},
		func() error { return h.Maps.Slots.Put(uint32(0), bpf.Slot(backend, 0)) },
		func() error {
			return h.Maps.Svc.Put(uint32(1), bpf.Svc{Vip: bpf.IP16(vip), Port: bpf.BE16(80), Proto: 6, Id: service})
		},
		func() error { return h.Maps.VipBits.Put(word, bit) },
		func() error { return h.Maps.Vipaddr4.Put(bpf.BE32(vip), uint32(1)) },
		func() error { return h.Maps.Vip4.Put(key, uint32(1)) },
	} {
		if err := put(); err != nil {
			return errors.Join(err, h.Close())
		}
	}
	return h.Close()
}

// breakVIP takes the backend out of the service's only slot, or puts it back.
func (r *rig) breakVIP(broken bool) {
	r.host.do(r.t, func() error {
		h, err := host.Open(r.dataplane)
		if err != nil {
			return err
		}
		owner := uint32(1)
		if broken {
			owner = 0
		}
		return errors.Join(h.Maps.Slots.Put(uint32(0), bpf.Slot(owner, 0)), h.Close())
	})
}

// addPort makes a veth and attaches the port's programs to it.
func (r *rig) addPort(id uint32) {
	name := fmt.Sprintf("cp%d", id)
	must(r.t, r.host.net.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: name + "p"}))
	dev, err := r.host.net.LinkByName(name)
	must(r.t, err)
	r.host.do(r.t, func() error {
		h, err := host.Open(r.dataplane)
		if err != nil {
			return err
		}
		return errors.Join(h.AttachPort(dev.Attrs().Index, id), h.Close())
	})
}

func (r *rig) removePort(id uint32) {
	dev, err := r.host.net.LinkByName(fmt.Sprintf("cp%d", id))
	must(r.t, err)
	must(r.t, r.host.net.LinkDel(dev))
}

// detachUplink takes the XDP program off the uplink, as by hand. The pin stays.
func (r *rig) detachUplink() {
	r.host.do(r.t, func() error {
		l, err := link.LoadPinnedLink(filepath.Join(r.dataplane.Pins, "v1", "links", "uplink"), nil)
		if err != nil {
			return err
		}
		return errors.Join(l.Detach(), l.Close())
	})
}

func (r *rig) want(wanted ...announce.Wanted) {
	r.t.Helper()
	r.revision++
	must(r.t, announce.Write(r.file, announce.Set{Revision: r.revision, Wanted: wanted}))
}

func (r *rig) socket() string { return filepath.Join(r.folder, "bgpd.sock") }

func (r *rig) startSpeaker(flags ...string) {
	r.t.Helper()
	r.speaker = r.host.start(r.t, append([]string{binary, "--state", filepath.Join(r.folder, "bgpd"),
		"--pins", r.dataplane.Pins, "--socket", r.socket(), "--announcements", r.file,
		"--local-as", "65001", "--peer-as", "65000", "--router-id", hostEnd.String(), "--peer", routerEnd.String()}, flags...)...)
}

// memory is the speaker's resident set.
func (r *rig) memory() string {
	r.t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", r.speaker.Process.Pid))
	must(r.t, err)
	_, rest, _ := strings.Cut(string(data), "VmRSS:")
	line, _, _ := strings.Cut(rest, "\n")
	return strings.TrimSpace(line)
}

func (r *rig) status() (announce.Status, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	return announce.Query(ctx, r.socket())
}

// nextHop asks the router's kernel where it sends packets for a prefix; the
// address is invalid if nowhere.
func (r *rig) nextHop(p netip.Prefix) netip.Addr {
	r.t.Helper()
	dst := &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), 32)}
	routes, err := r.router.net.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Dst: dst}, netlink.RT_FILTER_DST)
	if err != nil {
		if errors.Is(err, netlink.ErrDumpInterrupted) {
			return netip.Addr{}
		}
		r.t.Fatal(err)
	}
	if len(routes) == 0 {
		return netip.Addr{}
	}
	hop, _ := netip.AddrFromSlice(routes[0].Gw.To4())
	return hop
}

// fib waits until the router's kernel has the route or lacks it, and returns
// how long that took.
func (r *rig) fib(p netip.Prefix, present bool) time.Duration {
	r.t.Helper()
	return r.wait(fmt.Sprintf("%s in the router: %v", p, present), func() bool {
		hop := r.nextHop(p)
		if hop.IsValid() && hop != hostEnd {
			r.t.Fatalf("%s goes to %s", p, hop)
		}
		return hop.IsValid() == present
	})
}

func (r *rig) wait(what string, ok func() bool) time.Duration {
	r.t.Helper()
	begin := time.Now()
	for !ok() {
		if time.Since(begin) > 20*time.Second {
			status, err := r.status()
			r.t.Fatalf("%s: not within 20 s; speaker: %+v, %v", what, status, err)
		}
		<-time.After(2 * time.Millisecond)
	}
	return time.Since(begin)
}

func (r *rig) startBIRD(more string) {
	config := filepath.Join(r.folder, "bird.conf")
	must(r.t, os.WriteFile(config, []byte(`log stderr all;
router id 192.0.2.1;
protocol device {}
protocol kernel { ipv4 { import none; export where source = RTS_BGP; }; }
protocol bfd { interface "hv1" { interval 100 ms; multiplier 3; }; }
protocol static { ipv4; route 192.0.2.0/24 blackhole; }
protocol bgp hv1 {
	local 10.64.0.0 as 65000;
	neighbor 10.64.0.1 as 65001;
	direct; passive on; bfd on; hold time 3;
	error wait time 1, 3;
	ipv4 { import all; export all; };
	`+more+`
}
`), 0o644))
	r.router.start(r.t, "/usr/sbin/bird", "-f", "-c", config, "-s", filepath.Join(r.folder, "bird.ctl"), "-P", filepath.Join(r.folder, "bird.pid"))
}

func (r *rig) startFRR() {
	configs := map[string]string{
		"zebra": "",
		"bfdd":  "bfd\n profile fast\n  detect-multiplier 3\n  receive-interval 100\n  transmit-interval 100\n",
		"bgpd": `router bgp 65000
 bgp router-id 192.0.2.1
 no bgp ebgp-requires-policy
 no bgp network import-check
 timers bgp 1 3
 neighbor 10.64.0.1 remote-as 65001
 neighbor 10.64.0.1 passive
 neighbor 10.64.0.1 timers connect 1
 neighbor 10.64.0.1 advertisement-interval 0
 neighbor 10.64.0.1 bfd profile fast
 address-family ipv4 unicast
  network 192.0.2.0/24
`,
	}
	folder := filepath.Join(r.folder, "frr")
	must(r.t, os.Mkdir(folder, 0o755))
	must(r.t, os.Chmod(r.folder, 0o755))
	for name, text := range configs {
		must(r.t, os.WriteFile(filepath.Join(folder, name+".conf"), []byte("log stdout informational\n"+text), 0o644))
	}
	frr, err := user.Lookup("frr")
	must(r.t, err)
	uid, err := strconv.Atoi(frr.Uid)
	must(r.t, err)
	gid, err := strconv.Atoi(frr.Gid)
	must(r.t, err)
	must(r.t, os.Chown(folder, uid, gid))
	zserv := filepath.Join(folder, "zserv.api")
	for _, name := range []string{"zebra", "bfdd", "bgpd"} {
		argv := []string{"/usr/lib/frr/" + name, "-f", filepath.Join(folder, name+".conf"), "-i", filepath.Join(folder, name+".pid"),
			"-z", zserv, "--vty_socket", folder, "-A", "127.0.0.1", "-P", "0"}
		if name == "bfdd" {
			argv = append(argv, "--bfdctl", filepath.Join(folder, "bfdd.sock"))
		}
		r.router.start(r.t, argv...)
		if name == "zebra" { // the others try again after 10 s only
			r.wait("zebra listens", func() bool { _, err := os.Stat(zserv); return err == nil })
		}
	}
}

func (r *rig) lookUp(bfd bool) {
	r.t.Helper()
	took := r.wait("session and BFD up", func() bool {
		s, err := r.status()
		return err == nil && len(s.Sessions) == 1 && s.Sessions[0].Established && (!bfd || s.Sessions[0].BFD == "up")
	})
	r.t.Logf("session up after %v", took.Round(time.Millisecond))
}

func forEachRouter(t *testing.T, f func(t *testing.T, router string)) {
	for router := range strings.FieldsSeq("bird frr") {
		t.Run(router, func(t *testing.T) {
			t.Parallel()
			f(t, router)
		})
	}
}
