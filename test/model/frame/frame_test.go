// SPDX-License-Identifier: Apache-2.0

package frame

import (
	"bytes"
	"testing"

	"cairn/bpf/packet"
)

func TestALineIsReadAsItIsWritten(t *testing.T) {
	for _, line := range []string{
		"tcp 192.0.2.9:1234 > 198.51.100.5:80 SA seq=1 ack=4294967295 win=100 scale=8 len=3 ttl=9",
		"udp [2001:db8::1]:5 > [2001:db8::2]:53 ext=0,60,44 frag=77/0+",
		"icmp 192.0.2.9:7 > 198.51.100.5 8/0",
		"icmp 192.0.2.1 > 198.51.100.5 3/4 about ( udp 198.51.100.5:53 > 192.0.2.9:1234 len=5 )",
		"tcp 192.0.2.9:1 > 198.51.100.5:2 - opt=8 cut=3 from=02ca00000005 poke=14:0x55",
		"47 192.0.2.9 > 198.51.100.5 len=20",
	} {
		s, err := Parse(line)
		if err != nil {
			t.Fatal(err)
		}
		if got := s.String(); got != line {
			t.Errorf("got  %s\nwant %s", got, line)
		}
	}
	for _, line := range []string{"", "tcp 1.2.3.4 5.6.7.8", "tcp 1.2.3.4 > x", "tcp 1.2.3.4 > 5.6.7.8 X", "tcp 1.2.3.4 > 5.6.7.8 far=1"} {
		if _, err := Parse(line); err == nil {
			t.Errorf("%q was read", line)
		}
	}
}

// Two builders that know nothing of one another make the same frame.
func TestTheTwoBuildersAgree(t *testing.T) {
	for _, test := range []struct {
		line string
		want packet.Packet
	}{
		{"tcp 192.0.2.9:1234 > 198.51.100.5:80 S seq=7 ack=9 win=500 len=0", packet.TCP("192.0.2.9:1234", "198.51.100.5:80").SYN().Sequence(7).Acknowledge(9).Window(500)},
		{"udp 192.0.2.9:1234 > 198.51.100.5:80 ttl=3", packet.UDP("192.0.2.9:1234", "198.51.100.5:80").TTL(3)},
		{"icmp 192.0.2.9:1234 > 198.51.100.5 8/0", packet.Ping("192.0.2.9", "198.51.100.5", 1234)},
	} {
		s, err := Parse(test.line)
		if err != nil {
			t.Fatal(err)
		}
		s.From, s.To = MAC(packet.MAC("02:00:00:00:00:01")), MAC(packet.MAC("02:00:00:00:00:02"))
		if got, want := s.Bytes(), test.want.Bytes(); !bytes.Equal(got, want) {
			t.Errorf("%s:\n got %x\nwant %x", test.line, got, want)
		}
	}
}

func TestChecksumsAddUp(t *testing.T) {
	for _, line := range []string{
		"udp [2001:db8::1]:5 > [2001:db8::2]:53 len=7 ext=0,60",
		"tcp [2001:db8::1]:5 > [2001:db8::2]:53 S scale=3",
		"icmpv6 [2001:db8::1]:5 > 2001:db8::2 128/0 len=3",
	} {
		s, err := Parse(line)
		if err != nil {
			t.Fatal(err)
		}
		l4 := s.l4()
		if got := s.pseudo(l4); got != 0xffff {
			t.Errorf("%s: sums up to %#x", line, got)
		}
	}
}
