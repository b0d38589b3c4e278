// SPDX-License-Identifier: Apache-2.0

package story

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"cairn/test/lab"
)

// Answer is what an instance says of itself and of who asked.
type Answer struct {
	Instance string         `json:"instance"`
	Peer     netip.AddrPort `json:"peer"`
}

// Ask sends one HTTP request over a connection of its own from the given source
// port (0: any) and reads the answer.
func Ask(ctx context.Context, from lab.Host, port int, to netip.AddrPort) (Answer, error) {
	var a Answer
	network := "tcp4"
	if to.Addr().Is6() {
		network = "tcp6"
	}
	conn, err := from.DialFrom(ctx, network, port, to.String())
	if err != nil {
		return a, err
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline)
	}
	if _, err := fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", to); err != nil {
		return a, err
	}
	in := bufio.NewReader(conn)
	resp, err := http.ReadResponse(in, nil)
	if err != nil {
		return a, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return a, err
	}
	// The server closes first, so that this side has no TIME_WAIT and the port
	// can be used again.
	if _, err := in.ReadByte(); err != io.EOF {
		return a, fmt.Errorf("expected the end of the connection: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return a, fmt.Errorf("status %s", resp.Status)
	}
	return a, json.Unmarshal(body, &a)
}

// AskUDP sends one datagram and reads the answer.
func AskUDP(ctx context.Context, from lab.Host, to netip.AddrPort) (Answer, error) {
	var a Answer
	network := "udp4"
	if to.Addr().Is6() {
		network = "udp6"
	}
	conn, err := from.DialContext(ctx, network, to.String())
	if err != nil {
		return a, err
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline)
	}
	if _, err := conn.Write([]byte("hello\n")); err != nil {
		return a, err
	}
	buffer := make([]byte, 2048)
	n, err := conn.Read(buffer)
	if err != nil {
		return a, err
	}
	return a, json.Unmarshal(buffer[:n], &a)
}

// Spread is how many requests each instance answered, and what went wrong.
type Spread struct {
	Answered map[string]int
	Foreign  int // answers to a peer that is not the client's own address
	Errors   []error
}

// AskMany sends a request from each of the source ports, times over, at most
// eight at once.
func AskMany(ctx context.Context, from lab.Host, to netip.AddrPort, ports []int, times int) Spread {
	s := Spread{Answered: map[string]int{}}
	var mu sync.Mutex
	for range times {
		var g errgroup.Group
		g.SetLimit(8)
		for _, port := range ports {
			g.Go(func() error {
				ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
				defer cancel()
				a, err := Ask(ctx, from, port, to)
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					s.Errors = append(s.Errors, fmt.Errorf("from port %d: %w", port, err))
					return nil
				}
				s.Answered[a.Instance]++
				if a.Peer.Addr() != from.Address || (port != 0 && int(a.Peer.Port()) != port) {
					s.Foreign++
				}
				return nil
			})
		}
		_ = g.Wait()
	}
	return s
}

// Ports lists n source ports from first on.
func Ports(first, n int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = first + i
	}
	return out
}

// Total counts the answers.
func (s Spread) Total() int {
	n := 0
	for _, v := range s.Answered {
		n += v
	}
	return n
}

func (s Spread) String() string {
	names := make([]string, 0, len(s.Answered))
	for name := range s.Answered {
		names = append(names, name)
	}
	slices.Sort(names)
	var out strings.Builder
	for _, name := range names {
		out.WriteString(fmt.Sprintf("%s %d (%.1f %%)  ", name, s.Answered[name], 100*float64(s.Answered[name])/float64(s.Total())))
	}
	return out.String() + fmt.Sprintf("failed %d", len(s.Errors))
}

// Load is a stream of requests at a fixed rate, each over a connection of its
// own with a timeout of one second and no retry. Requests start on time
// whatever became of those before.
type Load struct {
	cancel context.CancelFunc
	done   chan struct{}

	mu    sync.Mutex
	sent  int
	ended []Request
}

// Request is one request of a load.
type Request struct {
	Start time.Time
	Took  time.Duration
	Err   error
}

// StartLoad sends rate requests a second until Stop.
func StartLoad(ctx context.Context, from lab.Host, to netip.AddrPort, rate int) *Load {
	ctx, cancel := context.WithCancel(ctx)
	l := &Load{cancel: cancel, done: make(chan struct{})}
	go l.run(ctx, from, to, time.Second/time.Duration(rate))
	return l
}

func (l *Load) run(ctx context.Context, from lab.Host, to netip.AddrPort, every time.Duration) {
	defer close(l.done)
	var wg sync.WaitGroup
	defer wg.Wait()
	timer := time.NewTimer(0)
	defer timer.Stop()
	// Not a ticker: it forgets the ticks that nobody was there for, and the rate
	// with them.
	for next := time.Now(); ; next = next.Add(every) {
		timer.Reset(time.Until(next))
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		l.mu.Lock()
		l.sent++
		l.mu.Unlock()
		wg.Go(func() {
			start := time.Now()
			one, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
			defer cancel()
			_, err := Ask(one, from, 0, to)
			l.mu.Lock()
			defer l.mu.Unlock()
			l.ended = append(l.ended, Request{start, time.Since(start), err})
		})
	}
}

// Sent counts the requests that were started.
func (l *Load) Sent() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.sent
}

// Stop ends the load, waits for its last request and returns all of them in
// the order of their start.
func (l *Load) Stop() []Request {
	l.cancel()
	<-l.done
	slices.SortFunc(l.ended, func(a, b Request) int { return a.Start.Compare(b.Start) })
	return l.ended
}

// Failures of the requests that started in [from, to); a zero time is no bound.
func Failures(all []Request, from, to time.Time) (failed []Request, sent int) {
	for _, r := range all {
		if r.Start.Before(from) || (!to.IsZero() && !r.Start.Before(to)) {
			continue
		}
		sent++
		if r.Err != nil {
			failed = append(failed, r)
		}
	}
	return failed, sent
}

// Window is the time from an event to the start of the last request that
// failed after it; 0 if none did.
func Window(all []Request, event time.Time) time.Duration {
	failed, _ := Failures(all, event, time.Time{})
	if len(failed) == 0 {
		return 0
	}
	return failed[len(failed)-1].Start.Sub(event)
}

// Gap is the longest time between the starts of two requests that succeeded
// one after the other: of a control flow, what the machine's own stalls cost.
func Gap(all []Request) time.Duration {
	var gap time.Duration
	var last time.Time
	for _, r := range all {
		if r.Err != nil {
			continue
		}
		if !last.IsZero() {
			gap = max(gap, r.Start.Sub(last))
		}
		last = r.Start
	}
	return gap
}

// ControlFlow serves the same requests on the router itself, past everything
// under test, and loads it at the given rate.
func ControlFlow(ctx context.Context, l *lab.Lab, rate int) (*Load, func(), error) {
	listener, err := l.Router().Listen("tcp4", net.JoinHostPort(l.Router().Address.String(), "0"))
	if err != nil {
		return nil, nil, err
	}
	server := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, `{"instance":"control","peer":`+strconv.Quote(r.RemoteAddr)+`}`)
	})}
	go func() { _ = server.Serve(listener) }()
	to, err := netip.ParseAddrPort(listener.Addr().String())
	if err != nil {
		return nil, nil, err
	}
	return StartLoad(ctx, l.Client(1), to, rate), func() { _ = server.Close() }, nil
}
