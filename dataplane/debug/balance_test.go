// SPDX-License-Identifier: Apache-2.0

package debug

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestLatencyBelow(t *testing.T) {
	l := Latency{Count: []uint64{1, 0, 2, 0, 1}}
	for q, want := range map[float64]time.Duration{0: time.Microsecond, 0.25: time.Microsecond, 0.5: 4 * time.Microsecond, 0.75: 4 * time.Microsecond, 1: 8 * time.Microsecond} {
		if got := l.Below(q); got != want {
			t.Errorf("below %v: %s, want %s", q, got, want)
		}
	}
	if got := (Latency{Count: make([]uint64, 5)}).Below(0.5); got != 0 {
		t.Errorf("of none: %s", got)
	}
}

func TestSkewOfShares(t *testing.T) {
	share := func(all ...int) (s Service) {
		for _, n := range all {
			s.Backends = append(s.Backends, Backend{Slots: n})
		}
		return s
	}
	for _, c := range []struct {
		s    Service
		want float64
	}{{share(), 0}, {share(0), 0}, {share(64, 64), 1}, {share(96, 32), 1.5}, {share(96, 32, 0), 1.5}} {
		if got := c.s.Skew(); got != c.want {
			t.Errorf("%+v: %v, want %v", c.s.Backends, got, c.want)
		}
	}
}

func TestRatesBetweenLooks(t *testing.T) {
	look := func(packets, bytes, refused uint64) []Service {
		quiet := Service{ID: 1, VIP: "quiet"}
		busy := Service{ID: 2, VIP: "busy", Traffic: Traffic{Packets: packets, Bytes: bytes, Opened: 7}}
		busy.Backends = []Backend{
			{ID: 8, Traffic: Traffic{Packets: packets}, Connections: Connections{Live: 3, Refused: refused, ResetsIn: refused, ResetsOut: 2 * refused}},
			{ID: 9, Connections: Connections{Live: 4, RetransmitsOut: refused}},
		}
		return []Service{quiet, busy}
	}
	got := RatesOf(look(100, 1000, 5), look(300, 5000, 15), 2*time.Second)
	want := []Rates{
		{Service: 2, VIP: "busy", Packets: 100, Bits: 16000, Refused: 5, Resets: 15, Again: 5, Live: 7},
		{Service: 2, VIP: "busy", Backend: 8, Packets: 100, Refused: 5, Resets: 15, Live: 3},
		{Service: 2, VIP: "busy", Backend: 9, Again: 5, Live: 4},
		{Service: 1, VIP: "quiet"},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	// Who is new, or counts from 0 again, has no rate.
	for _, before := range [][]Service{nil, look(1000, 99999, 99)} {
		for _, r := range RatesOf(before, look(300, 5000, 15), time.Second) {
			if r.Packets != 0 || r.Bits != 0 || r.Refused != 0 {
				t.Errorf("%+v", r)
			}
		}
	}
}

func TestTop(t *testing.T) {
	got, err := run(t, source{}, "top", "--interval", "100ms", "--count", "2")
	if err != nil || strings.Count(got, "PACKETS/S") != 2 || strings.Count(got, "203.0.113.1:80/tcp") != 2 {
		t.Errorf("%v\n%s", err, got)
	}
	got, err = run(t, source{}, "top", "--interval", "100ms", "--count", "1", "--json")
	var one Top
	if err != nil || json.Unmarshal([]byte(got), &one) != nil || len(one.Rates) != 3 || one.Over < 100*time.Millisecond {
		t.Errorf("%v\n%s", err, got)
	}
	for _, args := range [][]string{{"top", "--interval", "1ms"}, {"top", "--count", "-1"}, {"top", "more"}} {
		if _, err := run(t, source{}, args...); err == nil {
			t.Errorf("%v succeeded", args)
		}
	}
}

// Ctrl-C ends it, and is no error.
func TestTopEndsWithItsContext(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	serving, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- Serve(serving, socket, source{}) }()
	ctx, cancel := context.WithCancel(t.Context())
	c := Command()
	c.SilenceUsage, c.SilenceErrors = true, true
	c.SetOut(writer(func(b []byte) { cancel() })) // at the first look
	c.SetArgs([]string{"top", "--interval", "100ms", "--socket", socket})
	deadline := time.Now().Add(5 * time.Second)
	err := c.ExecuteContext(ctx)
	for err != nil && time.Now().Before(deadline) && ctx.Err() == nil {
		<-time.After(time.Millisecond) // it does not listen yet
		err = c.ExecuteContext(ctx)
	}
	if err != nil {
		t.Error(err)
	}
	stop()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

type writer func([]byte)

func (w writer) Write(b []byte) (int, error) { w(b); return len(b), nil }

// other is a node whose table is another one.
type other struct {
	source
	cur uint32
}

func (o other) Flow(f Flow) (Path, error) {
	p, err := o.source.Flow(f)
	p.Cur, p.Generation = o.cur, 5
	return p, err
}

func TestPathsOfSeveralNodes(t *testing.T) {
	sockets := func(nodes ...Source) (args []string) {
		for i, n := range nodes {
			socket := filepath.Join(t.TempDir(), string(rune('a'+i)))
			listening, stop := context.WithCancel(t.Context())
			served := make(chan error, 1)
			go func() { served <- Serve(listening, socket, n) }()
			t.Cleanup(func() {
				stop()
				if err := <-served; err != nil {
					t.Error(err)
				}
			})
			one := client{sockets: []string{socket}}
			var s Status
			for deadline := time.Now().Add(5 * time.Second); one.ask(t.Context(), "/status", &s) != nil && time.Now().Before(deadline); {
				<-time.After(time.Millisecond) // it does not listen yet
			}
			args = append(args, "--socket", socket)
		}
		return args
	}
	ask := func(verb []string, args []string) (string, error) {
		var out bytes.Buffer
		c := Command()
		c.SilenceUsage, c.SilenceErrors = true, true
		c.SetOut(&out)
		c.SetArgs(append(verb, args...))
		err := c.ExecuteContext(t.Context())
		return out.String(), err
	}
	flow := []string{"nlb", "192.0.2.1:40000", "203.0.113.1:80"}
	same := append(sockets(source{}, other{cur: 2}), "--socket", filepath.Join(t.TempDir(), "nobody"))
	got, err := ask(flow, same)
	if err != nil || strings.Count(got, "198.51.100.2:80") != 2 || !strings.Contains(got, "nobody") || strings.Contains(got, "differ") {
		t.Errorf("%v\n%s", err, got)
	}
	differ := sockets(source{}, other{cur: 1})
	if got, err := ask(flow, differ); !errors.Is(err, ErrSkewed) || !strings.Contains(got, "nodes differ") {
		t.Errorf("%v\n%s", err, got)
	}
	var nodes []NodePath
	got, err = ask(append(flow, "--json"), differ)
	if !errors.Is(err, ErrSkewed) || json.Unmarshal([]byte(got), &nodes) != nil || len(nodes) != 2 || nodes[1].Path.Generation != 5 {
		t.Errorf("%v\n%s", err, got)
	}
	if _, err := ask([]string{"status"}, differ); err == nil {
		t.Error("status asked two agents")
	}
}

func TestNLBOfTheHandler(t *testing.T) {
	server := httptest.NewServer(Handler(source{}))
	defer server.Close()
	answer, err := http.Get(server.URL + "/nlb")
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	var got []Service
	if err := json.NewDecoder(answer.Body).Decode(&got); err != nil {
		t.Fatal(err)
	}
	if want := (source{}).Services(); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}
