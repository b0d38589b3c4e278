// SPDX-License-Identifier: Apache-2.0

package slots

import "net/netip"

// ServerOf is the backend's address that the connection ID of a QUIC packet names,
// given a datagram's first 6 bytes or more: as the program in the packet's way reads
// it. Only a short header (RFC 9000, 17.3) has a connection ID of a server's for
// sure; in it are 3 bits of configuration, which must be 0, 5 bits of the server's
// own, and the address (draft-ietf-quic-load-balancers, not enciphered).
func ServerOf(datagram []byte) (server netip.Addr, ok bool) {
	if len(datagram) < 6 || datagram[0]&0x80 != 0 || datagram[1]>>5 != 0 {
		return server, false
	}
	return netip.AddrFrom4([4]byte(datagram[2:6])), true
}

// ConnectionID begins one that names a server: its first 5 bytes, which a nonce of
// at least 4 follows. length is that of the whole.
func ConnectionID(server netip.Addr, length int) []byte {
	return append([]byte{byte(length-1) & 0x1f}, server.AsSlice()...)
}
