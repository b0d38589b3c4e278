// SPDX-License-Identifier: Apache-2.0

package debug

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cairn/dataplane/sync"
	"cairn/dataplane/table"
)

// source is an agent that knows what the test says.
type source struct {
	diff   Diff
	repair Repair
	drops  []Drop
	lines  []DropEvent
	frames []CaptureEvent
}

func (source) Status() Status {
	return Status{
		Name: "hv1", Version: "0.1", Started: time.Unix(0, 0).UTC(), Restarts: 2,
		Desired: table.Mark{Epoch: 1, Revision: 9}, Programmed: table.Mark{Epoch: 1, Revision: 8},
		Control: sync.State{Since: time.Unix(60, 0).UTC(), Error: "connection refused"}, UplinkDown: true, UplinkMTU: 1600,
		Digests: map[string]Digest{"host": {3, "00000000000000ff"}}, Alarm: "snapshot: it would remove the last 3 of kind host", Refusals: 1,
		Tunnels:   []Tunnel{{Host: 2, Endpoint: netip.MustParseAddr("10.64.0.3"), Errors: 4, Ago: 90 * time.Second, Last: "10.64.0.0 takes no packet above 1500 bytes"}},
		Unsettled: map[string]string{"service/3": "the map is full"}, Programs: map[string]uint32{"uplink": 7}, Maps: map[string]uint32{"vip4": 8},
		Memory: 37 << 20, Flows: 5,
	}
}

func (source) Ports() []Port {
	return []Port{
		{ID: 1, Instance: "a", Machine: "running", Addresses: []netip.Addr{netip.MustParseAddr("198.51.100.1")}, MAC: "02:ca:00:00:00:01", Policy: 3, Programmed: 1, Generation: 2, Device: 7, Attached: true, Flows: 4, Counters: Counters{PacketsIn: 5, BytesIn: 600, PacketsOut: 7, BytesOut: 800, Dropped: 9}},
		{ID: 2, Instance: "b", Machine: "absent", Policy: 3},
	}
}

func (source) Services() []Service {
	return []Service{{ID: 1, VIP: "203.0.113.1:80/tcp", Record: 1, Slots: 256, Generation: 4, Traffic: Traffic{9, 900, 2, 1}, Latency: Latency{[]uint64{0, 0, 3, 1, 0}, 17}, Backends: []Backend{
		{ID: 1, Host: 1, Endpoint: "local", Address: "198.51.100.1:80", Slots: 128, State: "ready", Check: "success", Traffic: Traffic{4, 400, 1, 0}, Connections: Connections{2, 5, 3, 1, 6, 7, 8, 9}},
		{ID: 2, Host: 2, Endpoint: "10.64.0.3", Address: "198.51.100.2:80", Slots: 128, Former: 9, State: "unhealthy"},
	}}}
}

func (source) Flow(f Flow) (Path, error) {
	if f.VIP.Port() != 80 {
		return Path{}, errors.New("no service that this host forwards")
	}
	return Path{Flow: f, Service: 1, Hash: 0xabc, Slot: 188, Cur: 2, Prev: 1, Generation: 4, Endpoint: "10.64.0.3", Address: "198.51.100.2:80"}, nil
}

func (s source) Diff() (Diff, error) { return s.diff, nil }

func (s source) Drops() ([]Drop, error) { return s.drops, nil }

// run a verb against an agent on a socket.
func run(t *testing.T, s Source, args ...string) (string, error) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- Serve(ctx, socket, s) }()
	defer func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}()
	deadline := time.Now().Add(5 * time.Second)
	for {
		var out bytes.Buffer
		c := Command()
		c.SilenceUsage, c.SilenceErrors = true, true
		c.SetOut(&out)
		c.SetArgs(append(args, "--socket", socket))
		err := c.ExecuteContext(ctx)
		if err != nil && strings.Contains(err.Error(), "connect: ") && time.Now().Before(deadline) {
			<-time.After(time.Millisecond) // it does not listen yet
			continue
		}
		return out.String(), err
	}
}

func TestVerbs(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"status"}, `agent       hv1                   0.1
started     1970-01-01T00:00:00Z  2 starts before
desired     revision 9 of epoch 1
programmed  revision 8 of epoch 1
control     not connected since 1970-01-01T00:01:00Z: connection refused
uplink      down, MTU 1600
memory      37.0 MiB
flows       5
refusals    1  snapshot: it would remove the last 3 of kind host
repaired    0

KIND  COUNT  DIGEST
host  3      00000000000000ff

TUNNEL TO            ERRORS  LAST       WHICH SAYS
host 2 at 10.64.0.3  4       1m30s ago  10.64.0.0 takes no packet above 1500 bytes

UNSETTLED  WHY
service/3  the map is full

programs uplink=7
maps vip4=8
`},
		{[]string{"ports"}, `PORT  INSTANCE  MACHINE  ADDRESSES     MAC                POLICY           GENERATION  DEVICE           FLOWS  IN      OUT     DROPPED
1     a         running  198.51.100.1  02:ca:00:00:00:01  3 as 1           2           7                4      5/600B  7/800B  9
2     b         absent                                    3, not in force  0           0, not attached  0      0/0B    0/0B    0
`},
		{[]string{"nlb"}, `SERVICE  VIP                 SLOTS     GENERATION  BACKEND  AT         ADDRESS          OWNS  OWNED  STATE      CHECK
1        203.0.113.1:80/tcp  256 at 0  4           1        local      198.51.100.1:80  128   0      ready      success
                                                   2        10.64.0.3  198.51.100.2:80  128   9      unhealthy  

SERVICE  BACKEND  TRAFFIC  SYN  HANDED ON  LIVE  OPENED  REFUSED  RST IN/OUT  AGAIN IN/OUT  SKEW   ANSWERS BELOW (50 %, 99 %)
1                 9/900B   2    1                                                           1.000  4µs, 8µs
         1        4/400B   1               2     5       1        6/7         8/9
         2        0/0B     0               0     0       0        0/0         0/0
`},
		{[]string{"nlb", "192.0.2.1:40000", "203.0.113.1:80/udp"}, `flow        192.0.2.1:40000 to 203.0.113.1:80, protocol 17
service     1
slot        188 of generation 4, hash 0x00000abc
backend     2 at 10.64.0.3, 198.51.100.2:80
former      1
known here  no
`},
		{[]string{"diff"}, "desired and programmed agree\n"},
		{[]string{"drops"}, "REASON     PACKETS\npolicy_in  3\n"},
		{[]string{"drops", "--all"}, "REASON     PACKETS\npolicy_in  3\nsent       9\n"},
	} {
		got, err := run(t, source{drops: []Drop{{"policy_in", 3, true}, {"sent", 9, false}}}, c.args...)
		if err != nil {
			t.Errorf("%v: %v", c.args, err)
		}
		if got != c.want {
			t.Errorf("%v:\n%s\nwant:\n%s", c.args, got, c.want)
		}
		text, err := run(t, source{drops: []Drop{{"policy_in", 3, true}}}, append(c.args, "--json")...)
		if err != nil || !json.Valid([]byte(text)) {
			t.Errorf("%v --json: %v\n%s", c.args, err, text)
		}
	}
}

func TestDiffFailsWhenTheyDiffer(t *testing.T) {
	s := source{diff: Diff{Missing: []string{"vteps 10.64.0.9 = host 9 for host/9"}, Foreign: []string{"vip4 x = 1"}, Faults: []string{"service/1: no"}}}
	for _, args := range [][]string{{"diff"}, {"diff", "--json"}} {
		got, err := run(t, s, args...)
		if !errors.Is(err, ErrDiffers) || !strings.Contains(got, "vteps 10.64.0.9") {
			t.Errorf("%v: %v\n%s", args, err, got)
		}
	}
}

func TestErrorsReachTheCaller(t *testing.T) {
	if _, err := run(t, source{}, "nlb", "192.0.2.1:1", "203.0.113.1:81"); err == nil || !strings.Contains(err.Error(), "no service that this host forwards") {
		t.Errorf("unknown service: %v", err)
	}
	for _, args := range [][]string{{"nlb", "192.0.2.1:1"}, {"nlb", "192.0.2.1", "203.0.113.1:80"}, {"nlb", "192.0.2.1:1", "203.0.113.1:80/sctp"}, {"status", "more"}} {
		if _, err := run(t, source{}, args...); err == nil {
			t.Errorf("%v succeeded", args)
		}
	}
	c := Command()
	c.SilenceUsage, c.SilenceErrors = true, true
	c.SetArgs([]string{"status", "--socket", filepath.Join(t.TempDir(), "nobody")})
	if err := c.Execute(); err == nil {
		t.Error("an agent that is not there answered")
	}
}

func TestWatchShowsWhatCameSince(t *testing.T) {
	before := map[string]uint64{}
	if got := since([]Drop{{"a", 3, true}, {"b", 1, false}}, before, false); len(got) != 1 || got[0].Count != 3 {
		t.Errorf("at first %v", got)
	}
	if got := since([]Drop{{"a", 3, true}, {"b", 5, false}}, before, true); len(got) != 1 || got[0] != (Drop{"b", 4, false}) {
		t.Errorf("then %v", got)
	}
}
