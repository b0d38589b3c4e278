// SPDX-License-Identifier: Apache-2.0

package bgp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	packet "github.com/osrg/gobgp/v4/pkg/packet/bgp"
	"github.com/osrg/gobgp/v4/pkg/server"
)

// Speaker holds the sessions and what is announced on them. Its methods may be
// called at once from several goroutines.
type Speaker struct {
	config Config
	log    *slog.Logger
	server *server.BgpServer
	cancel context.CancelFunc
	pause  time.Duration // PrefixLimitPause, but in tests

	mu        sync.Mutex
	announced map[netip.Prefix]Route

	peers watched
}

// Start opens sessions to all peers and returns at once: it does not wait for
// any to be established. What was announced before is kept by GoBGP and sent
// whenever a session comes up.
func Start(c Config, log *slog.Logger) (*Speaker, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	level := &slog.LevelVar{}
	level.Set(slog.LevelWarn)
	ctx, cancel := context.WithCancel(context.Background())
	s := &Speaker{
		config:    c,
		log:       log,
		server:    server.NewBgpServer(server.LoggerOption(slog.New(quiet{log.Handler()}), level)),
		cancel:    cancel,
		pause:     PrefixLimitPause,
		announced: map[netip.Prefix]Route{},
		peers:     watched{by: map[netip.Addr]*watch{}},
	}
	go s.server.Serve()
	if err := s.open(ctx); err != nil {
		s.Stop()
		return nil, err
	}
	return s, nil
}

func (s *Speaker) open(ctx context.Context) error {
	port := int32(-1)
	if s.config.ListenPort != 0 {
		port = int32(s.config.ListenPort)
	}
	global := &api.Global{
		Asn:          s.config.LocalAS,
		RouterId:     s.config.RouterID.String(),
		ListenPort:   port,
		BindToDevice: s.config.Interface,
	}
	if port > 0 {
		global.ListenAddresses = []string{s.config.LocalAddress.String()}
	}
	if err := s.server.StartBgp(ctx, &api.StartBgpRequest{Global: global}); err != nil {
		return fmt.Errorf("start bgp: %w", err)
	}
	if err := s.rejectImports(ctx); err != nil {
		return fmt.Errorf("reject imports: %w", err)
	}
	err := s.server.WatchEvent(ctx, server.WatchEventMessageCallbacks{
		OnPeerUpdate: func(ev *apiutil.WatchEventMessage_PeerEvent, _ time.Time) { s.peerEvent(ctx, ev) },
	}, server.WatchPeer())
	if err != nil {
		return fmt.Errorf("watch peers: %w", err)
	}
	for _, p := range s.config.Peers {
		s.peers.by[p.Address] = &watch{peer: p, state: stateIdle}
		if err := s.server.AddPeer(ctx, &api.AddPeerRequest{Peer: s.peer(p, false)}); err != nil {
			return fmt.Errorf("add peer %s: %w", p.Address, err)
		}
	}
	return nil
}

// rejectImports lets only our own routes into the table. GoBGP judges those by
// the import policy too, hence the one policy that accepts them.
func (s *Speaker) rejectImports(ctx context.Context) error {
	own := &api.Policy{Name: "own", Statements: []*api.Statement{{
		Name:       "own",
		Conditions: &api.Conditions{RouteType: api.Conditions_ROUTE_TYPE_LOCAL},
		Actions:    &api.Actions{RouteAction: api.RouteAction_ROUTE_ACTION_ACCEPT},
	}}}
	if err := s.server.AddPolicy(ctx, &api.AddPolicyRequest{Policy: own}); err != nil {
		return err
	}
	return s.server.SetPolicyAssignment(ctx, &api.SetPolicyAssignmentRequest{Assignment: &api.PolicyAssignment{
		Name:          "global",
		Direction:     api.PolicyDirection_POLICY_DIRECTION_IMPORT,
		Policies:      []*api.Policy{own},
		DefaultAction: api.RouteAction_ROUTE_ACTION_REJECT,
	}})
}

// peer writes a Peer in GoBGP's words. Graceful restart is left out on purpose
// (note 0001).
func (s *Speaker) peer(p Peer, bfd bool) *api.Peer {
	peer := &api.Peer{
		Conf: &api.PeerConf{
			NeighborAddress: p.Address.String(),
			PeerAsn:         p.AS,
			AuthPassword:    p.Password,
		},
		Timers: &api.Timers{Config: &api.TimersConfig{
			HoldTime:          uint64(HoldTime / time.Second),
			KeepaliveInterval: uint64(Keepalive / time.Second),
			ConnectRetry:      2,
			// BFD resets the session administratively; the default keeps it
			// down for 30 s after that.
			IdleHoldTimeAfterReset: 1,
		}},
		Transport: &api.Transport{
			LocalAddress:  s.config.LocalAddress.String(),
			RemotePort:    uint32(p.Port),
			PassiveMode:   p.Passive,
			BindInterface: s.config.Interface,
		},
		AfiSafis: []*api.AfiSafi{afiSafi(api.Family_AFI_IP)},
	}
	if p.Address.Is6() {
		peer.Transport.LocalAddress = s.config.LocalAddress6.String()
	}
	if s.config.LocalAddress6.IsValid() {
		peer.AfiSafis = append(peer.AfiSafis, afiSafi(api.Family_AFI_IP6))
	}
	if p.TTLSecurity {
		peer.TtlSecurity = &api.TtlSecurity{Enabled: true, TtlMin: 255}
	}
	if bfd {
		peer.Bfd = &api.BfdPeerConfig{
			Enabled:                  true,
			DesiredMinimumTxInterval: uint32(BFDInterval.Microseconds()),
			RequiredMinimumReceive:   uint32(BFDInterval.Microseconds()),
			DetectionMultiplier:      BFDMultiplier,
		}
	}
	return peer
}

func afiSafi(afi api.Family_Afi) *api.AfiSafi {
	family := &api.Family{Afi: afi, Safi: api.Family_SAFI_UNICAST}
	return &api.AfiSafi{
		Config:       &api.AfiSafiConfig{Family: family, Enabled: true},
		PrefixLimits: &api.PrefixLimit{Family: family, MaxPrefixes: MaxPrefixes},
	}
}

// Set makes want the announced set and returns the steps it took. A step that
// fails leaves its prefix as it was and does not hold back the others.
func (s *Speaker) Set(want []Route) ([]Step, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	have := make([]Route, 0, len(s.announced))
	for _, r := range s.announced {
		have = append(have, r)
	}
	var done []Step
	var errs []error
	for _, step := range Plan(want, have) {
		if err := s.apply(step); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", step, err))
			continue
		}
		done = append(done, step)
	}
	return done, errors.Join(errs...)
}

func (s *Speaker) apply(step Step) error {
	path, err := s.path(step.Route)
	if err != nil {
		return err
	}
	if step.Verb == Withdraw {
		path.Withdrawal = true
		if err := s.server.DeletePath(apiutil.DeletePathRequest{Paths: []*apiutil.Path{path}}); err != nil {
			return err
		}
		delete(s.announced, step.Route.Prefix)
		return nil
	}
	if _, err := s.server.AddPath(apiutil.AddPathRequest{Paths: []*apiutil.Path{path}}); err != nil {
		return err
	}
	s.announced[step.Route.Prefix] = step.Route
	return nil
}

func (s *Speaker) path(r Route) (*apiutil.Path, error) {
	nlri, err := packet.NewIPAddrPrefix(r.Prefix)
	if err != nil {
		return nil, err
	}
	path := &apiutil.Path{Nlri: nlri, Family: packet.RF_IPv4_UC}
	path.Attrs = []packet.PathAttributeInterface{packet.NewPathAttributeOrigin(0)}
	if r.Prefix.Addr().Is4() {
		hop, err := packet.NewPathAttributeNextHop(s.config.LocalAddress)
		if err != nil {
			return nil, err
		}
		path.Attrs = append(path.Attrs, hop)
	} else {
		if !s.config.LocalAddress6.IsValid() {
			return nil, errors.New("no IPv6 address to be the next hop")
		}
		path.Family = packet.RF_IPv6_UC
		reach, err := packet.NewPathAttributeMpReachNLRI(packet.RF_IPv6_UC, []packet.PathNLRI{{NLRI: nlri}}, s.config.LocalAddress6)
		if err != nil {
			return nil, err
		}
		path.Attrs = append(path.Attrs, reach)
	}
	if len(r.Communities) > 0 {
		values := make([]uint32, len(r.Communities))
		for i, c := range r.Communities {
			values[i] = uint32(c)
		}
		path.Attrs = append(path.Attrs, packet.NewPathAttributeCommunities(values))
	}
	return path, nil
}

// Announced lists the present set in the order of prefixes.
func (s *Speaker) Announced() []Route {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Route, 0, len(s.announced))
	for _, p := range sorted(s.announced) {
		out = append(out, s.announced[p])
	}
	return out
}

// Stop withdraws everything and closes all sessions with a Cease, which makes
// the routers forget what was announced at once. A Speaker that was stopped is
// of no further use.
func (s *Speaker) Stop() {
	if _, err := s.Set(nil); err != nil {
		s.log.Error("withdraw everything", "err", err)
	}
	s.cancel()
	s.server.Stop()
}
