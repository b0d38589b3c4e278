// SPDX-License-Identifier: Apache-2.0

package frame

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// A line says a packet so:
//
//	tcp 192.0.2.9:1234 > 198.51.100.5:80 S seq=1 ack=2 win=100 scale=7 len=3
//	icmp 192.0.2.9 > 198.51.100.5 3/4 about ( udp 198.51.100.5:53 > 192.0.2.9:1234 )
//	udp [2001:db8::1]:5 > [2001:db8::2]:53 ext=0,60,44 frag=77/0+
//
// frag is ID/OFFSET, with + if more follow. ICMP's id is a port of the source.

var protocols = map[uint8]string{ICMP: "icmp", TCP: "tcp", UDP: "udp", ICMPv6: "icmpv6"}

var flagLetters = []struct {
	letter string
	flag   uint8
}{{"F", FIN}, {"S", SYN}, {"R", RST}, {"P", PSH}, {"A", ACK}}

func (s Spec) String() string {
	var b strings.Builder
	name := protocols[s.Proto]
	if name == "" {
		name = fmt.Sprint(s.Proto)
	}
	fmt.Fprintf(&b, "%s %s > %s", name, end(s.Src), end(s.Dst))
	if s.Proto == TCP {
		b.WriteString(" " + letters(s.Flags))
	}
	if s.IsICMP() {
		fmt.Fprintf(&b, " %d/%d", s.Type, s.Code)
	}
	s.numbers(&b)
	for _, p := range s.Pokes {
		fmt.Fprintf(&b, " poke=%d:%#02x", p.At, p.Value)
	}
	if s.Inner != nil {
		fmt.Fprintf(&b, " about ( %s )", s.Inner)
	}
	return b.String()
}

func letters(flags uint8) (out string) {
	for _, f := range flagLetters {
		if flags&f.flag != 0 {
			out += f.letter
		}
	}
	if out == "" {
		return "-"
	}
	return out
}

func (s Spec) numbers(b *strings.Builder) {
	for _, n := range []struct {
		name  string
		value int
	}{
		{"seq", int(s.Seq)}, {"ack", int(s.Ack)}, {"win", int(s.Window)}, {"scale", int(s.Scale)},
		{"len", s.Payload}, {"ttl", int(s.TTL)}, {"opt", s.Options}, {"cut", s.Cut}, {"mtu", int(s.MTU)},
		{"df", int(bit(s.DF, 1))},
	} {
		if n.value != 0 {
			fmt.Fprintf(b, " %s=%d", n.name, n.value)
		}
	}
	if len(s.Extensions) > 0 {
		list := strings.Trim(fmt.Sprint(slices.Collect(ints(s.Extensions))), "[]")
		fmt.Fprintf(b, " ext=%s", strings.ReplaceAll(list, " ", ","))
	}
	if f := s.Fragment; f != nil {
		fmt.Fprintf(b, " frag=%d/%d", f.ID, f.Offset)
		if f.More {
			b.WriteByte('+')
		}
	}
	for _, m := range []struct {
		name string
		mac  MAC
	}{{"from", s.From}, {"to", s.To}} {
		if m.mac != (MAC{}) {
			fmt.Fprintf(b, " %s=%x", m.name, m.mac[:])
		}
	}
}

func ints(list []uint8) func(func(int) bool) {
	return func(yield func(int) bool) {
		for _, n := range list {
			if !yield(int(n)) {
				return
			}
		}
	}
}

func end(a netip.AddrPort) string {
	if a.Port() == 0 {
		return a.Addr().String()
	}
	return a.String()
}

// Parse reads what String writes.
func Parse(line string) (Spec, error) {
	words := strings.Fields(line)
	if len(words) < 4 || words[2] != ">" {
		return Spec{}, fmt.Errorf("%q is no packet: want PROTOCOL SOURCE > DESTINATION", line)
	}
	var s Spec
	var err error
	if s.Proto, err = Protocol(words[0]); err != nil {
		return s, err
	}
	if s.Src, err = parseEnd(words[1]); err != nil {
		return s, err
	}
	if s.Dst, err = parseEnd(words[3]); err != nil {
		return s, err
	}
	for i := 4; i < len(words); i++ {
		if words[i] == "about" {
			inner := strings.Join(words[i+1:], " ")
			inner = strings.TrimSuffix(strings.TrimPrefix(inner, "("), ")")
			about, err := Parse(inner)
			s.Inner = &about
			return s, err
		}
		if err := s.word(words[i]); err != nil {
			return s, fmt.Errorf("%q: %w", line, err)
		}
	}
	return s, nil
}

// Protocol reads a protocol's name or number.
func Protocol(word string) (uint8, error) {
	for number, name := range protocols {
		if name == word {
			return number, nil
		}
	}
	n, err := strconv.ParseUint(word, 10, 8)
	if err != nil {
		return 0, fmt.Errorf("%q is no protocol", word)
	}
	return uint8(n), nil
}

func parseEnd(word string) (netip.AddrPort, error) {
	if a, err := netip.ParseAddr(word); err == nil {
		return netip.AddrPortFrom(a, 0), nil
	}
	a, err := netip.ParseAddrPort(word)
	if err != nil {
		return a, fmt.Errorf("%q is no address", word)
	}
	return a, nil
}

func (s *Spec) word(word string) error {
	name, value, assigned := strings.Cut(word, "=")
	if !assigned {
		if kind, code, ok := strings.Cut(word, "/"); ok {
			return s.typeCode(kind, code)
		}
		return s.letters(word)
	}
	switch name {
	case "from", "to":
		return s.mac(name, value)
	case "frag":
		return s.fragment(value)
	case "ext":
		for kind := range strings.SplitSeq(value, ",") {
			n, err := strconv.ParseUint(kind, 10, 8)
			if err != nil {
				return err
			}
			s.Extensions = append(s.Extensions, uint8(n))
		}
		return nil
	case "poke":
		at, with, _ := strings.Cut(value, ":")
		where, err := strconv.Atoi(at)
		if err != nil {
			return err
		}
		v, err := strconv.ParseUint(with, 0, 8)
		s.Pokes = append(s.Pokes, Poke{where, byte(v)})
		return err
	}
	n, err := strconv.ParseUint(value, 10, 32)
	if err != nil {
		return err
	}
	return s.number(name, n)
}

func (s *Spec) number(name string, n uint64) error {
	switch name {
	case "seq":
		s.Seq = uint32(n)
	case "ack":
		s.Ack = uint32(n)
	case "win":
		s.Window = uint16(n)
	case "scale":
		s.Scale = uint8(n)
	case "len":
		s.Payload = int(n)
	case "df":
		s.DF = n != 0
	case "ttl":
		s.TTL = uint8(n)
	case "opt":
		s.Options = int(n)
	case "cut":
		s.Cut = int(n)
	case "mtu":
		s.MTU = uint16(n)
	default:
		return fmt.Errorf("%q is not known", name)
	}
	return nil
}

func (s *Spec) typeCode(kind, code string) error {
	k, err := strconv.ParseUint(kind, 10, 8)
	if err != nil {
		return err
	}
	c, err := strconv.ParseUint(code, 10, 8)
	s.Type, s.Code = uint8(k), uint8(c)
	return err
}

func (s *Spec) letters(word string) error {
	if word == "-" {
		return nil
	}
next:
	for _, letter := range word {
		for _, f := range flagLetters {
			if f.letter == string(letter) {
				s.Flags |= f.flag
				continue next
			}
		}
		return fmt.Errorf("%q is no flag", string(letter))
	}
	return nil
}

func (s *Spec) mac(name, value string) error {
	var mac MAC
	if len(value) != 12 {
		return fmt.Errorf("%q is no MAC", value)
	}
	for i := range mac {
		v, err := strconv.ParseUint(value[2*i:2*i+2], 16, 8)
		if err != nil {
			return err
		}
		mac[i] = byte(v)
	}
	if name == "from" {
		s.From = mac
	} else {
		s.To = mac
	}
	return nil
}

func (s *Spec) fragment(value string) error {
	rest, more := strings.CutSuffix(value, "+")
	id, offset, _ := strings.Cut(rest, "/")
	n, err := strconv.ParseUint(id, 10, 32)
	if err != nil {
		return err
	}
	at, err := strconv.ParseUint(offset, 10, 13)
	s.Fragment = &Fragment{uint32(n), uint16(at), more}
	return err
}
