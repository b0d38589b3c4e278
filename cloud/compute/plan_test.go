// SPDX-License-Identifier: Apache-2.0

package compute

import (
	"maps"
	"net"
	"net/netip"
	"strings"
	"testing"
)

func TestPlan(t *testing.T) {
	running := process{PID: 7, Start: 1}
	stray := process{PID: 9, Start: 2}
	for _, c := range []struct {
		name string
		want Spec
		have found
		plan string
	}{
		{"nothing yet", Spec{Running: true, Command: "echo"}, found{},
			"make namespace, wire links, start workload"},
		{"created stopped", Spec{Command: "echo"}, found{},
			"make namespace, wire links"},
		{"as wanted", Spec{Running: true, Command: "echo"}, found{namespace: true, command: "echo", workload: running},
			"wire links"},
		{"ended by itself", Spec{Running: true, Command: "echo"}, found{namespace: true, command: "echo"},
			"wire links, start workload"},
		{"stop", Spec{Command: "echo"}, found{namespace: true, command: "echo", workload: running},
			"end process 7, wire links"},
		{"other workload", Spec{Running: true, Command: "other"}, found{namespace: true, command: "echo", workload: running},
			"end process 7, wire links, start workload"},
		{"started but never written down", Spec{Running: true, Command: "echo"}, found{namespace: true, strays: []process{stray}},
			"end process 9, wire links, start workload"},
		{"namespace lost its name", Spec{Running: true, Command: "echo"}, found{command: "echo", workload: running},
			"end process 7, make namespace, wire links, start workload"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var lines []string
			for _, s := range plan(c.want, c.have) {
				lines = append(lines, s.String())
			}
			if got := strings.Join(lines, ", "); got != c.plan {
				t.Errorf("plan: %s\nwant: %s", got, c.plan)
			}
		})
	}
}

func TestHashSeesEveryFieldButTheGeneration(t *testing.T) {
	base := Spec{ID: "a", Port: 1, Name: "n", Driver: "netns", Command: "echo", Address: netip.MustParseAddr("198.51.100.1"),
		Gateway: netip.MustParseAddr("169.254.0.1"), MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}}
	later := base
	later.Generation = 9
	if base.Hash() != later.Hash() {
		t.Error("the generation changes the hash")
	}
	seen := map[string]string{base.Hash(): "base"}
	for name, change := range map[string]func(*Spec){
		"id": func(s *Spec) { s.ID = "b" }, "port": func(s *Spec) { s.Port = 2 }, "name": func(s *Spec) { s.Name = "m" },
		"driver": func(s *Spec) { s.Driver = "x" }, "command": func(s *Spec) { s.Command = "x" },
		"user data": func(s *Spec) { s.UserData = []byte("x") }, "mac": func(s *Spec) { s.MAC = net.HardwareAddr{2, 0, 0, 0, 0, 2} },
		"address": func(s *Spec) { s.Address = netip.MustParseAddr("198.51.100.2") },
		"gateway": func(s *Spec) { s.Gateway = netip.MustParseAddr("169.254.0.2") }, "mtu": func(s *Spec) { s.MTU = 9000 },
		"running": func(s *Spec) { s.Running = true }, "zone": func(s *Spec) { s.Zone = "z" },
		"address6": func(s *Spec) { s.Address6 = netip.MustParseAddr("2001:db8::1") },
		"gateway6": func(s *Spec) { s.Gateway6 = netip.MustParseAddr("fe80::1") },
		"networks": func(s *Spec) { s.Networks = []Interface{{Port: 3}} },
		"leased":   func(s *Spec) { s.Networks = []Interface{{Port: 3, Leased: true}} },
	} {
		s := base
		change(&s)
		if other, twice := seen[s.Hash()]; twice {
			t.Errorf("%s has the hash of %s", name, other)
		}
		seen[s.Hash()] = name
	}
}

// An interface keeps its name while others come and go.
func TestNamesOfPrivateInterfacesStay(t *testing.T) {
	of := func(ports ...uint32) Spec {
		var s Spec
		for _, p := range ports {
			s.Networks = append(s.Networks, Interface{Port: p})
		}
		return s
	}
	names := assign(of(31, 32, 33), nil)
	if !maps.Equal(names, map[uint32]string{31: "eth1", 32: "eth2", 33: "eth3"}) {
		t.Fatalf("first: %v", names)
	}
	names = assign(of(31, 33), names)
	if !maps.Equal(names, map[uint32]string{31: "eth1", 33: "eth3"}) {
		t.Errorf("after the second left: %v", names)
	}
	names = assign(of(34, 31, 33), names)
	if !maps.Equal(names, map[uint32]string{31: "eth1", 34: "eth2", 33: "eth3"}) {
		t.Errorf("after another came: %v", names)
	}
}

func TestIDsAreNoPaths(t *testing.T) {
	for id, ok := range map[string]bool{
		"0b2d4f66-6d0c-4b1e-9d53-8a6d2c1b0a99": true,
		"":                                     false, ".": false, "..": false, "../x": false, "a/b": false, "-a": false, "a\n": false,
	} {
		if got := checkID(id) == nil; got != ok {
			t.Errorf("id %q accepted: %t, want %t", id, got, ok)
		}
	}
	if err := (&Netns{cfg: Config{State: t.TempDir()}}).Remove("../x"); err == nil {
		t.Error("Remove accepts a path")
	}
}
