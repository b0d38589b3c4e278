// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"encoding/binary"
	"errors"
	"strings"
)

// Memory is a store without a kernel. With Watch set, it is called after each
// write; with Refuse set, a write that it has an error for is not done.
type Memory struct {
	entries map[ID]string
	Watch   func()
	Refuse  func(op Op, e Entry) error
	Writes  int
}

// NewMemory makes an empty store.
func NewMemory() *Memory { return &Memory{entries: map[ID]string{}} }

func zero(s string) bool { return strings.Trim(s, "\x00") == "" }

// array tells whether a record of zeros means that there is none.
func array(m Map) bool {
	switch m {
	case Nexthops, PortCfg, Backends, Svc, VIPBits:
		return true
	}
	return false
}

func (s *Memory) did() {
	s.Writes++
	if s.Watch != nil {
		s.Watch()
	}
}

func (s *Memory) refused(op Op, e Entry) error {
	if s.Refuse == nil {
		return nil
	}
	return s.Refuse(op, e)
}

// Put writes an entry.
func (s *Memory) Put(e Entry, old string) error {
	if err := s.refused(Put, e); err != nil {
		return err
	}
	if len(old) != 0 && len(old) != len(e.Value) {
		return errors.New("another size")
	}
	s.entries[e.ID] = e.Value
	s.did()
	return nil
}

// Delete removes an entry.
func (s *Memory) Delete(e Entry) error {
	if err := s.refused(Delete, e); err != nil {
		return err
	}
	delete(s.entries, e.ID)
	s.did()
	return nil
}

// Get reads an entry.
func (s *Memory) Get(e Entry) (string, bool, error) {
	value, ok := s.entries[e.ID]
	if array(e.Map) && zero(value) {
		return "", false, nil
	}
	return value, ok, nil
}

// Load reads all entries of a map. Slots are found by the records that name
// them, as in the kernel's map.
func (s *Memory) Load(m Map, found func(Entry)) error {
	for id, value := range s.entries {
		if id.Map == m && !(array(m) && zero(value)) {
			found(Entry{id, value})
		}
	}
	return nil
}

// U32 is a number as the key or value of a map.
func U32(v uint32) string {
	var b [4]byte
	binary.NativeEndian.PutUint32(b[:], v)
	return string(b[:])
}
