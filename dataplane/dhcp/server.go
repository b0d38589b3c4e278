// SPDX-License-Identifier: Apache-2.0

package dhcp

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"cairn/bpf"
	"cairn/cloud/wire"
	"cairn/dataplane/table"
)

// Server reads what the programs hand over and sends the answers out of the
// ports' devices.
type Server struct {
	ring   *ringbuf.Reader
	socket int
	dns    []netip.Addr
	log    *slog.Logger
	now    atomic.Pointer[knowledge]
	counts counts
}

// knowledge is what the server goes by: the tables and the devices of one
// moment.
type knowledge struct {
	view    table.View
	devices map[uint32]uint32 // port → interface index
}

type counts struct{ answered, silent, refused, failed atomic.Uint64 }

// Counts of questions since the start: answered, those that get no answer,
// those that make no sense, and answers that could not be sent.
type Counts struct{ Answered, Silent, Refused, Failed uint64 }

// Open takes the ring. DNS are the servers that instances are told of on their
// public interface.
func Open(punts *ebpf.Map, dns []netip.Addr, log *slog.Logger) (*Server, error) {
	// Bound to no device and to no protocol: it only sends.
	socket, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the socket of answers: %w", err)
	}
	// As an int: the mark has its highest bit set.
	if err := unix.SetsockoptInt(socket, unix.SOL_SOCKET, unix.SO_MARK, bpf.GuardMark); err != nil {
		return nil, errors.Join(fmt.Errorf("mark answers: %w", err), unix.Close(socket))
	}
	ring, err := ringbuf.NewReader(punts)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open the ring of questions: %w", err), unix.Close(socket))
	}
	return &Server{ring: ring, socket: socket, dns: dns, log: log}, nil
}

// Close ends the reader and the socket.
func (s *Server) Close() error { return errors.Join(s.ring.Close(), unix.Close(s.socket)) }

// Set what the server goes by from now on. Until the first call nothing is
// answered: guests ask again.
func (s *Server) Set(view table.View, devices map[uint32]uint32) {
	s.now.Store(&knowledge{view, devices})
}

// Counts so far.
func (s *Server) Counts() Counts {
	return Counts{s.counts.answered.Load(), s.counts.silent.Load(), s.counts.refused.Load(), s.counts.failed.Load()}
}

// Run answers until ctx ends.
func (s *Server) Run(ctx context.Context) {
	next := time.Now().Add(AdvertisePeriod)
	for ctx.Err() == nil {
		s.ring.SetDeadline(time.Now().Add(time.Second)) // to look whether ctx has ended
		record, err := s.ring.Read()
		switch {
		case err == nil:
			s.question(record.RawSample)
		case errors.Is(err, ringbuf.ErrClosed):
			return
		case !errors.Is(err, os.ErrDeadlineExceeded):
			s.log.Warn("read a question", "error", err)
		}
		if time.Now().After(next) {
			s.advertise()
			next = time.Now().Add(AdvertisePeriod)
		}
	}
}

func (s *Server) question(record []byte) {
	port, frame, err := puntOf(record)
	if err != nil {
		s.counts.refused.Add(1)
		s.log.Warn("question from the programs", "error", err)
		return
	}
	now := s.now.Load()
	if now == nil || now.devices[port] == 0 {
		s.counts.silent.Add(1)
		return
	}
	answer, err := s.answer(now, port, frame)
	switch {
	case errors.Is(err, ErrSilent):
		s.counts.silent.Add(1)
		s.log.Debug("question", "port", port, "silent", err)
	case err != nil:
		s.counts.refused.Add(1)
		s.log.Warn("question of a guest", "port", port, "error", err)
	default:
		s.send(now.devices[port], answer)
	}
}

// answer keeps what a guest has written from ending the agent.
func (s *Server) answer(now *knowledge, port uint32, frame []byte) (answer []byte, err error) {
	defer func() {
		if r := recover(); r != nil {
			answer, err = nil, fmt.Errorf("a message that cannot be read: %v", r)
		}
	}()
	link, ok := LinkOf(now.view, port, s.dns)
	if !ok {
		return nil, fmt.Errorf("%w: nothing is leased to port %d", ErrSilent, port)
	}
	return Answer(link, frame)
}

func (s *Server) advertise() {
	now := s.now.Load()
	if now == nil {
		return
	}
	for p := range table.All[wire.Port](now.view) {
		link, ok := LinkOf(now.view, p.ID, s.dns)
		if !ok || len(link.Addresses6) == 0 || now.devices[p.ID] == 0 {
			continue
		}
		frame, err := Advertisement(link)
		if err != nil {
			s.log.Warn("advertise", "port", p.ID, "error", err)
			continue
		}
		s.send(now.devices[p.ID], frame)
	}
}

func (s *Server) send(device uint32, frame []byte) {
	if err := unix.Sendto(s.socket, frame, 0, &unix.SockaddrLinklayer{Ifindex: int(device)}); err != nil {
		s.counts.failed.Add(1)
		s.log.Warn("send an answer", "device", device, "error", err)
		return
	}
	s.counts.answered.Add(1)
}

// puntOf takes a record of the ring apart (struct punt): the port, and the frame
// that it sent.
func puntOf(record []byte) (port uint32, frame []byte, err error) {
	const head = 16
	if len(record) < head {
		return 0, nil, fmt.Errorf("a record of %d bytes", len(record))
	}
	port = binary.NativeEndian.Uint32(record[8:])
	length := binary.NativeEndian.Uint32(record[12:])
	if length > bpf.PuntMax || int(length) > len(record)-head {
		return 0, nil, fmt.Errorf("a record of %d bytes says it has %d", len(record), length)
	}
	return port, record[head : head+int(length)], nil
}
