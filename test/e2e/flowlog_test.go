// SPDX-License-Identifier: Apache-2.0

//go:build lab

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v3 "github.com/exoscale/egoscale/v3"

	"cairn/cloud"
	"cairn/cloud/client"
	"cairn/cloud/meter"
	"cairn/controlplane/eventlog"
	"cairn/controlplane/store"
	"cairn/controlplane/tenant"
	"cairn/controlplane/zone"
	"cairn/test/lab"
	"cairn/test/story"
)

// logged is an instance whose flows are logged.
type logged struct {
	*cloudUnderTest
	api      *client.Client
	instance cloud.ID
	address  netip.Addr
	group    v3.UUID
	rules    map[int64]cloud.ID // by port
}

// TestFlowLogAndUsage: what a customer reads of the flows of an instance, what it
// is billed for, and that neither depends on the life of an agent.
func TestFlowLogAndUsage(t *testing.T) {
	t.Parallel()
	l := newLogged(t)
	t.Run("off, nothing is logged", l.silent)
	l.turnOn()
	t.Run("opened, and closed", l.opensAndCloses)
	t.Run("denied", l.denies)
	t.Run("usage is what was sent", l.counts)
	t.Run("others read nothing", l.isPrivate)
	t.Run("the agent is killed", l.outlivesTheAgent)
	t.Run("cairnd is killed", l.outlivesTheControlPlane)
}

func newLogged(t *testing.T) *logged {
	t.Helper()
	c := newCloud(t, lab.Config{Hypervisors: 1, Agent: []string{"--usage-every", "200ms"}, Control: []string{"--usage-window", "2s"}})
	l := &logged{cloudUnderTest: c, rules: map[int64]cloud.ID{}}
	l.api = client.New(c.API(), c.Credentials().Key, c.Credentials().Secret)
	var err error
	l.group, err = c.Group("web", 80)
	must(t, "security group", err)
	must(t, "rule for UDP", c.Admit(l.group, v3.AddRuleToSecurityGroupRequestProtocolUDP, 7))
	group, err := c.GetSecurityGroup(t.Context(), l.group)
	must(t, "read the group", err)
	for _, r := range group.Rules {
		l.rules[r.StartPort] = cloud.ID(r.ID)
	}
	id, err := c.Launch("web", "", l.group)
	must(t, "instance", err)
	l.instance = cloud.ID(id)
	i, err := c.GetInstance(t.Context(), id)
	must(t, "read the instance", err)
	l.address, _ = netip.AddrFromSlice(i.PublicIP.To4())
	lab.Eventually(t, "an answer", 20*time.Second, func() error { return l.ask(0) })
	return l
}

func (l *logged) ask(port int) error {
	ctx, cancel := context.WithTimeout(l.Context(), 2*time.Second)
	defer cancel()
	_, err := story.Ask(ctx, l.Client(1), port, netip.AddrPortFrom(l.address, 80))
	return err
}

// Client of the lab: the customer has a method of that name too.
func (l *logged) Client(n int) lab.Host { return l.Lab.Client(n) }

func (l *logged) flows(api *client.Client, query string) (cloud.FlowList, error) {
	in := client.ByID(l.instance)
	in.Query, _ = url.ParseQuery(query)
	return client.Call[cloud.FlowList](l.Context(), api, "get-instance-flows", in)
}

// find waits for a flow of the log.
func (l *logged) find(t *testing.T, what string, is func(cloud.Flow) bool) (found cloud.Flow) {
	t.Helper()
	lab.Eventually(t, what, 15*time.Second, func() error {
		list, err := l.flows(l.api, "limit=1000")
		if err != nil {
			return err
		}
		for _, f := range list.Flows {
			if is(f) {
				found = f
				return nil
			}
		}
		return fmt.Errorf("among %d: %+v", len(list.Flows), list.Flows)
	})
	return found
}

func (l *logged) turnOn() {
	l.Helper()
	in := client.ByID(l.instance)
	in.Body = cloud.UpdateInstanceRequest{FlowLog: true}
	_, err := l.api.Run(l.Context(), "update-instance", in)
	must(l.T, "turn the flow log on", err)
	i, err := client.Call[cloud.Instance](l.Context(), l.api, "get-instance", client.ByID(l.instance))
	if err != nil || !i.FlowLog {
		l.Fatalf("flow-log %t, %v", i.FlowLog, err)
	}
}

func (l *logged) silent(t *testing.T) {
	must(t, "ask", l.ask(20000))
	list, err := l.flows(l.api, "")
	if err != nil || len(list.Flows) != 0 {
		t.Errorf("%+v, %v", list.Flows, err)
	}
}

// opensAndCloses sends two requests from one port: the second takes the place of
// the first, which is over.
func (l *logged) opensAndCloses(t *testing.T) {
	const port = 20001
	from := func(event string) func(cloud.Flow) bool {
		return func(f cloud.Flow) bool { return f.Event == event && f.SourcePort == port }
	}
	before := time.Now()
	must(t, "ask", l.ask(port))
	opened := l.find(t, "opened", from(cloud.FlowOpened))
	must(t, "ask again", l.ask(port))
	closed := l.find(t, "closed", from(cloud.FlowClosed))
	for _, f := range []cloud.Flow{opened, closed} {
		if f.Direction != cloud.Ingress || f.Protocol != "tcp" || f.Source != l.Client(1).Address || f.Destination != l.address || f.DestinationPort != 80 ||
			f.Rule == nil || f.Rule.ID != l.rules[80] || f.Rule.SecurityGroup == nil || f.Rule.SecurityGroup.ID != cloud.ID(l.group) ||
			f.Reason != "" || f.At.Before(before.Add(-time.Second)) || f.At.After(time.Now().Add(time.Second)) {
			t.Errorf("%+v, rule %+v, want %s", f, f.Rule, l.rules[80])
		}
	}
	if opened.Packets != 0 || closed.Packets < 8 || closed.Bytes < 8*40+100 || closed.Bytes > 10_000 || closed.OpenedAt.Sub(opened.At).Abs() > time.Second {
		t.Errorf("opened %+v, closed %+v", opened, closed)
	}
}

func (l *logged) denies(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if conn, err := l.Client(1).DialFrom(ctx, "tcp4", 20002, netip.AddrPortFrom(l.address, 81).String()); err == nil {
		conn.Close()
		t.Fatal("admitted without a rule")
	}
	f := l.find(t, "denied", func(f cloud.Flow) bool { return f.Event == cloud.FlowDenied })
	if f.SourcePort != 20002 || f.DestinationPort != 81 || f.Reason != "policy_in" || f.Rule != nil || f.Direction != cloud.Ingress {
		t.Errorf("%+v", f)
	}
}

// events of the instance that cairnd has written to its log.
func (l *logged) events(t *testing.T, kind eventlog.Kind) (out []eventlog.Event) {
	t.Helper()
	log := eventlog.Folder(filepath.Join(l.ControlState(), "events"))
	for from := uint64(0); ; {
		page, next, err := log.Read(from, 1000)
		must(t, "read the event log", err)
		for _, e := range page {
			if e.Kind == kind && (e.Instance == l.instance || kind == eventlog.Lost) {
				out = append(out, e)
			}
		}
		if len(page) == 0 {
			return out
		}
		from = next
	}
}

// used is the sum of all windows. A cairnd that was killed may tell one again: as it
// was, and under the same id.
func (l *logged) used(t *testing.T) (in, out, packets uint64) {
	t.Helper()
	seen := map[string]meter.Usage{}
	for _, e := range l.events(t, eventlog.Usage) {
		if had, again := seen[e.ID]; again {
			if had != *e.Usage {
				t.Fatalf("window %s is told as %+v and as %+v", e.Usage.Start, had, *e.Usage)
			}
			continue
		}
		seen[e.ID] = *e.Usage
		in, out, packets = in+e.Usage.BytesIn, out+e.Usage.BytesOut, packets+e.Usage.PacketsIn
	}
	return in, out, packets
}

// counts sends datagrams of known lengths and expects their lengths, with the
// headers of IP and UDP, and nothing else. The answer to the longest does not fit
// into one packet, and has a header of IP in each.
func (l *logged) counts(t *testing.T) {
	const header = 20 + 8
	quiet := l.quiet(t)
	var in, out, packets uint64
	pieces := 0
	conn, err := l.Client(1).DialContext(t.Context(), "udp4", netip.AddrPortFrom(l.address, 7).String())
	must(t, "dial", err)
	defer conn.Close()
	buffer := make([]byte, 2048)
	for _, size := range []int{1, 100, 1000, 1460} {
		must(t, "deadline", conn.SetDeadline(time.Now().Add(2*time.Second)))
		_, err := conn.Write([]byte(strings.Repeat("x", size)))
		must(t, "send", err)
		n, err := conn.Read(buffer)
		must(t, "receive", err)
		in, out, packets = in+uint64(size+header), out+uint64(n+header), packets+1
		if n+header > 1500 {
			out += 20
			pieces++
		}
	}
	if pieces != 1 {
		t.Errorf("%d answers came in pieces", pieces)
	}
	lab.Eventually(t, "the usage", 15*time.Second, func() error {
		nowIn, nowOut, nowPackets := l.used(t)
		if got, want := [3]uint64{nowIn - quiet[0], nowOut - quiet[1], nowPackets - quiet[2]}, [3]uint64{in, out, packets}; got != want {
			return fmt.Errorf("in, out, packets in: %v, want %v", got, want)
		}
		return nil
	})
	t.Logf("usage in=%d out=%d packets=%d", in, out, packets)
	must(t, "kill cairnd", l.Control().Restart())
	now := l.quiet(t)
	if got, want := now, [3]uint64{quiet[0] + in, quiet[1] + out, quiet[2] + packets}; got != want {
		t.Errorf("later %v, want %v", got, want)
	}
	for _, e := range l.events(t, eventlog.Usage) {
		if e.Usage.End.Sub(e.Usage.Start) != 2*time.Second || e.Usage.Resource != l.instance || e.Org == "" {
			t.Errorf("window %+v", e.Usage)
		}
	}
}

// quiet waits until all that was sent before is in closed windows.
func (l *logged) quiet(t *testing.T) (sum [3]uint64) {
	t.Helper()
	var since time.Time
	lab.Eventually(t, "all windows", 30*time.Second, func() error {
		in, out, packets := l.used(t)
		if now := [3]uint64{in, out, packets}; now != sum || since.IsZero() {
			sum, since = now, time.Now()
		}
		if time.Since(since) < 4*time.Second { // a window, its grace, and a report
			return errors.New("it may change")
		}
		return nil
	})
	return sum
}

// isPrivate asks as another organisation, which is made beside the running zone.
func (l *logged) isPrivate(t *testing.T) {
	folder := zone.Folder{State: l.ControlState()}
	s, err := folder.Open(t.Context())
	must(t, "open the zone", err)
	defer s.Close()
	root, err := store.LoadRootKey(filepath.Join(folder.State, "root.key"))
	must(t, "root key", err)
	var key store.APIKey
	_, err = s.Write(t.Context(), func(tx *store.Tx) (err error) {
		key, err = tenant.Found(tx, root, "others")
		return err
	})
	must(t, "another organisation", err)
	others := client.New(l.API(), key.Key, key.Secret)
	var refused *cloud.Error
	if list, err := l.flows(others, ""); !errors.As(err, &refused) || refused.Kind != cloud.NotFound {
		t.Errorf("others read %+v, %v", list, err)
	}
	if list, err := l.flows(l.api, "limit=1"); err != nil || len(list.Flows) != 1 {
		t.Errorf("the owner reads %+v, %v", list, err)
	}
}

// outlivesTheAgent opens flows before, while and after the agent is dead. Each is
// in the log or counted as lost.
func (l *logged) outlivesTheAgent(t *testing.T) {
	const first, each = 21000, 20
	next := first
	open := func() {
		t.Helper()
		for range each {
			must(t, "ask", l.ask(next))
			next++
		}
	}
	lost := func() (sum uint64) {
		for _, e := range l.events(t, eventlog.Lost) {
			sum += e.Loss.Agent + e.Loss.ControlPlane
		}
		return sum
	}
	before := lost()
	open()
	must(t, "kill the agent", l.Agent(1).Kill())
	open()
	must(t, "start the agent", l.Agent(1).Start())
	open()
	l.find(t, "the last one", func(f cloud.Flow) bool { return int(f.SourcePort) == next-1 })
	var told uint64
	lab.Eventually(t, "all flows", 15*time.Second, func() error {
		seen := map[uint16]bool{}
		for _, e := range l.events(t, eventlog.FlowOpened) {
			if int(e.Flow.SourcePort) >= first && int(e.Flow.SourcePort) < next {
				seen[e.Flow.SourcePort] = true
			}
		}
		told = uint64(len(seen))
		if all := told + lost() - before; all < 3*each {
			return fmt.Errorf("%d told, %d lost of %d", told, lost()-before, 3*each)
		}
		return nil
	})
	t.Logf("opened %d flows=%d lost=%d", 3*each, told, lost()-before)
	if told < 2*each {
		t.Errorf("%d of %d flows are in the log", told, 3*each)
	}
}

// outlivesTheControlPlane: what was logged stays, and it goes on.
func (l *logged) outlivesTheControlPlane(t *testing.T) {
	const port = 22000
	must(t, "ask", l.ask(port))
	l.find(t, "before", func(f cloud.Flow) bool { return f.SourcePort == port })
	before, err := l.flows(l.api, "limit=1000")
	must(t, "read", err)
	must(t, "kill cairnd", l.Control().Restart())
	must(t, "ask", l.ask(port+1)) // while it is away
	after := cloud.FlowList{}
	lab.Eventually(t, "the flow from while it was away", 15*time.Second, func() (err error) {
		after, err = l.flows(l.api, fmt.Sprintf("from=%d", before.Next))
		if err == nil && len(after.Flows) == 0 {
			err = errors.New("no more flows")
		}
		return err
	})
	if f := after.Flows[0]; f.Offset < before.Next || f.SourcePort != port+1 {
		t.Errorf("behind %d: %+v", before.Next, f)
	}
	again, err := l.flows(l.api, fmt.Sprintf("from=%d&limit=%d", before.Flows[0].Offset, len(before.Flows)))
	if err != nil || !slices.EqualFunc(again.Flows, before.Flows, func(a, b cloud.Flow) bool { return a.Offset == b.Offset && a.At.Equal(b.At) }) {
		t.Errorf("%d flows before, now %d, %v", len(before.Flows), len(again.Flows), err)
	}
}
