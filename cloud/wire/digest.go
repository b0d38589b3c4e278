// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"encoding/binary"

	"github.com/zeebo/xxh3"
)

// Digest of a kind's items: how many, and the sum mod 2^64 of xxh3 over (kind,
// key, body). It speaks of contents, not of revisions, so that every replica
// computes the same, and it can be kept up item by item.
type Digest struct {
	Count uint64 `json:"count"`
	Sum   uint64 `json:"sum"`
}

// Add counts an item in.
func (d *Digest) Add(key Key, body []byte) { d.Count++; d.Sum += hash(key, body) }

// Remove counts an item out.
func (d *Digest) Remove(key Key, body []byte) { d.Count--; d.Sum -= hash(key, body) }

func hash(key Key, body []byte) uint64 {
	h := xxh3.New()
	var head [5]byte
	head[0] = byte(key.Kind)
	binary.LittleEndian.PutUint32(head[1:], uint32(len(key.ID)))
	_, _ = h.Write(head[:])
	_, _ = h.WriteString(key.ID)
	_, _ = h.Write(body)
	return h.Sum64()
}
