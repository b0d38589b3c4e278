// SPDX-License-Identifier: Apache-2.0

//go:build lab

package speaker

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"cairn/dataplane/announce"
)

var (
	vip     = netip.MustParseAddr("203.0.113.1")
	labVIP  = announce.Wanted{Prefix: netip.PrefixFrom(vip, 32), Origin: announce.VIP, Rank: 1, Services: []announce.Service{web}}
	labPort = announce.Wanted{Prefix: prefix("198.51.100.7/32"), Origin: announce.Instance, Port: 9}
)

// One life of a speaker, seen from the router's kernel. No agent is alive at
// any time: what it left in pins and file has to do.
func TestRouterSeesTheDataplane(t *testing.T) {
	forEachRouter(t, func(t *testing.T, router string) {
		r := newRig(t, router)
		r.addPort(9)
		r.want(labVIP, labPort)
		r.startSpeaker("--bfd")
		r.lookUp(true)
		r.fib(labVIP.Prefix, true)
		r.fib(labPort.Prefix, true)

		r.want(labPort)
		t.Logf("withdraw by the agent: %v", r.fib(labVIP.Prefix, false))
		r.want(labVIP, labPort)
		t.Logf("announce by the agent: %v", r.fib(labVIP.Prefix, true))

		r.detachUplink()
		took := r.fib(labVIP.Prefix, false)
		t.Logf("XDP link detached by hand: VIP gone after %v", took)
		if took > time.Second {
			t.Errorf("VIP gone %v after its program, want 1 s", took)
		}
		if !r.nextHop(labPort.Prefix).IsValid() {
			t.Error("the instance's address went with the uplink's program")
		}
		r.host.do(t, r.openDataplane)
		r.fib(labVIP.Prefix, true)

		r.breakVIP(true)
		r.fib(labVIP.Prefix, false)
		s, err := r.status()
		must(t, err)
		if len(s.Withheld) != 1 || !strings.Contains(s.Withheld[0].Reason, "probe failed") {
			t.Errorf("withheld %+v", s.Withheld)
		}
		r.breakVIP(false)
		r.fib(labVIP.Prefix, true)

		r.removePort(9)
		t.Logf("port gone: address gone after %v", r.fib(labPort.Prefix, false))
		if !r.nextHop(labVIP.Prefix).IsValid() {
			t.Error("the VIP went with a port")
		}
		r.addPort(9)
		r.fib(labPort.Prefix, true)

		t.Logf("memory of the speaker: %s", r.memory())
		if s, err = r.status(); err != nil || s.Sessions[0].Flaps != 0 || s.Sessions[0].Rejected == 0 {
			t.Errorf("sessions after all this: %+v, %v; want 0 flaps and the router's route rejected", s.Sessions, err)
		}
	})
}

func TestSpeakerDies(t *testing.T) {
	forEachRouter(t, func(t *testing.T, router string) {
		r := newRig(t, router)
		r.want(labVIP)
		r.startSpeaker("--bfd")
		r.lookUp(true)
		r.fib(labVIP.Prefix, true)

		// A stopped process keeps its connection: only BFD notices before the
		// hold time of 3 s.
		must(t, r.speaker.Process.Signal(syscall.SIGSTOP))
		took := r.fib(labVIP.Prefix, false)
		t.Logf("stopped: gone after %v", took)
		if took > 2*time.Second {
			t.Errorf("a stopped speaker was noticed after %v: BFD does not work", took)
		}
		must(t, r.speaker.Process.Signal(syscall.SIGCONT))
		t.Logf("continued: back after %v", r.fib(labVIP.Prefix, true))

		kill(t, r.speaker, syscall.SIGKILL)
		t.Logf("kill -9: gone after %v", r.fib(labVIP.Prefix, false))

		r.startSpeaker("--bfd")
		t.Logf("restarted: back after %v", r.fib(labVIP.Prefix, true))
		r.lookUp(true)
		if s, err := r.status(); err != nil || s.Sessions[0].Flaps != 0 {
			t.Errorf("the new speaker's session did not stay up: %+v, %v", s.Sessions, err)
		}

		must(t, r.speaker.Process.Signal(syscall.SIGTERM))
		t.Logf("SIGTERM: gone after %v", r.fib(labVIP.Prefix, false))
		if err := r.speaker.Wait(); err != nil {
			t.Errorf("SIGTERM: %v", err)
		}
	})
}

// The session is signed and takes no packet from further than the next hop. The
// negative control is a speaker without either: it gets nowhere.
func TestSecuredSession(t *testing.T) {
	t.Parallel()
	r := newRig(t, "none")
	r.startBIRD(`ttl security on; password "correct horse";`)
	r.want(labVIP)
	secret := filepath.Join(r.folder, "password")
	must(t, os.WriteFile(secret, []byte("correct horse\n"), 0o600))
	r.startSpeaker("--ttl-security", "--password-file", secret)
	r.lookUp(false)
	r.fib(labVIP.Prefix, true)
	must(t, r.speaker.Process.Signal(syscall.SIGTERM))
	r.fib(labVIP.Prefix, false)
	must(t, r.speaker.Wait())

	r.startSpeaker()
	deadline := time.Now().Add(4 * time.Second) // twice what a session takes
	for time.Now().Before(deadline) {
		if s, err := r.status(); err == nil && s.Sessions[0].Established {
			t.Fatal("a session without password or TTL security came up")
		}
		<-time.After(50 * time.Millisecond)
	}
}
