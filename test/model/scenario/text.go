// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"cairn/test/model/firewall"
	"cairn/test/model/frame"
)

// A text has one step a line:
//
//	groups 5 1,2                                 port 5 is in groups 1 and 2
//	rule 17 of 1 in tcp 80-90 from 192.0.2.0/24  keep may follow
//	rule 18 of 1 out icmp 8/-1 group 2
//	no-rule 17
//	join 192.0.2.9 of 2                          and leave
//	source 10.0.0.0/8 of 2                       and no-source
//	strict 5                                     so mail and no-mail
//	wait 31s
//	uplink tcp 192.0.2.9:1 > 198.51.100.5:80 S => to_port 17
//	uplink@7 ...                                 through service 7
//	vm5 ...                                      and door ...
//
// What follows => is wanted: the reason, and the rule if any is named.

func (s Step) String() string {
	line := ""
	switch {
	case s.Change != nil:
		line = s.Change.String()
	case s.Send != nil:
		line = s.Send.String()
	default:
		line = "wait " + s.Wait.String()
	}
	if s.Want != nil {
		line += " => " + string(s.Want.Reason)
		if s.Want.Rule != 0 {
			line += fmt.Sprintf(" %d", s.Want.Rule)
		}
	}
	return line
}

func (s Send) String() string {
	where := string(s.Hook)
	switch {
	case s.Hook == VM:
		where += fmt.Sprint(s.Port)
	case s.Service != 0:
		where += fmt.Sprintf("@%d", s.Service)
	}
	return where + " " + s.Spec.String()
}

func (c Change) String() string {
	switch c.Verb {
	case Groups:
		list := strings.Trim(strings.ReplaceAll(fmt.Sprint(c.Groups), " ", ","), "[]")
		return strings.TrimSpace(fmt.Sprintf("groups %d %s", c.Port, list))
	case Add:
		return fmt.Sprintf("rule %d of %d %s", c.Rule.ID, c.Groups[0], ruleText(c.Rule))
	case Remove:
		return fmt.Sprintf("no-rule %d", c.Rule.ID)
	case Join, Leave:
		return fmt.Sprintf("%s %s of %d", c.Verb, c.Addr, c.Groups[0])
	case Source, Forget:
		return fmt.Sprintf("%s %s of %d", c.Verb, c.Prefix, c.Groups[0])
	}
	return fmt.Sprintf("%s %d", c.Verb, c.Port)
}

func ruleText(r firewall.Rule) string {
	words := []string{"in", "all"}
	if r.Egress {
		words[0] = "out"
	}
	if r.Protocol != 0 {
		words[1], _, _ = strings.Cut(frame.Spec{Proto: r.Protocol}.String(), " ")
	}
	switch r.Protocol {
	case frame.TCP, frame.UDP:
		words = append(words, fmt.Sprintf("%d-%d", r.From, r.To))
	case frame.ICMP, frame.ICMPv6:
		words = append(words, fmt.Sprintf("%d/%d", r.Type, r.Code))
	}
	if r.PeerGroup != 0 {
		words = append(words, "group", fmt.Sprint(r.PeerGroup))
	} else {
		words = append(words, "from", r.Peer.String())
	}
	if r.Keep {
		words = append(words, "keep")
	}
	return strings.Join(words, " ")
}

// Text of steps.
func Text(steps []Step) string {
	var b strings.Builder
	for _, s := range steps {
		b.WriteString(s.String() + "\n")
	}
	return b.String()
}

// Parse reads a text. Empty lines and those that begin with # say nothing.
func Parse(text string) ([]Step, error) {
	var steps []Step
	for i, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		s, err := parseStep(line)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", i+1, err)
		}
		s.Line = i + 1
		steps = append(steps, s)
	}
	return steps, nil
}

func parseStep(line string) (s Step, err error) {
	line, want, wanted := strings.Cut(line, "=>")
	if wanted {
		words := strings.Fields(want)
		if len(words) == 0 || len(words) > 2 {
			return s, fmt.Errorf("%q: want a reason and perhaps a rule behind =>", want)
		}
		s.Want = &Want{Reason: firewall.Reason(words[0])}
		if len(words) == 2 {
			n, err := number(words[1])
			if err != nil {
				return s, err
			}
			s.Want.Rule = firewall.RuleID(n)
		}
	}
	words := strings.Fields(line)
	rest := strings.TrimSpace(strings.TrimPrefix(line, words[0]))
	switch {
	case words[0] == "wait":
		s.Wait, err = time.ParseDuration(rest)
	case strings.HasPrefix(words[0], string(VM)), strings.HasPrefix(words[0], string(Uplink)), words[0] == string(Door):
		s.Send, err = parseSend(words[0], rest)
	default:
		s.Change, err = parseChange(words)
	}
	return s, err
}

func number(word string) (uint32, error) {
	n, err := strconv.ParseUint(word, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("%q is no number", word)
	}
	return uint32(n), nil
}

func parseSend(where, rest string) (*Send, error) {
	spec, err := frame.Parse(rest)
	if err != nil {
		return nil, err
	}
	s := &Send{Hook: Hook(where), Spec: spec}
	if port, ok := strings.CutPrefix(where, string(VM)); ok {
		n, err := number(port)
		s.Hook, s.Port = VM, firewall.PortID(n)
		return s, err
	}
	hook, service, balanced := strings.Cut(where, "@")
	if balanced {
		n, err := number(service)
		s.Hook, s.Service = Hook(hook), firewall.ServiceID(n)
		return s, err
	}
	return s, nil
}

func parseChange(words []string) (*Change, error) {
	c := &Change{Verb: Verb(words[0])}
	if len(words) < 2 {
		return nil, fmt.Errorf("%q: of what?", words[0])
	}
	var err error
	var n uint32
	switch c.Verb {
	case Groups, Strict, Mail, NoMail:
		n, err = number(words[1])
		c.Port = firewall.PortID(n)
		if len(words) > 2 && err == nil {
			c.Groups, err = groups(words[2])
		}
		return c, err
	case Remove:
		n, err = number(words[1])
		c.Rule.ID = firewall.RuleID(n)
		return c, err
	}
	if len(words) < 4 || words[2] != "of" {
		return nil, fmt.Errorf("%q: of which group?", strings.Join(words, " "))
	}
	if c.Groups, err = groups(words[3]); err != nil {
		return nil, err
	}
	switch c.Verb {
	case Add:
		n, err = number(words[1])
		c.Rule.ID = firewall.RuleID(n)
		if err == nil {
			err = parseRule(&c.Rule, words[4:])
		}
	case Join, Leave:
		c.Addr, err = netip.ParseAddr(words[1])
	case Source, Forget:
		c.Prefix, err = netip.ParsePrefix(words[1])
	default:
		err = fmt.Errorf("%q is no verb", words[0])
	}
	return c, err
}

func groups(list string) (out []firewall.GroupID, err error) {
	for word := range strings.SplitSeq(list, ",") {
		n, err := number(word)
		if err != nil {
			return nil, err
		}
		out = append(out, firewall.GroupID(n))
	}
	return out, nil
}

func parseRule(r *firewall.Rule, words []string) (err error) {
	if len(words) < 4 {
		return fmt.Errorf("%v is no rule", words)
	}
	r.Egress = words[0] == "out"
	if words[1] != "all" {
		if r.Protocol, err = frame.Protocol(words[1]); err != nil {
			return err
		}
	}
	words = words[2:]
	switch r.Protocol {
	case frame.TCP, frame.UDP:
		_, err = fmt.Sscanf(words[0], "%d-%d", &r.From, &r.To)
		words = words[1:]
	case frame.ICMP, frame.ICMPv6:
		_, err = fmt.Sscanf(words[0], "%d/%d", &r.Type, &r.Code)
		words = words[1:]
	}
	if err != nil || len(words) < 2 {
		return fmt.Errorf("%v is no peer: %w", words, err)
	}
	if words[0] == "group" {
		n, err := number(words[1])
		if err != nil {
			return err
		}
		r.PeerGroup = firewall.GroupID(n)
	} else if r.Peer, err = netip.ParsePrefix(words[1]); err != nil {
		return err
	}
	r.Keep = len(words) > 2 && words[2] == "keep"
	return nil
}
