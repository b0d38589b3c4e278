// SPDX-License-Identifier: Apache-2.0

package slots_test

import (
	"fmt"
	"net/netip"
	"testing"

	tables "cairn/lb/slots"
)

func ExampleServerOf() {
	id := tables.ConnectionID(netip.MustParseAddr("198.51.100.11"), 9)
	fmt.Printf("%x\n", id)
	fmt.Println(tables.ServerOf(append([]byte{0x41}, id...)))
	// Output:
	// 08c633640b
	// 198.51.100.11 true
}

func TestServerOf(t *testing.T) {
	for name, datagram := range map[string][]byte{
		"nothing":       nil,
		"too short":     {0x40, 8, 198, 51, 100},
		"a long header": {0xc0, 8, 198, 51, 100, 11, 1},
		"not routable":  {0x40, 0xe8, 198, 51, 100, 11, 1},
	} {
		if server, ok := tables.ServerOf(datagram); ok {
			t.Errorf("%s names %s", name, server)
		}
	}
}
