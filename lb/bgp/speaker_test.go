// SPDX-License-Identifier: Apache-2.0

package bgp

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	packet "github.com/osrg/gobgp/v4/pkg/packet/bgp"
	"github.com/osrg/gobgp/v4/pkg/server"
)

// The router of these tests is another GoBGP on loopback, so that they run as
// anybody. BIRD and FRR are met in the lab ring.
var (
	routerAddress  = netip.MustParseAddr("127.0.0.1")
	speakerAddress = netip.MustParseAddr("127.0.0.2")
)

func freePort(t *testing.T) uint16 {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return uint16(l.Addr().(*net.TCPAddr).Port)
}

func startRouter(t *testing.T, port uint16) *server.BgpServer {
	t.Helper()
	ctx := context.Background()
	r := server.NewBgpServer(server.LoggerOption(slog.New(slog.DiscardHandler), &slog.LevelVar{}))
	go r.Serve()
	t.Cleanup(r.Stop)
	must(t, r.StartBgp(ctx, &api.StartBgpRequest{Global: &api.Global{
		Asn: 65000, RouterId: "192.0.2.1", ListenPort: int32(port), ListenAddresses: []string{"127.0.0.1"},
	}}))
	must(t, r.AddPeer(ctx, &api.AddPeerRequest{Peer: &api.Peer{
		Conf:      &api.PeerConf{NeighborAddress: speakerAddress.String(), PeerAsn: 65001},
		Transport: &api.Transport{PassiveMode: true, LocalAddress: "127.0.0.1"},
	}}))
	return r
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// waitFor polls until ok, and fails with what it last saw.
func waitFor(t *testing.T, what string, ok func() (bool, any)) {
	t.Helper()
	deadline := time.NewTimer(60 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		done, saw := ok()
		if done {
			return
		}
		select {
		case <-deadline.C:
			t.Fatalf("%s: not within 60 s; last saw %v", what, saw)
		case <-tick.C:
		}
	}
}

// rib prints the routes that the router accepted, one a line.
func rib(t *testing.T, r *server.BgpServer) []string {
	t.Helper()
	var out []string
	err := r.ListPath(apiutil.ListPathRequest{TableType: api.TableType_TABLE_TYPE_GLOBAL, Family: packet.RF_IPv4_UC},
		func(prefix packet.NLRI, paths []*apiutil.Path) {
			for _, p := range paths {
				if p.PeerAddress != speakerAddress {
					continue
				}
				var line strings.Builder
				line.WriteString(prefix.String())
				for _, a := range p.Attrs {
					switch a := a.(type) {
					case *packet.PathAttributeNextHop:
						line.WriteString(" via " + a.Value.String())
					case *packet.PathAttributeCommunities:
						for _, c := range a.Value {
							line.WriteString(" " + Community(c).String())
						}
					}
				}
				out = append(out, line.String())
			}
		})
	must(t, err)
	slices.Sort(out)
	return out
}

func startSpeaker(t *testing.T, port uint16) *Speaker {
	t.Helper()
	s, err := Start(Config{
		LocalAS:      65001,
		RouterID:     netip.MustParseAddr("192.0.2.2"),
		LocalAddress: speakerAddress,
		Peers:        []Peer{{Address: routerAddress, AS: 65000, Port: port}},
	}, slog.New(slog.DiscardHandler))
	must(t, err)
	return s
}

func established(t *testing.T, s *Speaker) Session {
	t.Helper()
	var got Session
	waitFor(t, "session established", func() (bool, any) {
		sessions, err := s.Sessions()
		must(t, err)
		if len(sessions) != 1 {
			t.Fatalf("%d sessions, want 1", len(sessions))
		}
		got = sessions[0]
		return got.Established, got
	})
	return got
}

func TestSpeakerAnnouncesAndWithdraws(t *testing.T) {
	port := freePort(t)
	router := startRouter(t, port)
	s := startSpeaker(t, port)
	stopped := false
	defer func() {
		if !stopped {
			s.Stop()
		}
	}()
	seen := func(want ...string) {
		t.Helper()
		waitFor(t, fmt.Sprintf("router has %v", want), func() (bool, any) {
			got := rib(t, router)
			return slices.Equal(got, want), got
		})
	}

	// Announced before the session is up: sent as soon as it is.
	_, err := s.Set([]Route{route("203.0.113.1/32"), route("198.51.100.7/32", 65001<<16|7)})
	must(t, err)
	if got := established(t, s); got.HoldTime != 3 || got.State != "established" || got.Since.IsZero() {
		t.Errorf("session = %+v, want hold time 3 and an uptime", got)
	}
	seen("198.51.100.7/32 via 127.0.0.2 65001:7", "203.0.113.1/32 via 127.0.0.2")

	// A drain replaces the route in place.
	_, err = s.Set([]Route{route("203.0.113.1/32", GracefulShutdown), route("198.51.100.7/32", 65001<<16|7)})
	must(t, err)
	seen("198.51.100.7/32 via 127.0.0.2 65001:7", "203.0.113.1/32 via 127.0.0.2 65535:0")

	// One prefix that cannot be announced does not hold back the others.
	steps, err := s.Set([]Route{route("203.0.113.9/32"), route("2001:db8::1/128")})
	if err == nil || len(steps) != 3 {
		t.Errorf("Set = %v, %v; want 3 steps and an error for the IPv6 prefix", steps, err)
	}
	seen("203.0.113.9/32 via 127.0.0.2")
	if got := s.Announced(); len(got) != 1 {
		t.Errorf("Announced = %v, want the one route that was", got)
	}

	s.Stop()
	stopped = true
	seen()
}

func TestSpeakerRejectsImports(t *testing.T) {
	port := freePort(t)
	router := startRouter(t, port)
	s := startSpeaker(t, port)
	defer s.Stop()
	established(t, s)
	nlri, err := packet.NewIPAddrPrefix(netip.MustParsePrefix("0.0.0.0/0"))
	must(t, err)
	hop, err := packet.NewPathAttributeNextHop(routerAddress)
	must(t, err)
	_, err = router.AddPath(apiutil.AddPathRequest{Paths: []*apiutil.Path{{
		Nlri: nlri, Family: packet.RF_IPv4_UC,
		Attrs: []packet.PathAttributeInterface{packet.NewPathAttributeOrigin(0), hop},
	}}})
	must(t, err)
	waitFor(t, "the route arrives", func() (bool, any) {
		sessions, err := s.Sessions()
		must(t, err)
		return sessions[0].Rejected == 1, sessions
	})
	err = s.server.ListPath(apiutil.ListPathRequest{TableType: api.TableType_TABLE_TYPE_GLOBAL, Family: packet.RF_IPv4_UC},
		func(prefix packet.NLRI, paths []*apiutil.Path) { t.Errorf("imported %s: %v", prefix, paths) })
	must(t, err)
}

// No change of the set may touch the session: 1,000 changes, 0 resets, and the
// router ends with what was set last.
func TestChangesNeverResetTheSession(t *testing.T) {
	port := freePort(t)
	router := startRouter(t, port)
	s := startSpeaker(t, port)
	defer s.Stop()
	before := established(t, s)
	for i := range 1000 {
		var want []Route
		for k := range 3 {
			r := route(fmt.Sprintf("203.0.113.%d/32", (i*7+k*31)%250))
			if i%5 == k {
				r.Communities = []Community{GracefulShutdown}
			}
			want = append(want, r)
		}
		_, err := s.Set(want)
		must(t, err)
	}
	_, err := s.Set([]Route{route("203.0.113.254/32")})
	must(t, err)
	waitFor(t, "the last set arrives", func() (bool, any) {
		got := rib(t, router)
		return slices.Equal(got, []string{"203.0.113.254/32 via 127.0.0.2"}), got
	})
	after := established(t, s)
	if after.Flaps != before.Flaps || !after.Since.Equal(before.Since) {
		t.Errorf("session before %+v, after %+v: it was reset", before, after)
	}
}

// A router that leaks its table loses the session for a while, not our memory;
// once it has stopped, the session comes back with our routes.
func TestPrefixLimit(t *testing.T) {
	port := freePort(t)
	router := startRouter(t, port)
	s := startSpeaker(t, port)
	defer s.Stop()
	s.pause = 2 * time.Second
	_, err := s.Set([]Route{route("203.0.113.1/32")})
	must(t, err)
	established(t, s)
	hop, err := packet.NewPathAttributeNextHop(routerAddress)
	must(t, err)
	var leak []*apiutil.Path
	for i := range MaxPrefixes + 1 {
		nlri, err := packet.NewIPAddrPrefix(netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64, byte(i >> 8), byte(i)}), 32))
		must(t, err)
		leak = append(leak, &apiutil.Path{Nlri: nlri, Family: packet.RF_IPv4_UC,
			Attrs: []packet.PathAttributeInterface{packet.NewPathAttributeOrigin(0), hop}})
	}
	_, err = router.AddPath(apiutil.AddPathRequest{Paths: leak})
	must(t, err)
	waitFor(t, "session paused", func() (bool, any) {
		sessions, err := s.Sessions()
		must(t, err)
		return sessions[0].State == statePaused && sessions[0].Flaps == 1, sessions
	})
	must(t, router.DeletePath(apiutil.DeletePathRequest{Paths: leak}))
	established(t, s)
	waitFor(t, "our route is back", func() (bool, any) {
		got := rib(t, router)
		return slices.Equal(got, []string{"203.0.113.1/32 via 127.0.0.2"}), got
	})
}
