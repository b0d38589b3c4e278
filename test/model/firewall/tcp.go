// SPDX-License-Identifier: Apache-2.0

package firewall

import "cairn/test/model/frame"

// End is what one side of a TCP connection has said: what it waits for, and how
// much it takes.
type End struct {
	Acked  uint32
	Window uint32
	Spoke  bool // it has acknowledged something
}

// advance changes the state by a packet that was admitted.
func (f *Flow) advance(v visit) {
	reply := v.direction != f.First
	if v.Tuple.Proto == frame.TCP {
		f.hear(v)
		if f.ends(v) {
			return
		}
	}
	switch {
	case reply && f.State == New:
		f.State = Replied
	case !reply && f.State == Replied:
		f.State = Established
	}
}

// ends tells whether the packet, or one before it, has begun to end the flow.
func (f *Flow) ends(v visit) bool {
	if v.Flags&frame.RST != 0 {
		f.State = Reset
	}
	if f.State == Reset {
		return true
	}
	if v.Flags&frame.FIN != 0 {
		f.FINs[v.direction] = true
	}
	switch {
	case f.FINs[In] && f.FINs[Out]:
		f.State = Closed
	case f.FINs[In] || f.FINs[Out]:
		f.State = Closing
	default:
		return false
	}
	return true
}

// hear what the sender waits for and how much it takes.
func (f *Flow) hear(v visit) {
	if v.Flags&frame.ACK == 0 || v.Flags&frame.RST != 0 {
		return
	}
	f.Ends[v.direction] = End{Acked: v.Ack, Window: uint32(v.Window), Spoke: true}
}

// mayReset: a RST ends a connection only inside the window of who receives it
// (RFC 9293, 3.10.7.4), so that nobody who sees nothing of it can end it.
func (f *Flow) mayReset(v visit) bool {
	receiver := f.Ends[1-v.direction]
	if !receiver.Spoke {
		return true
	}
	return v.Seq-receiver.Acked <= receiver.Window
}
