// SPDX-License-Identifier: Apache-2.0

package debug

import (
	"encoding/binary"
	"io"
	"time"
)

// Numbers of the format (draft-ietf-opsawg-pcapng).
const (
	sectionBlock   = 0x0a0d0d0a
	interfaceBlock = 1
	packetBlock    = 6
	byteOrderMagic = 0x1a2b3c4d
	linkEthernet   = 1

	optionComment    = 1
	optionName       = 2 // of an interface
	optionFlags      = 2 // of a packet
	optionResolution = 9
	optionUserAppl   = 4

	nanoseconds = 9
	inbound     = 1
	outbound    = 2
)

// pcapng writes captured frames as a file that analysers read: each packet's
// comment says what became of it. The libraries there are have no options of
// packets, and the format is three blocks.
type pcapng struct{ w io.Writer }

// newPcapng begins a file about one interface.
func newPcapng(w io.Writer, name string, snap int) (*pcapng, error) {
	p := &pcapng{w}
	section := u32(byteOrderMagic)
	section = append(section, 1, 0, 0, 0)                                     // version 1.0
	section = append(section, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff) // of unknown length
	section = append(section, option(optionUserAppl, []byte("cairn debug capture"))...)
	if err := p.block(sectionBlock, append(section, endOfOptions()...)); err != nil {
		return nil, err
	}
	iface := append([]byte{linkEthernet, 0, 0, 0}, u32(uint32(snap))...)
	iface = append(iface, option(optionName, []byte(name))...)
	iface = append(iface, option(optionResolution, []byte{nanoseconds})...)
	return p, p.block(interfaceBlock, append(iface, endOfOptions()...))
}

// packet adds a frame; inbound is towards the instance.
func (p *pcapng) packet(at time.Time, frame []byte, length int, in bool, comment string) error {
	stamp := uint64(at.UnixNano())
	b := append(u32(0), u32(uint32(stamp>>32))...)
	b = append(b, u32(uint32(stamp))...)
	b = append(b, u32(uint32(len(frame)))...)
	b = append(b, u32(uint32(length))...)
	b = append(b, padded(frame)...)
	flags := uint32(outbound)
	if in {
		flags = inbound
	}
	b = append(b, option(optionFlags, u32(flags))...)
	b = append(b, option(optionComment, []byte(comment))...)
	return p.block(packetBlock, append(b, endOfOptions()...))
}

func (p *pcapng) block(kind uint32, body []byte) error {
	length := u32(uint32(12 + len(body)))
	out := append(u32(kind), length...)
	out = append(out, body...)
	_, err := p.w.Write(append(out, length...))
	return err
}

func u32(v uint32) []byte { return binary.LittleEndian.AppendUint32(nil, v) }

func padded(b []byte) []byte {
	return append(append([]byte{}, b...), make([]byte, (4-len(b)%4)%4)...)
}

func option(code uint16, value []byte) []byte {
	head := binary.LittleEndian.AppendUint16(nil, code)
	head = binary.LittleEndian.AppendUint16(head, uint16(len(value)))
	return append(head, padded(value)...)
}

func endOfOptions() []byte { return u32(0) }
