// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"bytes"
	"fmt"
	"time"

	"cairn/bpf"
	"cairn/test/model/firewall"
	"cairn/test/model/scenario"
)

// margin around the end of a flow's life in which two clocks may disagree.
const margin = 200 * time.Millisecond

// Difference is where model and programs part: at which step, and how.
type Difference struct {
	Steps []scenario.Step // up to and with the one
	What  string
}

func (d *Difference) Error() string {
	return fmt.Sprintf("%s\nafter:\n%s", d.What, scenario.Text(d.Steps))
}

// Source says what comes next; false ends it.
type Source func(at int, h *firewall.Host) (scenario.Step, bool)

// Of steps that are known beforehand.
func Of(steps []scenario.Step) Source {
	return func(at int, _ *firewall.Host) (scenario.Step, bool) {
		if at >= len(steps) {
			return scenario.Step{}, false
		}
		return steps[at], true
	}
}

// Made is a sequence that comes of a seed.
func Made(seed uint64) Source {
	g := scenario.NewGenerator(seed)
	return func(at int, h *firewall.Host) (scenario.Step, bool) {
		return g.Step(at, h), at < g.Length
	}
}

// Play puts what comes to the model and to the programs, from the beginning of
// the world, and stops at the first difference. Any other error is the test's
// own.
func (k *Kernel) Play(next Source) error {
	if err := k.Begin(); err != nil {
		return err
	}
	k.passed = 0
	h := scenario.NewModel()
	if err := k.Publish(h); err != nil {
		return err
	}
	var done []scenario.Step
	for {
		h.Now = k.Now()
		s, more := next(len(done), h)
		if !more {
			break
		}
		done = append(done, s)
		what, err := k.step(h, s)
		if err != nil {
			return fmt.Errorf("step %d, %s: %w", len(done), s, err)
		}
		if what != "" {
			return &Difference{done, what}
		}
	}
	what, err := k.compareFlows(h)
	if err == nil && what == "" {
		what, err = k.compareCounts(h)
	}
	if err == nil && what != "" {
		err = &Difference{done, what}
	}
	return err
}

func (k *Kernel) step(h *firewall.Host, s scenario.Step) (string, error) {
	switch {
	case s.Change != nil:
		scenario.Apply(h, *s.Change)
		if err := k.Publish(h); err != nil {
			return err.Error(), nil
		}
		return "", nil
	case s.Send != nil && !CanSend(*s.Send):
		return "", nil
	case s.Send != nil:
		if err := k.keepClear(h); err != nil {
			return "", err
		}
		return k.send(h, s)
	}
	if err := k.Wait(s.Wait); err != nil {
		return "", err
	}
	return "", nil
}

// keepClear lets some more time pass while a flow is about to end: whether it
// has ended by now is for neither clock to say.
func (k *Kernel) keepClear(h *firewall.Host) error {
	for again := true; again; {
		again = false
		h.Now = k.Now()
		for _, p := range h.Ports {
			for _, left := range p.Lives(h.Now) {
				again = again || -margin < left && left < margin
			}
		}
		if again {
			if err := k.Wait(2 * margin); err != nil {
				return err
			}
		}
	}
	return nil
}

func (k *Kernel) send(h *firewall.Host, s scenario.Step) (string, error) {
	got, err := k.Send(*s.Send)
	if err != nil {
		return err.Error(), nil // such as two exits of one packet: the program's fault
	}
	var unread error
	chosen := func() (port uint16) {
		if len(got.Out) > 0 {
			return sourcePort(got.Out)
		}
		port, unread = k.chosen()
		return port
	}
	want := scenario.Judge(h, *s.Send, chosen)
	switch {
	case unread != nil:
		return "", unread
	case got.Reason != want.Reason:
		return fmt.Sprintf("%s, the model says %s", got.Reason, want.Reason), nil
	case !bytes.Equal(got.Out, want.Out):
		return fmt.Sprintf("bytes differ\n got %x\nwant %x", got.Out, want.Out), nil
	case s.Want != nil && s.Want.Reason != got.Reason:
		return fmt.Sprintf("%s, the table says %s", got.Reason, s.Want.Reason), nil
	case s.Want != nil && s.Want.Rule != 0 && s.Want.Rule != want.Rule:
		return fmt.Sprintf("rule %d, the table says %d", want.Rule, s.Want.Rule), nil
	}
	return "", nil
}

// sourcePort of a frame with IPv4, as load-balanced ones are.
func sourcePort(b []byte) uint16 {
	if len(b) < 14+20 {
		return 0
	}
	at := 14 + int(b[14]&15)*4
	if len(b) < at+2 {
		return 0
	}
	return bigEndian(b, at)
}

// compareFlows of all ports: the same ones are there, but for those whose life
// is over, and the same is known of each.
func (k *Kernel) compareFlows(h *firewall.Host) (string, error) {
	if err := k.keepClear(h); err != nil {
		return "", err
	}
	for id, p := range h.Ports {
		found, err := k.Flows(id)
		if err != nil {
			return err.Error(), nil
		}
		for t, want := range p.Flows.All {
			if want.Left(t.Proto, h.Now) < 0 {
				delete(found, t)
				continue
			}
			got := found[t]
			if got == nil {
				return fmt.Sprintf("port %d: flow %+v is not there", id, t), nil
			}
			if what := compareFlow(*got, *want); what != "" {
				return fmt.Sprintf("port %d: flow %+v: %s", id, t, what), nil
			}
			delete(found, t)
		}
		for t, got := range found {
			if got.Left(t.Proto, h.Now) >= 0 {
				return fmt.Sprintf("port %d: flow %+v: the model has none", id, t), nil
			}
		}
	}
	return "", nil
}

func compareFlow(got, want firewall.Flow) string {
	if off := got.Seen - want.Seen; off < -margin || off > margin {
		return fmt.Sprintf("seen %s apart", off)
	}
	got.Seen, want.Seen = 0, 0
	if got != want {
		return fmt.Sprintf("%+v, the model has %+v", got, want)
	}
	return ""
}

// compareCounts of packets and bytes by rule.
func (k *Kernel) compareCounts(h *firewall.Host) (string, error) {
	m := k.maps["rule_stats"]
	for rule := range m.MaxEntries() {
		var perCPU []bpf.RuleStat
		if err := m.Lookup(rule, &perCPU); err != nil {
			return "", err
		}
		var got firewall.Count
		for _, n := range perCPU {
			got.Packets += n.Packets
			got.Bytes += n.Bytes
		}
		if want := h.Counts[firewall.RuleID(rule)]; got != want {
			return fmt.Sprintf("rule %d counted %+v, the model %+v", rule, got, want), nil
		}
	}
	return "", nil
}
