// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"

	"cairn/bpf"
	"cairn/cloud/firewall"
	"cairn/dataplane/debug"
	"cairn/dataplane/host"

	"github.com/vishvananda/netlink"
)

var native = binary.NativeEndian

// Answers of the programs.
const (
	xdpDrop = 1
	xdpPass = 2
	tcDrop  = 2
)

// end says where the last program has left the packet.
func (j *journey) end(program string, run host.TwinRun) {
	for _, s := range run.Steps {
		if bpf.Stage(s.Stage) == bpf.StageExit {
			j.out.Reason, j.out.Port = bpf.Reason(s.Reason).String(), s.Port
			j.verdict(program, run, bpf.Reason(s.Reason))
		}
	}
	j.out.Frame = debug.DescribeFrame(run.Frame)
}

func (j *journey) verdict(program string, run host.TwinRun, why bpf.Reason) {
	switch {
	case why == bpf.ReasonFlooded, why == bpf.ReasonPunted:
		j.out.Verdict = "sent" // the copies are, or to the agent; the frame itself is not needed any more
	case program == "uplink" && run.Action == xdpDrop, program != "uplink" && run.Action == tcDrop:
		j.out.Verdict, j.out.Rule = "dropped", 0
	case why == bpf.ReasonToPort, why == bpf.ReasonToPortTranslated, why == bpf.ReasonToDoor:
		j.out.Verdict = "delivered"
	case why.IsDrop():
		j.out.Verdict = "dropped"
	case why == bpf.ReasonPassHost, why == bpf.ReasonPassNotIP, why == bpf.ReasonPassNotInet, why == bpf.ReasonPassOtherMAC:
		j.out.Verdict = "passed"
	default:
		j.out.Verdict = "sent"
	}
	switch why {
	case bpf.ReasonToUplink:
		j.out.NextHop = nextHop(run.Frame)
	case bpf.ReasonToTunnel:
		for _, s := range run.Steps {
			if bpf.Stage(s.Stage) == bpf.StageStation && s.B != 0 {
				j.out.NextHop = "host " + bpf.AddrBE32(s.B).String() + " by the overlay"
			}
		}
	case bpf.ReasonToPort, bpf.ReasonToPortTranslated:
		j.out.NextHop = fmt.Sprintf("the device of port %d", j.out.Port)
	case bpf.ReasonSent, bpf.ReasonForwarded:
		for _, s := range run.Steps {
			if bpf.Stage(s.Stage) == bpf.StageBackend && s.B != 0 {
				j.out.NextHop = fmt.Sprintf("host %s, that has backend %d", bpf.AddrBE32(s.B), s.A)
			}
		}
	}
}

// nextHop is where the kernel would route the packet.
func nextHop(frame []byte) string {
	dst, ok := destination(frame)
	if !ok {
		return ""
	}
	routes, err := netlink.RouteGet(net.IP(dst.AsSlice()))
	if err != nil || len(routes) == 0 {
		return fmt.Sprintf("none: %v", err)
	}
	via := dst.String()
	if gw := routes[0].Gw; gw != nil {
		via = gw.String()
	}
	link, err := netlink.LinkByIndex(routes[0].LinkIndex)
	if err != nil {
		return via
	}
	return via + " on " + link.Attrs().Name
}

func destination(frame []byte) (netip.Addr, bool) {
	switch {
	case len(frame) >= 34 && frame[12] == 8 && frame[13] == 0:
		return netip.AddrFrom4([4]byte(frame[30:34])), true
	case len(frame) >= 54 && frame[12] == 0x86 && frame[13] == 0xdd:
		return netip.AddrFrom16([16]byte(frame[38:54])), true
	}
	return netip.Addr{}, false
}

var directions = map[uint32]string{bpf.DirectionIn: "in", bpf.DirectionOut: "out"}

var states = map[uint8]string{
	bpf.CtNew: "new", bpf.CtReplied: "answered", bpf.CtEstablished: "established", bpf.CtClosing: "closing",
	bpf.CtClosed: "closed", bpf.CtReset: "reset",
}

// State of a flow in a word.
func State(s uint8) string {
	if name, ok := states[s]; ok {
		return name
	}
	return fmt.Sprintf("state %d", s)
}

// words are a step as a sentence.
func words(s bpf.TraceStep) string {
	switch bpf.Stage(s.Stage) {
	case bpf.StagePort:
		return fmt.Sprintf("at port %d, %s", s.Port, directions[s.A])
	case bpf.StageOwner:
		if s.A == 0 {
			return fmt.Sprintf("port %d may not speak for %s", s.Port, s.Ip.Addr())
		}
		return fmt.Sprintf("port %d may speak for %s", s.Port, s.Ip.Addr())
	case bpf.StagePrefix:
		return s.Ip.Addr().String() + prefixWords(s.A)
	case bpf.StageAddress:
		if s.Port == 0 {
			return fmt.Sprintf("%s is no port's of this host", s.Ip.Addr())
		}
		return fmt.Sprintf("%s is port %d's", s.Ip.Addr(), s.Port)
	case bpf.StageStation:
		return fmt.Sprintf("its MAC is %s in network %d", place(s.Port, s.B), s.A)
	case bpf.StageFlow:
		return flowWords(s)
	case bpf.StagePolicy:
		return policyWords(s)
	case bpf.StageOpens:
		return fmt.Sprintf("a flow would begin at port %d, %s", s.Port, byRule(s.Rule))
	case bpf.StageService:
		return fmt.Sprintf("service %d, hash %#08x: backend %d, the other owner of the slot %d", s.A, s.B, s.C, s.D)
	case bpf.StageBackend:
		return fmt.Sprintf("backend %d is %s", s.A, place(s.Port, s.B))
	case bpf.StageWeigh:
		return fmt.Sprintf("backend %d at port %d %s: %s", s.A, s.Port,
			map[bool]string{true: "knows the flow", false: "does not know the flow"}[s.B != 0],
			[]string{"deliver", "hand on", "refuse"}[min(s.C, 2)])
	case bpf.StageExit:
		return bpf.Reason(s.Reason).String()
	case bpf.StageCopy:
		if s.Reason != 0 {
			return fmt.Sprintf("no copy to port %d: %s", s.Port, bpf.Reason(s.Reason))
		}
		return "a copy to " + place(s.Port, s.B)
	}
	return ""
}

func prefixWords(flags uint32) string {
	switch {
	case flags&bpf.PrefixHost != 0:
		return " is the host's or the underlay's"
	case flags&bpf.PrefixInstances != 0:
		return " is in a range of instances"
	}
	return " is in no range that is special here"
}

func place(port, endpoint uint32) string {
	switch {
	case port != 0:
		return fmt.Sprintf("at port %d", port)
	case endpoint != 0:
		return "at host " + bpf.AddrBE32(endpoint).String()
	}
	return "nowhere"
}

func byRule(rule uint32) string {
	if rule == 0 {
		return "that needs no rule"
	}
	return fmt.Sprintf("by rule %d", rule)
}

func flowWords(s bpf.TraceStep) string {
	if s.A == 0 {
		return fmt.Sprintf("port %d has no such flow", s.Port)
	}
	text := fmt.Sprintf("port %d has the flow, %s, admitted %s", s.Port, State(uint8(s.A)), byRule(s.Rule))
	if s.C != s.D {
		text += fmt.Sprintf("; it was judged at generation %d and is judged again at %d", s.C, s.D)
	}
	return text
}

func policyWords(s bpf.TraceStep) string {
	ask := fmt.Sprintf("policy %d (%s), %s %s, peer %s", s.A, directions[s.D], firewall.ProtocolName(uint8(s.B)),
		firewall.MatchName(uint8(s.B), uint16(s.C)), s.Ip.Addr())
	if s.Reason != 0 {
		return ask + ": no rule admits it"
	}
	return ask + ": rule " + fmt.Sprint(s.Rule) + " admits it"
}
