// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"cairn/dataplane/debug"
)

type source struct{ err error }

func (source) Status() debug.Status {
	s := debug.Status{Started: time.Unix(77, 0), Restarts: 2, Memory: 4096, Flows: 5, Refusals: 1}
	s.Desired.Revision, s.Programmed.Revision = 9, 8
	s.Control.Connected = true
	return s
}

func (source) Ports() []debug.Port {
	return []debug.Port{{ID: 3, Instance: `a "quoted\" name`, Counters: debug.Counters{PacketsIn: 1, BytesIn: 2, PacketsOut: 3, BytesOut: 4, Dropped: 5}}}
}

func (source) Services() []debug.Service {
	return []debug.Service{{
		ID: 1, VIP: "203.0.113.1:80/tcp", Traffic: debug.Traffic{Packets: 9, Bytes: 900, Opened: 2, Forwarded: 1},
		Latency: debug.Latency{Count: []uint64{1, 0, 3, 2}, Micros: 1500},
		Backends: []debug.Backend{
			{ID: 1, Endpoint: "local", Address: "198.51.100.1:80", Slots: 96, Traffic: debug.Traffic{Packets: 4, Bytes: 400, Opened: 1},
				Connections: debug.Connections{Live: 2, Opened: 5, Closed: 3, Refused: 1, ResetsIn: 6, ResetsOut: 7, RetransmitsIn: 8, RetransmitsOut: 9}},
			{ID: 2, Endpoint: "10.64.0.3", Address: "198.51.100.2:80", Slots: 32},
		},
	}, {ID: 2, VIP: "[2001:db8::1]:53/udp"}}
}

func (s source) Drops() ([]debug.Drop, error) {
	return []debug.Drop{{Reason: "policy_in", Count: 3, Drop: true}, {Reason: "sent", Count: 12}}, s.err
}

func TestMetrics(t *testing.T) {
	var b bytes.Buffer
	if err := Write(&b, source{}); err != nil {
		t.Fatal(err)
	}
	page := b.String()
	for _, line := range []string{
		`cairn_agent_connected 1`,
		`cairn_agent_desired_revision 9`,
		`cairn_agent_programmed_revision 8`,
		`cairn_agent_starts_before_total 2`,
		`cairn_dropped_packets_total{reason="policy_in"} 3`,
		`cairn_left_packets_total{reason="sent"} 12`,
		`cairn_port_bytes_total{port="3",instance="a \"quoted\\\" name",direction="out"} 4`,
		`cairn_vip_packets_total{service="1",vip="203.0.113.1:80/tcp"} 9`,
		`cairn_vip_forwarded_total{service="1",vip="203.0.113.1:80/tcp"} 1`,
		`cairn_vip_packets_total{service="2",vip="[2001:db8::1]:53/udp"} 0`,
		`cairn_vip_slots_skew{service="1",vip="203.0.113.1:80/tcp"} 1.5`,
		`cairn_vip_connect_seconds_bucket{service="1",vip="203.0.113.1:80/tcp",le="1e-06"} 1`,
		`cairn_vip_connect_seconds_bucket{service="1",vip="203.0.113.1:80/tcp",le="2e-06"} 1`,
		`cairn_vip_connect_seconds_bucket{service="1",vip="203.0.113.1:80/tcp",le="4e-06"} 4`,
		`cairn_vip_connect_seconds_bucket{service="1",vip="203.0.113.1:80/tcp",le="+Inf"} 6`,
		`cairn_vip_connect_seconds_sum{service="1",vip="203.0.113.1:80/tcp"} 0.0015`,
		`cairn_vip_connect_seconds_count{service="1",vip="203.0.113.1:80/tcp"} 6`,
		`cairn_backend_packets_total{service="1",vip="203.0.113.1:80/tcp",backend="1",address="198.51.100.1:80"} 4`,
		`cairn_backend_slots{service="1",vip="203.0.113.1:80/tcp",backend="2",address="198.51.100.2:80"} 32`,
		`cairn_backend_connections{service="1",vip="203.0.113.1:80/tcp",backend="1",address="198.51.100.1:80"} 2`,
		`cairn_backend_refused_total{service="1",vip="203.0.113.1:80/tcp",backend="1",address="198.51.100.1:80"} 1`,
		`cairn_backend_resets_total{service="1",vip="203.0.113.1:80/tcp",backend="1",address="198.51.100.1:80",direction="out"} 7`,
		`cairn_backend_retransmits_total{service="1",vip="203.0.113.1:80/tcp",backend="1",address="198.51.100.1:80",direction="in"} 8`,
	} {
		if !strings.Contains(page, "\n"+line+"\n") {
			t.Errorf("no line %s", line)
		}
	}
	if strings.Contains(page, `cairn_backend_connections{service="1",vip="203.0.113.1:80/tcp",backend="2"`) {
		t.Error("connections of another host's backend are told")
	}
	wellFormed(t, page)
	if err := Write(io.Discard, source{errors.New("no map")}); err == nil {
		t.Error("counters that cannot be read are no error")
	}
}

// wellFormed checks the page as a reader of it would: each value belongs to the family
// announced before it, and no series comes twice.
func wellFormed(t *testing.T, page string) {
	t.Helper()
	line := regexp.MustCompile(`^([a-z_]+)(\{[a-z_]+="(\\.|[^"\\])*"(,[a-z_]+="(\\.|[^"\\])*")*\})? [0-9.e+-]+$`)
	family, kind, seen := "", "", map[string]bool{}
	for text := range strings.Lines(page) {
		text = strings.TrimSuffix(text, "\n")
		if rest, ok := strings.CutPrefix(text, "# TYPE "); ok {
			family, kind, _ = strings.Cut(rest, " ")
			if seen["# "+family] {
				t.Errorf("family %s comes twice", family)
			}
			seen["# "+family] = true
			continue
		}
		if strings.HasPrefix(text, "# HELP ") {
			continue
		}
		m := line.FindStringSubmatch(text)
		if m == nil {
			t.Errorf("not a line: %s", text)
			continue
		}
		name := m[1]
		if kind == "histogram" {
			name = strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(name, "_bucket"), "_sum"), "_count")
		}
		if name != family || kind == "counter" != strings.HasSuffix(name, "_total") {
			t.Errorf("%s is in family %s, a %s", text, family, kind)
		}
		series := text[:strings.LastIndexByte(text, ' ')]
		if seen[series] {
			t.Errorf("%s comes twice", series)
		}
		seen[series] = true
	}
}

func TestWhereMetricsMayBe(t *testing.T) {
	for address, good := range map[string]bool{
		"unix:/run/m": true, "127.0.0.1:9100": true, "[::1]:9100": true, "127.9.9.9:0": true,
		"unix:": false, "0.0.0.0:9100": false, "192.0.2.1:9100": false, "[::]:9100": false, ":9100": false, "localhost:9100": false, "": false,
	} {
		if err := Check(address); (err == nil) != good {
			t.Errorf("%q: %v", address, err)
		}
	}
}

func TestServe(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "m")
	for range 2 { // the second one finds the first one's socket
		ctx, stop := context.WithCancel(t.Context())
		served := make(chan error, 1)
		go func() { served <- Serve(ctx, "unix:"+socket, source{}) }()
		client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		}}}
		answer, err := client.Get("http://agent/metrics")
		for deadline := time.Now().Add(5 * time.Second); err != nil && time.Now().Before(deadline); answer, err = client.Get("http://agent/metrics") {
			<-time.After(time.Millisecond) // it does not listen yet
		}
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(answer.Body)
		answer.Body.Close()
		if err != nil || answer.Header.Get("Content-Type") != ContentType || !strings.Contains(string(body), "cairn_agent_connected 1") {
			t.Errorf("%v, %v\n%s", err, answer.Header, body)
		}
		client.CloseIdleConnections()
		stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}
	if err := Serve(t.Context(), "unix:"+filepath.Join(socket, "no", "folder"), source{}); err == nil {
		t.Error("served where there is no folder")
	}
}
