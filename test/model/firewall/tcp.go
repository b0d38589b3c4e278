// SPDX-License-Identifier: Apache-2.0

package firewall

import "cairn/test/model/frame"

// End is what one side of a TCP connection has said of itself, in sequence
// numbers.
type End struct {
	Sent     uint32 // behind the last that it has sent
	Awaits   uint32 // the next that it waits for
	Edge     uint32 // behind the last that it takes
	Scale    int    // of its window
	HasSent  bool   // Sent is known
	HasAcked bool   // Awaits and Edge are
}

const (
	noScale    = -1
	mostScale  = 14 // RFC 7323, 2.3
	wildScale  = 15 // of a side that may yet say
	mostWindow = 65535
)

// advance changes the state by a packet that was admitted.
func (f *Flow) advance(v visit) {
	tcp := v.Tuple.Proto == frame.TCP
	if tcp && f.ends(v) {
		return
	}
	reply := v.direction != f.First
	switch {
	case reply && f.State == New:
		f.State = Replied
	case !reply && f.State == Replied && (!tcp || f.confirms(v)):
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

// sides of the connection, as the packet sees them.
func (f *Flow) sides(v visit) (me, you *End) {
	return &f.Ends[v.direction], &f.Ends[1-v.direction]
}

// ahead of how far a is before b, around the circle of sequence numbers.
func ahead(a, b uint32) int64 { return int64(int32(a - b)) }

// span is how far apart two numbers can be that a side means at one time.
func (e *End) span() int64 { return mostWindow << e.shift() }

func (e *End) shift() int {
	if e.Scale == noScale {
		return wildScale
	}
	return e.Scale
}

// end is the number behind the packet's last: SYN and FIN have one each.
func (v visit) end() uint32 {
	n := uint32(v.L3 + v.Length - v.Payload)
	for _, flag := range []uint8{frame.SYN, frame.FIN} {
		if v.Flags&flag != 0 {
			n++
		}
	}
	return v.Seq + n
}

// fits: what is sent and acknowledged lies within the windows that the two sides
// have given (RFC 9293, 3.10.7.4), with the leeway that a bystander needs. What
// does not fit passes, for the instance to judge, and changes nothing.
func (f *Flow) fits(v visit) bool {
	me, you := f.sides(v)
	if you.HasAcked && (ahead(v.Seq, you.Edge) > 0 || ahead(you.Awaits, v.end()) > you.span()) {
		return false
	}
	if v.Flags&frame.ACK != 0 && you.HasSent {
		return ahead(v.Ack, you.Sent) <= 0 && ahead(you.Sent, v.Ack) <= me.span()
	}
	return true
}

// mayReset: a RST ends a connection only within the window of who receives it,
// so that nobody who sees nothing of it can end it. Who has only asked is told
// by his question's number (RFC 9293, 3.10.7.3).
func (f *Flow) mayReset(v visit) bool {
	me, you := f.sides(v)
	switch {
	case you.HasAcked:
		return v.Seq-you.Awaits <= you.Edge-you.Awaits
	case v.Flags&frame.ACK != 0 && you.HasSent:
		return v.Ack == you.Sent
	}
	return !me.HasSent || v.Seq == me.Sent
}

// confirms: who acknowledges the answer has seen it, so his address is not
// forged. Of a connection that was under way no more is known than that he goes on.
func (f *Flow) confirms(v visit) bool {
	_, you := f.sides(v)
	if v.Flags&frame.ACK == 0 || v.Flags&frame.RST != 0 || !you.HasSent {
		return false
	}
	return f.Loose || v.Ack == you.Sent
}

// hearFirst packet of a connection. Without a SYN it was under way: windows may
// be as wide as they come, and the other side has sent what is acknowledged.
func (f *Flow) hearFirst(v visit) {
	me, you := f.sides(v)
	if !v.opens() {
		f.Loose = true
		me.Scale, you.Scale = mostScale, mostScale
		if v.Flags&frame.ACK != 0 {
			you.Sent, you.HasSent = v.Ack, true
		}
	}
	f.hear(v)
}

// hear what a packet that fits says of its sender.
func (f *Flow) hear(v visit) {
	me, you := f.sides(v)
	syn, ack := v.Flags&frame.SYN != 0, v.Flags&frame.ACK != 0
	if v.Flags&frame.RST != 0 {
		return
	}
	if syn && !f.Loose {
		me.Scale = v.Scale
		if ack && (me.Scale == noScale || you.Scale == noScale) { // RFC 7323, 2.2: both or none
			me.Scale, you.Scale = 0, 0
		}
	}
	if !me.HasSent || ahead(v.end(), me.Sent) > 0 || syn && f.State == New {
		me.Sent, me.HasSent = v.end(), true
	}
	if !ack {
		return
	}
	edge := v.Ack + uint32(v.Window)
	if !syn { // RFC 7323, 2.2: a SYN's own window is not scaled
		edge = v.Ack + uint32(v.Window)<<me.shift()
	}
	if !me.HasAcked || ahead(edge, me.Edge) > 0 {
		me.Edge = edge
	}
	if !me.HasAcked || ahead(v.Ack, me.Awaits) > 0 {
		me.Awaits = v.Ack
	}
	me.HasAcked = true
}
