// SPDX-License-Identifier: Apache-2.0

package bgp

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
)

const (
	stateIdle        = "idle"
	stateEstablished = "established"
	statePaused      = "paused" // ours: GoBGP does not know the peer meanwhile
)

// watched is what this package knows of its peers beside GoBGP. Its lock is held
// over calls into GoBGP, so that peers are changed one at a time.
type watched struct {
	sync.Mutex
	by map[netip.Addr]*watch
}

type watch struct {
	peer  Peer
	state string
	bfd   bool   // has begun
	flaps uint32 // times it left established
}

// peerEvent follows a session. All events come here one after the other.
func (s *Speaker) peerEvent(ctx context.Context, ev *apiutil.WatchEventMessage_PeerEvent) {
	if ev.Type != apiutil.PEER_EVENT_STATE || ctx.Err() != nil {
		return
	}
	s.peers.Lock()
	defer s.peers.Unlock()
	now := ev.Peer.State
	w := s.peers.by[now.NeighborAddress]
	state := stateName(now.SessionState.String())
	if w == nil || w.state == state || w.state == statePaused {
		return // such as: the end of a session that we have removed ourselves
	}
	before := w.state
	w.state = state
	s.log.Info("session changed", "peer", w.peer.Address, "state", state,
		"reason", now.DisconnectReason.String(), "message", now.DisconnectMessage)
	if before == stateEstablished {
		w.flaps++
	}
	switch {
	case state == stateEstablished && w.peer.BFD && !w.bfd:
		s.beginBFD(ctx, w)
	case now.AdminState == api.PeerState_ADMIN_STATE_PFX_CT:
		s.log.Error("router sent too many routes; session pauses", "peer", w.peer.Address,
			"limit", MaxPrefixes, "pause", s.pause)
		s.renew(ctx, w, s.pause)
	case state == stateIdle:
		s.renew(ctx, w, 0)
	}
}

// beginBFD starts BFD with a peer when its session is up. Before that a router
// may run one under another discriminator (FRR 8.4 makes its session anew once
// it knows our address), which GoBGP 4.8 would hold on to until it expires, and
// then reset a session that is fine.
func (s *Speaker) beginBFD(ctx context.Context, w *watch) {
	if _, err := s.server.UpdatePeer(ctx, &api.UpdatePeerRequest{Peer: s.peer(w.peer, true)}); err != nil {
		s.log.Error("begin bfd", "peer", w.peer.Address, "err", err)
		return
	}
	w.bfd = true
	s.awaitBFD(ctx, w.peer.Address, true)
}

// renew removes a peer whose session ended and adds it again, after a pause if
// one is given. GoBGP 4.8 would leave the session idle for 5 s otherwise: too
// long for an instance's address, which nobody else announces. With the pause
// over it goes on as if it were new: connecting takes 1.5 to 2 s.
func (s *Speaker) renew(ctx context.Context, w *watch, pause time.Duration) {
	if err := s.server.DeletePeer(ctx, &api.DeletePeerRequest{Address: w.peer.Address.String()}); err != nil {
		s.log.Error("remove peer", "peer", w.peer.Address, "err", err)
		return
	}
	s.awaitBFD(ctx, w.peer.Address, false)
	w.bfd = false
	w.state = statePaused
	if pause == 0 {
		s.resume(ctx, w)
		return
	}
	time.AfterFunc(pause, func() {
		s.peers.Lock()
		defer s.peers.Unlock()
		s.resume(ctx, w)
	})
}

func (s *Speaker) resume(ctx context.Context, w *watch) {
	if ctx.Err() != nil {
		return
	}
	if err := s.server.AddPeer(ctx, &api.AddPeerRequest{Peer: s.peer(w.peer, false)}); err != nil {
		s.log.Error("add peer again", "peer", w.peer.Address, "err", err)
		return
	}
	w.state = stateIdle
}

// awaitBFD waits until GoBGP's BFD has taken a peer in, or let it go. It takes
// changes through a channel of one place, and while it stops a peer that peer
// may wait for the server: two changes under way could wait for each other.
func (s *Speaker) awaitBFD(ctx context.Context, address netip.Addr, want bool) {
	deadline := time.After(5 * time.Second)
	for {
		have := false
		s.server.ListBfdPeer(ctx, func(peer string, _ *api.BfdPeerState) { have = have || peer == address.String() })
		if have == want {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-deadline:
			s.log.Error("bfd does not follow", "peer", address, "want", want)
			return
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// Sessions tells how each peer is, in the order of the configuration.
func (s *Speaker) Sessions() ([]Session, error) {
	known := map[string]*api.Peer{}
	err := s.server.ListPeer(context.Background(), &api.ListPeerRequest{EnableAdvertised: true}, func(p *api.Peer) {
		known[p.GetConf().GetNeighborAddress()] = p
	})
	if err != nil {
		return nil, fmt.Errorf("list peers: %w", err)
	}
	s.peers.Lock()
	defer s.peers.Unlock()
	var out []Session
	for _, p := range s.config.Peers {
		x := Session{Peer: p.Address, AS: p.AS, State: statePaused}
		if api, ok := known[p.Address.String()]; ok {
			fill(&x, api)
		}
		w := s.peers.by[p.Address]
		x.Flaps = w.flaps
		if p.BFD && x.BFD == "" {
			x.BFD = "waiting"
		}
		out = append(out, x)
	}
	return out, nil
}

func fill(x *Session, p *api.Peer) {
	st := p.GetState()
	x.State = stateName(st.GetSessionState().String())
	x.Established = st.GetSessionState() == api.PeerState_SESSION_STATE_ESTABLISHED
	x.HoldTime = int(p.GetTimers().GetState().GetNegotiatedHoldTime())
	since := p.GetTimers().GetState().GetDowntime()
	if x.Established {
		since = p.GetTimers().GetState().GetUptime()
	}
	if since.IsValid() && since.GetSeconds() > 0 {
		x.Since = since.AsTime()
	}
	for _, af := range p.GetAfiSafis() {
		x.Advertised += af.GetState().GetAdvertised()
		x.Rejected += af.GetState().GetReceived()
	}
	if p.GetBfd().GetEnabled() {
		x.BFD = strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(
			st.GetBfdState().GetSessionState().String(), "BFD_SESSION_STATE_")), "_", "-")
	}
}

// stateName turns SESSION_STATE_IDLE and BGP_FSM_IDLE into idle.
func stateName(s string) string {
	s = strings.TrimPrefix(strings.TrimPrefix(s, "SESSION_STATE_"), "BGP_FSM_")
	return strings.ToLower(s)
}
