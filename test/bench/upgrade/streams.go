// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"sync"
	"time"

	"cairn/bpf/packet"
	"cairn/test/rig"
)

// stream is one kind of traffic: numbered packets from one place to another.
type stream struct {
	name     string
	from, to *place
	build    func(n uint64) [][]byte // the frames of packet n, each with its mark

	sent uint64 // frames
	next uint64

	mu      sync.Mutex
	seen    []uint64 // of frames that arrived, a bit each by its number
	arrived uint64
	double  uint64
}

// arrive notes a frame.
func (s *stream) arrive(n uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for n/64 >= uint64(len(s.seen)) {
		s.seen = append(s.seen, make([]uint64, 1024)...)
	}
	if bit := uint64(1) << (n % 64); s.seen[n/64]&bit == 0 {
		s.seen[n/64] |= bit
		s.arrived++
		return
	}
	s.double++
}

// tally of the frames that have arrived, and of those that did twice.
func (s *stream) tally() (arrived, double uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.arrived, s.double
}

// mark of a frame: a word to find it by, its stream and number.
const (
	word    = "cairn-upgrade"
	markLen = len(word) + 1 + 8
)

func mark(stream int, frame uint64) []byte {
	b := append([]byte(word), byte(stream))
	return binary.BigEndian.AppendUint64(b, frame)
}

// place is where frames are sent from and arrive.
type place struct {
	name string
	tap  *rig.Tap
}

// traffic is all streams, and who watches them arrive.
type traffic struct {
	streams []*stream
	places  []*place
}

func (t *traffic) add(name string, from, to *place, build maker) {
	id := len(t.streams)
	s := &stream{name: name, from: from, to: to}
	s.build = func(n uint64) [][]byte { return build(func(frame uint64) []byte { return mark(id, frame) }, n) }
	t.streams = append(t.streams, s)
}

// watch counts the frames of streams where they should arrive.
func (t *traffic) watch() {
	for _, p := range t.places {
		p.tap.Watch(func(frame []byte) {
			at := bytes.Index(frame, []byte(word))
			if at < 0 || len(frame) < at+markLen || int(frame[at+len(word)]) >= len(t.streams) {
				return
			}
			s := t.streams[frame[at+len(word)]]
			if s.to == p {
				s.arrive(binary.BigEndian.Uint64(frame[at+len(word)+1:]))
			}
		})
	}
}

// send the next packet of a stream.
func (s *stream) send() error {
	frames := s.build(s.next)
	s.next++
	for _, f := range frames {
		if err := s.from.tap.Send(f); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		s.sent++
	}
	return nil
}

// flow sends packets of all streams in turn, every millisecond one of each,
// until stop.
func (t *traffic) flow(stop <-chan struct{}) error {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-stop:
			return nil
		case <-tick.C:
		}
		for i, s := range t.streams {
			if n%s.pace() != i%s.pace() {
				continue
			}
			if err := s.send(); err != nil {
				return err
			}
		}
	}
}

// pace: fragments are limited to so many datagrams a second.
func (s *stream) pace() int {
	if bytes.Contains([]byte(s.name), []byte("fragments")) {
		return 4
	}
	return 2
}

// arrived waits until all that was sent is there, or nothing more comes.
func (t *traffic) arrived() (sent, got uint64) {
	quiet, last := 0, uint64(0)
	for quiet < 100 {
		sent, got = 0, 0
		for _, s := range t.streams {
			arrived, _ := s.tally()
			sent, got = sent+s.sent, got+arrived
		}
		if sent == got {
			return sent, got
		}
		if got == last {
			quiet++
		} else {
			quiet, last = 0, got
		}
		<-time.After(10 * time.Millisecond)
	}
	return sent, got
}

// Frames of the streams, between stations that the MACs are of.
type pair struct {
	srcMAC, dstMAC string
	src, dst       string // addresses
}

func (p pair) frame(q packet.Packet) [][]byte { return [][]byte{q.MACs(p.srcMAC, p.dstMAC).Bytes()} }

type maker = func(mark func(uint64) []byte, n uint64) [][]byte

func (p pair) udp(sport, dport int) maker {
	return func(mark func(uint64) []byte, n uint64) [][]byte {
		return p.frame(packet.UDP(fmt.Sprintf("%s:%d", p.src, sport), fmt.Sprintf("%s:%d", p.dst, dport)).Payload(mark(n)))
	}
}

// tcp is a segment of a connection that is open, always the same one but for its
// mark.
func (p pair) tcp(sport, dport int, seq, ack uint32) maker {
	return func(mark func(uint64) []byte, n uint64) [][]byte {
		return p.frame(packet.TCP(fmt.Sprintf("%s:%d", p.src, sport), fmt.Sprintf("%s:%d", p.dst, dport)).
			ACK().Sequence(seq).Acknowledge(ack).Payload(mark(n)))
	}
}

func (p pair) ping(id uint16) maker {
	return func(mark func(uint64) []byte, n uint64) [][]byte {
		return p.frame(packet.Ping(p.src, p.dst, id).Payload(mark(n)))
	}
}

func (p pair) pong(id uint16) maker {
	return func(mark func(uint64) []byte, n uint64) [][]byte {
		return p.frame(packet.Ping(p.src, p.dst, id).ICMP(0, 0).Payload(mark(n)))
	}
}

// fragments: a datagram in two pieces, each with a mark.
func (p pair) fragments(sport, dport int) maker {
	const first = 256
	return func(mark func(uint64) []byte, n uint64) [][]byte {
		payload := make([]byte, 2*first)
		copy(payload, mark(2*n))
		copy(payload[first-8:], mark(2*n+1))
		whole := packet.UDP(fmt.Sprintf("%s:%d", p.src, sport), fmt.Sprintf("%s:%d", p.dst, dport)).
			Payload(payload[:2*first-8]).ID(uint32(uint16(n))).MACs(p.srcMAC, p.dstMAC)
		var out [][]byte
		for _, f := range whole.Split(first) {
			out = append(out, f.Bytes())
		}
		return out
	}
}

// unreachable: an error about a datagram that the other side has sent.
func (p pair) unreachable(sport, dport int) maker {
	return func(mark func(uint64) []byte, n uint64) [][]byte {
		about := packet.UDP(fmt.Sprintf("%s:%d", p.dst, sport), fmt.Sprintf("%s:%d", p.src, dport)).Payload(mark(n)).IP()
		return p.frame(packet.ICMPError(p.src, p.dst, 3, 3, 0, about))
	}
}
