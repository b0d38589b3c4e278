// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"encoding/binary"
	"net"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

func TestDatagramsAreWhatReadTakes(t *testing.T) {
	m, err := dhcpv4.NewDiscovery(net.HardwareAddr{2, 0, 0, 0, 0, 1}, wanted)
	if err != nil {
		t.Fatal(err)
	}
	b := datagram(net.IPv4(10, 0, 0, 20), m.ToBytes())
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if sum = sum&0xffff + sum>>16; sum != 0xffff {
		t.Errorf("checksum of the header: %#x", sum)
	}
	if read(b) != nil {
		t.Error("a client's message is taken for a server's")
	}
	binary.BigEndian.PutUint16(b[20:], 67)
	binary.BigEndian.PutUint16(b[22:], 68)
	if got := read(b); got == nil || got.TransactionID != m.TransactionID {
		t.Errorf("read %v", got)
	}
	for length := range b {
		if got := read(b[:length]); got != nil && length < 28+240 {
			t.Errorf("read %d of %d bytes", length, len(b))
		}
	}
}
