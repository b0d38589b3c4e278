// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"fmt"

	"github.com/cilium/ebpf"
)

// bareFlows is where the bare table hangs in its outer map.
const bareFlows = uint32(1)

// Bare is one lookup in a table like another of so many flows, found through an
// outer map as theirs is, and nothing beside it.
func (d *Driver) Bare(like *ebpf.Map, s Shape, flows int) (Case, error) {
	spec, err := loadDrive()
	if err != nil {
		return Case{}, err
	}
	inner, err := ebpf.NewMap(spec.Maps["bares"].InnerMap)
	if err != nil {
		return Case{}, err
	}
	defer inner.Close() // the outer map holds it
	if inner.Type() != like.Type() || inner.KeySize() != like.KeySize() || inner.ValueSize() != like.ValueSize() || inner.MaxEntries() != like.MaxEntries() {
		return Case{}, fmt.Errorf("the bare table is %v, the programs' %v", inner, like)
	}
	key, value := make([]byte, inner.KeySize()), make([]byte, inner.ValueSize())
	port := uint32(s.Frame[s.PortAt])<<8 | uint32(s.Frame[s.PortAt+1])
	for n := range uint32(flows) {
		copy(key, s.Frame[s.AddressAt:s.AddressAt+4])
		at := port + n%s.Ports
		key[4], key[5] = byte(at>>8), byte(at)
		if err := inner.Put(key, value); err != nil {
			return Case{}, fmt.Errorf("flow %d: %w", n, err)
		}
	}
	s.Note = [4]uint32{bareFlows}
	return Case{Program: d.objects.BareTc, Shape: s}, d.objects.Bares.Put(bareFlows, inner)
}
