// SPDX-License-Identifier: Apache-2.0

package balance

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"

	"cairn/lb/slots"
)

// Slots of a service here: few, so that flows share them.
const tableSize = 16

// moves of a slot, each with its owners and how far it is.
type move struct {
	proto    uint8
	slot     int
	old, new Backend
	phase    int // 1: {old, new} is out; 2: {new, old}
}

// Story makes up packets and changes, in the order in which a control plane lets
// changes happen: the old owner's host first, then the new one's, the others
// whenever they hear of it.
type Story struct {
	Zone *Zone

	random *rand.Rand
	moves  []*move
	home   map[Flow]Backend // who got its first packet
	again  map[Flow]bool    // its client has begun it anew
	last   Backend
	write  func(Host, uint8, int, slots.Slot) error
	state  func(Backend) error

	// Hasty forgets a slot's old owner whether or not it has flows: the control.
	Hasty bool
	Deaf  bool // the host without backends hears of no move
	Told  []string
}

// Writer is who has the tables: the programs' maps.
type Writer interface {
	Slot(Host, uint8, int, slots.Slot) error
	Member(Backend, Member) error
}

// NewStory of a seed, with four backends on two hosts.
func NewStory(seed uint64, hash func(Flow) uint32, w Writer) (*Story, error) {
	s := &Story{
		Zone:   &Zone{Members: map[Backend]*Member{}, Hash: hash},
		random: rand.New(rand.NewPCG(seed, 0)), home: map[Flow]Backend{}, again: map[Flow]bool{},
	}
	s.write = w.Slot
	s.state = func(b Backend) error { return w.Member(b, *s.Zone.Members[b]) }
	for port := range uint32(4) {
		if err := s.join(port); err != nil {
			return nil, err
		}
	}
	for h := range Host(Hosts) {
		s.Zone.Tables[h] = map[uint8]slots.Table{TCP: make(slots.Table, tableSize), UDP: make(slots.Table, tableSize)}
	}
	for _, proto := range []uint8{TCP, UDP} {
		for i := range tableSize {
			owner := slots.Make(uint32(1+s.random.IntN(4)), 0)
			for h := range Host(Hosts) {
				if err := s.set(h, proto, i, owner); err != nil {
					return nil, err
				}
			}
		}
	}
	return s, nil
}

// join: a new backend at a port; no number is used again.
func (s *Story) join(port uint32) error {
	s.last++
	s.Zone.Members[s.last] = &Member{Host: Host(1 + port/2), Port: 5 + port, Flows: map[Flow]*Known{}}
	return s.state(s.last)
}

func (s *Story) set(h Host, proto uint8, i int, to slots.Slot) error {
	s.Zone.Tables[h][proto][i] = to
	return s.write(h, proto, i, to)
}

func (s *Story) tell(format string, args ...any) {
	s.Told = append(s.Told, fmt.Sprintf(format, args...))
}

// Change something, or nothing: a slot's move goes on or begins, a backend turns.
func (s *Story) Change() error {
	switch n := s.random.IntN(10); {
	case n < 3 && len(s.moves) > 0:
		return s.advance(s.moves[s.random.IntN(len(s.moves))])
	case n < 6:
		return s.begin()
	case n < 8:
		return s.turn()
	case n == 8 && s.random.IntN(4) == 0:
		return s.die()
	}
	return nil
}

func (s *Story) begin() error {
	proto, i := []uint8{TCP, UDP}[s.random.IntN(2)], s.random.IntN(tableSize)
	for _, m := range s.moves {
		if m.proto == proto && m.slot == i {
			return nil
		}
	}
	slot := s.Zone.Tables[1][proto][i]
	to := s.alive()[s.random.IntN(4)]
	if slot.Prev() != 0 || Backend(slot.Cur()) == to {
		return nil
	}
	m := &move{proto, i, Backend(slot.Cur()), to, 1}
	s.moves = append(s.moves, m)
	return s.spread(m, m.old, slots.Make(uint32(m.old), uint32(m.new)))
}

// spread a slot: to the host of whom it concerns, then to the others, but for
// those that do not hear of it now.
func (s *Story) spread(m *move, first Backend, to slots.Slot) error {
	at := s.Zone.Members[first].Host
	s.tell("slot %d of %d is %s at host %d", m.slot, m.proto, to, at)
	if err := s.set(at, m.proto, m.slot, to); err != nil {
		return err
	}
	for h := range Host(Hosts) {
		concerned := h == s.Zone.Members[m.old].Host || h == s.Zone.Members[m.new].Host
		if h == at || s.Deaf && h == 0 || !concerned && s.random.IntN(3) == 0 {
			continue
		}
		s.tell("slot %d of %d is %s at host %d", m.slot, m.proto, to, h)
		if err := s.set(h, m.proto, m.slot, to); err != nil {
			return err
		}
	}
	return nil
}

// advance a move: to its second phase, to a host that has not heard of that, to
// its end.
func (s *Story) advance(m *move) error {
	second := slots.Make(uint32(m.new), uint32(m.old))
	if m.phase == 1 {
		m.phase = 2
		return s.spread(m, m.new, second)
	}
	for h := range Host(Hosts) {
		if s.Zone.Tables[h][m.proto][m.slot] != second && !(s.Deaf && h == 0) {
			s.tell("slot %d of %d is %s at host %d", m.slot, m.proto, second, h)
			return s.set(h, m.proto, m.slot, second)
		}
	}
	if s.owed(m) && !s.Hasty {
		return nil
	}
	return s.end(m, m.new)
}

// owed: the old owner has flows of the slot.
func (s *Story) owed(m *move) bool {
	for f := range s.Zone.Members[m.old].Flows {
		if f.Proto == m.proto && int(s.Zone.Hash(f)%tableSize) == m.slot {
			return true
		}
	}
	return false
}

// end a move: the slot is one owner's alone.
func (s *Story) end(m *move, owner Backend) error {
	s.moves = slices.DeleteFunc(s.moves, func(x *move) bool { return x == m })
	return s.everywhere(m.proto, m.slot, slots.Make(uint32(owner), 0), s.Deaf)
}

// everywhere but at the host that hears of nothing.
func (s *Story) everywhere(proto uint8, i int, to slots.Slot, deaf bool) error {
	s.tell("slot %d of %d is %s everywhere", i, proto, to)
	for h := range Host(Hosts) {
		if deaf && h == 0 {
			continue
		}
		if err := s.set(h, proto, i, to); err != nil {
			return err
		}
	}
	return nil
}

// alive backends, in order.
func (s *Story) alive() (all []Backend) {
	for b, m := range s.Zone.Members {
		if m.State != Dead {
			all = append(all, b)
		}
	}
	slices.Sort(all)
	return all
}

// turn a backend's state, which is for new flows only.
func (s *Story) turn() error {
	b := s.alive()[s.random.IntN(4)]
	m := s.Zone.Members[b]
	m.State = State(s.random.IntN(3))
	s.tell("backend %d is %s", b, m.State)
	return s.state(b)
}

// die: a port goes, another one comes in its place, under a number of its own. A
// slot that was moving is the other one's, at once; the rest is the new one's.
func (s *Story) die() error {
	b := s.alive()[s.random.IntN(4)]
	gone := s.Zone.Members[b]
	gone.State, gone.Flows = Dead, map[Flow]*Known{}
	s.tell("backend %d dies", b)
	if err := s.state(b); err != nil {
		return err
	}
	if err := s.join(gone.Port - 5); err != nil {
		return err
	}
	for _, m := range slices.Clone(s.moves) {
		heir := Backend(0)
		switch b {
		case m.old:
			heir = m.new
		case m.new:
			heir = m.old
		}
		if heir == 0 {
			continue
		}
		if err := s.end(m, heir); err != nil {
			return err
		}
	}
	return s.bury(b)
}

// bury a backend: nobody's table names it, also of who hears of nothing else.
func (s *Story) bury(b Backend) error {
	for _, proto := range []uint8{TCP, UDP} {
		for i, slot := range s.Zone.Tables[1][proto] {
			owner := slot
			if Backend(slot.Cur()) == b {
				owner = slots.Make(uint32(s.last), 0)
			}
			if owner == slot && Backend(s.Zone.Tables[0][proto][i].Cur()) != b {
				continue
			}
			if err := s.everywhere(proto, i, owner, false); err != nil {
				return err
			}
		}
	}
	return nil
}

// Packet that a client sends next.
func (s *Story) Packet() Packet {
	f := Flow{TCP, netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(1 + s.random.IntN(3))}), uint16(1000+s.random.IntN(40)))}
	if s.random.IntN(3) == 0 {
		f.Proto = UDP
	}
	p := Packet{Flow: f, Kind: Data, At: Host(s.random.IntN(Hosts))}
	_, begun := s.home[f]
	switch {
	case f.Proto == UDP:
	case !begun && s.random.IntN(8) > 0, begun && s.random.IntN(20) == 0:
		p.Kind = SYN
	case begun && s.random.IntN(12) == 0:
		p.Kind = FIN
	}
	return p
}

// Check is the promise: a flow stays with who got its first packet, for as long as
// that one lives. A client that begins a flow anew while it is known may be heard
// by another one.
func (s *Story) Check(p Packet, got Outcome) error {
	home, begun := s.home[p.Flow]
	alive := begun && s.Zone.Members[home].State != Dead
	if alive && p.isSYN() {
		s.again[p.Flow] = true
	}
	if alive && !s.again[p.Flow] && got.Backend != home {
		return fmt.Errorf("%s: %s, but the flow is backend %d's", p, got, home)
	}
	if got.Backend != 0 && !alive {
		s.home[p.Flow] = got.Backend
		delete(s.again, p.Flow)
	}
	return nil
}
