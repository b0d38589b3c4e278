// SPDX-License-Identifier: Apache-2.0

package speaker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"time"

	judge "cairn/lb/announce"
	"cairn/lb/bgp"

	"cairn/dataplane/announce"
)

// Status tells what is announced, what is not, and why.
func (s *Speaker) Status() announce.Status {
	sessions, err := s.router.Sessions()
	s.mu.Lock()
	defer s.mu.Unlock()
	out := announce.Status{
		Now: time.Now(), Started: s.started,
		Revision: s.seen.revision, Source: s.seen.from, Complaint: s.seen.complaint, Refused: s.seen.refused,
		Router: s.refusal, Probes: s.probes,
		Sessions: []announce.Session{}, Announced: []announce.Verdict{}, Withheld: []announce.Verdict{},
	}
	if err != nil {
		out.Router = err.Error()
	}
	for _, x := range sessions {
		out.Sessions = append(out.Sessions, announce.Session{
			Peer: x.Peer, AS: x.AS, State: x.State, Established: x.Established, Since: x.Since,
			Flaps: x.Flaps, Advertised: x.Advertised, Rejected: x.Rejected, BFD: x.BFD,
		})
	}
	for _, v := range s.verdicts {
		if v.Announce {
			out.Announced = append(out.Announced, toStatus(v))
		} else {
			out.Withheld = append(out.Withheld, toStatus(v))
		}
	}
	return out
}

func toStatus(v judge.Verdict) announce.Verdict {
	out := announce.Verdict{Prefix: v.Prefix, Origin: announce.VIP, Rank: v.Rank, Reason: v.Reason}
	if v.Origin == judge.Instance {
		out.Origin = announce.Instance
	}
	for _, c := range v.Communities {
		out.Communities = append(out.Communities, bgp.Community(c).String())
	}
	return out
}

// Serve answers every connection to a unix socket with the status and closes
// it, until ctx ends. A socket file that an earlier life left is replaced.
func (s *Speaker) Serve(ctx context.Context, socket string) error {
	if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("serve status: %w", err)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		return fmt.Errorf("serve status: %w", err)
	}
	if err := os.Chmod(socket, 0o660); err != nil {
		return errors.Join(fmt.Errorf("serve status: %w", err), l.Close())
	}
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	for {
		c, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			s.log.Error("accept a status query", "err", err) // such as: no descriptor left
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
			continue
		}
		go s.answer(c)
	}
}

func (s *Speaker) answer(c net.Conn) {
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return
	}
	enc := json.NewEncoder(c)
	enc.SetIndent("", "  ")
	if err := enc.Encode(s.Status()); err != nil {
		s.log.Debug("answer a status query", "err", err)
	}
}
