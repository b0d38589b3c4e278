// SPDX-License-Identifier: Apache-2.0

//go:build program

package load

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"cairn/bpf/packet"
)

const (
	routerMAC = "02:bb:00:00:00:01"
	uplinkMAC = "02:aa:00:00:00:01"
	xdpTX     = 3
	xdpDrop   = 1
)

func pins(t *testing.T) string {
	folder := filepath.Join("/sys/fs/bpf", "cairn-load-test", strings.ReplaceAll(t.Name(), "/", "-"))
	t.Cleanup(func() { _ = os.RemoveAll(folder); _ = os.Remove(filepath.Dir(folder)) })
	return folder
}

// Who finds only the pins can send packets to every VIP over both protocols.
func TestPinnedProgramServesWhatWasAskedFor(t *testing.T) {
	folder := pins(t)
	n, err := Open(Want{VIPs: 3, Targets: 5, Protocols: []uint8{TCP, UDP}})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Pin(folder); err != nil {
		t.Fatal(err)
	}
	if err := n.Pin(folder); err == nil || !strings.Contains(err.Error(), "already") {
		t.Errorf("pinned over what was there: %v", err)
	}
	n.Close()
	p, err := ebpf.LoadPinnedProgram(filepath.Join(folder, "v1/progs/uplink"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for vip, want := range map[string]uint32{"203.0.0.0:80": xdpTX, "203.0.0.2:80": xdpTX, "203.0.0.2:81": xdpDrop, "203.0.0.3:80": 2} {
		for _, build := range []func(src, dst string) packet.Packet{packet.TCP, packet.UDP} {
			in := build("192.0.2.7:40000", vip).MACs(routerMAC, uplinkMAC).Bytes()
			verdict, out, err := p.Test(in)
			if err != nil || verdict != want {
				t.Errorf("%s: verdict %d, want %d (%v)", vip, verdict, want, err)
			}
			if got, _ := netip.AddrFromSlice(out[30:34]); verdict == xdpTX && got != Other {
				t.Errorf("%s: sent to %s, not %s", vip, got, Other)
			}
		}
	}
	if err := Unload(folder); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(folder, "v1")); !os.IsNotExist(err) {
		t.Errorf("something is left: %v", err)
	}
}

func TestUnloadLeavesAnAgentsPinsAlone(t *testing.T) {
	folder := pins(t)
	agents := filepath.Join(folder, "v1", "progs")
	if err := os.MkdirAll(agents, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := Unload(folder); err == nil {
		t.Error("an agent's pins were removed")
	}
	if _, err := os.Stat(agents); err != nil {
		t.Error(err)
	}
}

func TestAttachedToADevice(t *testing.T) {
	folder := pins(t)
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "cload0"}, PeerName: "cload1"}
	if err := netlink.LinkAdd(veth); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = netlink.LinkDel(veth) })
	n, err := Open(Want{VIPs: 1, Targets: 1, Protocols: []uint8{TCP}})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if err := n.Pin(folder); err != nil {
		t.Fatal(err)
	}
	if err := n.Attach(folder, "no-such"); err == nil {
		t.Error("attached to nothing")
	}
	if err := n.Attach(folder, "cload0"); err != nil {
		t.Fatal(err)
	}
	l, err := netlink.LinkByName("cload0")
	if err != nil {
		t.Fatal(err)
	}
	if x := l.Attrs().Xdp; x == nil || !x.Attached || !strings.Contains(n.String(), l.Attrs().HardwareAddr.String()) {
		t.Errorf("device %+v, said:\n%s", x, n)
	}
	pinned, err := link.LoadPinnedLink(filepath.Join(folder, "v1/links/uplink"), nil)
	if err != nil {
		t.Fatal(err)
	}
	pinned.Close()
	if err := Unload(folder); err != nil {
		t.Fatal(err)
	}
	n.Close()
	for end := time.Now().Add(10 * time.Second); ; { // the kernel takes the link down behind the pin
		if l, err = netlink.LinkByName("cload0"); err != nil {
			t.Fatal(err)
		}
		if l.Attrs().Xdp == nil || !l.Attrs().Xdp.Attached {
			return
		}
		if time.Now().After(end) {
			t.Fatal("still attached")
		}
	}
}

func TestWantIsChecked(t *testing.T) {
	for _, w := range []Want{
		{}, {VIPs: 1, Targets: 1}, {VIPs: 1, Protocols: []uint8{TCP}}, {VIPs: 1 << 20, Targets: 1, Protocols: []uint8{TCP}},
		{VIPs: 1, Targets: 1 << 20, Protocols: []uint8{TCP}}, {VIPs: -1, Targets: 1, Protocols: []uint8{TCP}},
	} {
		if n, err := Open(w); err == nil {
			n.Close()
			t.Errorf("%+v was taken", w)
		}
	}
}
