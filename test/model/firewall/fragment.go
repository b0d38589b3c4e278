// SPDX-License-Identifier: Apache-2.0

package firewall

import (
	"net/netip"
	"time"

	"cairn/test/model/frame"
)

// A datagram in fragments: the first one, which has the ports, is judged as any
// packet; the others follow it, or drop when it was not admitted. None may cover
// what another one has, because then who puts them together might read another
// datagram than was judged (RFC 5722).

// Piece of a datagram.
type Piece struct {
	ID       uint32
	From, To int // bytes of the datagram
	More     bool
}

// Pieces is what a port remembers of datagrams in fragments.
type Pieces map[pieceKey]*datagram

type pieceKey struct {
	id        uint32
	src, dst  netip.Addr
	proto     uint8 // IPv6's fragments need not name the same one (RFC 8200, 4.5)
	direction Direction
}

type run struct{ from, to int }

type datagram struct {
	seen   time.Duration // of its first fragment
	flow   Flow          // what it was when that came
	runs   []run         // of bytes; the first one begins the datagram
	length int           // 0 until the last one was there
	spoilt bool          // two have overlapped
}

// A datagram that misses a piece is given up soon: its number comes again.
const pieceLifetime = 2 * time.Second

// mostRuns that do not touch.
const mostRuns = 4

func (d *datagram) left(now time.Duration) time.Duration { return d.seen + pieceLifetime - now }

func keyOf(v visit) pieceKey {
	k := pieceKey{v.Piece.ID, v.Src, v.Dst, v.Headers.Proto, v.direction}
	if v.isV6() {
		k.proto = frame.FragmentHdr
	}
	return k
}

// beginPieces after the first one was admitted.
func (h *Host) beginPieces(p *Port, v visit, f *Flow) Reason {
	if d := p.Pieces[keyOf(v)]; d != nil && d.left(h.Now) >= 0 {
		d.spoilt = true
		return FragmentOverlap
	}
	if p.Pieces == nil {
		p.Pieces = Pieces{}
	}
	p.Pieces[keyOf(v)] = &datagram{seen: h.Now, flow: *f, runs: []run{{0, v.Piece.To}}}
	return None
}

// follow the first one.
func (h *Host) follow(p *Port, v visit) (*Flow, Reason) {
	d := p.Pieces[keyOf(v)]
	if d == nil || d.left(h.Now) < 0 {
		return nil, FragmentEarly
	}
	if why := d.add(*v.Piece); why != None {
		return nil, why
	}
	if d.runs[0].to == d.length {
		delete(p.Pieces, keyOf(v)) // all of it is through: its number is free
	}
	h.count(&d.flow, v)
	return &d.flow, None
}

func (d *datagram) add(piece Piece) Reason {
	if d.spoilt || d.overlaps(piece) {
		d.spoilt = true
		return FragmentOverlap
	}
	if !d.join(piece) {
		return FragmentHoles
	}
	if !piece.More {
		d.length = piece.To
	}
	for again := true; again; {
		again = false
		for i := 1; i < len(d.runs); i++ {
			if d.runs[i].from == d.runs[0].to {
				d.runs[0].to = d.runs[i].to
				d.runs = append(d.runs[:i], d.runs[i+1:]...)
				again = true
			}
		}
	}
	return None
}

// overlaps another piece, or the end: there is one, and nothing lies behind it.
func (d *datagram) overlaps(piece Piece) bool {
	if d.length > 0 && (piece.To > d.length || !piece.More) {
		return true
	}
	for _, r := range d.runs {
		if piece.From < r.to && piece.To > r.from || !piece.More && piece.To < r.to {
			return true
		}
	}
	return false
}

// join a run that the piece continues, or begin another.
func (d *datagram) join(piece Piece) bool {
	for i := range d.runs {
		r := &d.runs[i]
		if r.to == piece.From {
			r.to = piece.To
			return true
		}
		if r.from == piece.To {
			r.from = piece.From
			return true
		}
	}
	if len(d.runs) == mostRuns {
		return false
	}
	d.runs = append(d.runs, run{piece.From, piece.To})
	return true
}
