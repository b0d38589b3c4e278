// SPDX-License-Identifier: Apache-2.0

package dist

import (
	"cmp"
	"slices"
	"strings"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	"cairn/cloud"
	"cairn/cloud/wire"
	"cairn/controlplane/compile"
	agentv1 "cairn/proto/agent/v1"
)

// maxFrame bounds a message. An item of wire.MaxBody has a frame of its own,
// which is larger by its header.
const maxFrame = 1 << 20

// tombstone removes an item from a host.
type tombstone struct {
	key       wire.Key
	operation cloud.ID
}

// delta is an agentv1.ToAgent that holds a Delta, as it leaves: bodies are not
// copied, since every agent gets the same ones.
type delta struct {
	from, to, epoch uint64
	items           []*compile.Entry
	tombstones      []tombstone
}

// order sorts a delta as it is applied: upserts by kind, then tombstones by
// kind backwards, so that nothing is named before it exists, or after.
func (d *delta) order() {
	slices.SortFunc(d.items, func(a, b *compile.Entry) int { return compareKeys(a.Key, b.Key) })
	slices.SortFunc(d.tombstones, func(a, b tombstone) int { return compareKeys(b.key, a.key) })
}

func compareKeys(a, b wire.Key) int {
	return cmp.Or(cmp.Compare(a.Kind, b.Kind), strings.Compare(a.ID, b.ID))
}

// headerSize is more than what an item or a tombstone needs beside its key and
// body.
const headerSize = 40

// cut splits a delta that is too large for one frame. Only the last one reaches
// the revision.
func (d *delta) cut() []*delta {
	var frames []*delta
	frame := &delta{from: d.from, to: d.from, epoch: d.epoch}
	size := 0
	next := func(n int) {
		if size+n > maxFrame && size > 0 {
			frames = append(frames, frame)
			frame, size = &delta{from: d.from, to: d.from, epoch: d.epoch}, 0
		}
		size += n
	}
	for _, e := range d.items {
		next(headerSize + len(e.Key.ID) + len(e.Body))
		frame.items = append(frame.items, e)
	}
	for _, t := range d.tombstones {
		next(headerSize + len(t.key.ID) + len(t.operation))
		frame.tombstones = append(frame.tombstones, t)
	}
	frame.to = d.to
	return append(frames, frame)
}

// buffers is the message in the encoding of proto.
func (d *delta) buffers() mem.BufferSlice {
	head := appendVarint(nil, 1, d.from)
	head = appendVarint(head, 2, d.to)
	head = appendVarint(head, 3, d.epoch)
	var parts mem.BufferSlice
	size := 0
	flush := func(b []byte) {
		if len(b) > 0 {
			parts = append(parts, mem.SliceBuffer(b)) // never pooled: it is not freed while others send it
			size += len(b)
		}
	}
	for _, e := range d.items {
		inner := appendVarint(nil, 1, uint64(e.Key.Kind))
		inner = appendBytes(inner, 2, e.Key.ID)
		inner = appendVarint(inner, 3, e.Generation)
		if len(e.Body) > 0 {
			inner = protowire.AppendTag(inner, 4, protowire.BytesType)
			inner = protowire.AppendVarint(inner, uint64(len(e.Body)))
		}
		head = protowire.AppendTag(head, 4, protowire.BytesType)
		head = protowire.AppendVarint(head, uint64(len(inner)+len(e.Body)))
		head = append(head, inner...)
		flush(head)
		flush(e.Body)
		head = nil
	}
	for _, t := range d.tombstones {
		inner := appendVarint(nil, 1, uint64(t.key.Kind))
		inner = appendBytes(inner, 2, t.key.ID)
		inner = appendBytes(inner, 3, string(t.operation))
		head = protowire.AppendTag(head, 5, protowire.BytesType)
		head = protowire.AppendBytes(head, inner)
	}
	flush(head)
	var prefix []byte
	prefix = protowire.AppendTag(prefix, 1, protowire.BytesType) // of ToAgent
	prefix = protowire.AppendVarint(prefix, uint64(size))
	return append(mem.BufferSlice{mem.SliceBuffer(prefix)}, parts...)
}

func appendVarint(b []byte, field protowire.Number, v uint64) []byte {
	if v == 0 {
		return b
	}
	return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.VarintType), v)
}

func appendBytes(b []byte, field protowire.Number, v string) []byte {
	if v == "" {
		return b
	}
	return protowire.AppendString(protowire.AppendTag(b, field, protowire.BytesType), v)
}

// codec sends deltas in shared buffers and leaves everything else to proto.
type codec struct{ encoding.CodecV2 }

func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	if d, ok := v.(*delta); ok {
		return d.buffers(), nil
	}
	return c.CodecV2.Marshal(v)
}

// toProto lists the digests of what is there.
func (d digests) toProto() []*agentv1.Digest {
	var out []*agentv1.Digest
	for _, kind := range wire.Kinds() {
		if d[kind] != (wire.Digest{}) {
			out = append(out, &agentv1.Digest{Kind: agentv1.Kind(kind), Count: d[kind].Count, Sum: d[kind].Sum})
		}
	}
	return out
}

// digestsOf reads what an agent says it holds. A kind that is not known here
// makes it different from anything.
func digestsOf(list []*agentv1.Digest) (digests, bool) {
	var d digests
	for _, one := range list {
		kind := kindOf(one.Kind)
		if !kind.Valid() {
			return d, false
		}
		d[kind] = wire.Digest{Count: one.Count, Sum: one.Sum}
	}
	return d, true
}
