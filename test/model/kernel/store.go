// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"errors"
	"strings"

	"github.com/cilium/ebpf"

	own "cairn/dataplane/maps"
)

// store writes what the agent's plan says into the maps of the test. What is no
// map (devices, quotas) is not written.
type store struct{ k *Kernel }

func isMap(e own.Entry) bool { return e.Map != own.Attach && e.Map != own.Quota && e.Map != own.Shaper }

func (s store) Put(e own.Entry, _ string) error {
	if !isMap(e) {
		return nil
	}
	return s.k.maps[e.Map.String()].Put([]byte(e.Key), []byte(e.Value))
}

func (s store) Delete(e own.Entry) error {
	m := s.k.maps[e.Map.String()]
	switch {
	case !isMap(e):
		return nil
	case m.Type() == ebpf.Array:
		return m.Put([]byte(e.Key), make([]byte, m.ValueSize()))
	}
	err := m.Delete([]byte(e.Key))
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	return err
}

func (s store) Get(e own.Entry) (string, bool, error) {
	if !isMap(e) {
		return e.Value, true, nil
	}
	m := s.k.maps[e.Map.String()]
	value, err := m.LookupBytes([]byte(e.Key))
	if err != nil || value == nil || m.Type() == ebpf.Array && strings.Trim(string(value), "\x00") == "" {
		return "", false, err
	}
	return string(value), true, nil
}

func (s store) Load(own.Map, func(own.Entry)) error { return nil }
