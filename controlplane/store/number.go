// SPDX-License-Identifier: Apache-2.0

package store

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// Numbers of the wire: u32 per zone and kind, from 1, dense because they index
// arrays. The kinds in use.
const (
	NumberHost    = "host"
	NumberGroup   = "group"
	NumberClass   = "class"
	NumberRule    = "rule"
	NumberPort    = "port"
	NumberBackend = "backend"
	NumberService = "service"
	NumberNetwork = "network" // the VNI
	NumberElastic = "elastic"
)

// limits of kinds whose numbers do not use all 32 bits. Those above the last
// VNI are our own.
var limits = map[string]uint32{NumberNetwork: 0xfffffd}

// Kinds of addresses.
const (
	AddressInstance  = "instance"
	AddressInstance6 = "instance6"
	AddressVIP       = "vip"
	AddressVIP6      = "vip6"
	AddressElastic   = "elastic"
	AddressElastic6  = "elastic6" // the first address of a prefix of ElasticBits6
)

// ElasticBits6 is the length of the prefix that an elastic IP of IPv6 is.
const ElasticBits6 = 96

// AddressKinds are all kinds of addresses, for whoever adds pools.
var AddressKinds = []string{AddressInstance, AddressInstance6, AddressVIP, AddressVIP6, AddressElastic, AddressElastic6}

// Rest is how long a freed number or address belongs to nobody: longer than
// any flow or drain that may still carry it, so that a new owner inherits
// nothing. Its former owner alone may take it back before, since for them it
// means what it meant.
const Rest = 10 * time.Minute

// ExhaustedError says that no address of a kind is free.
type ExhaustedError struct {
	Kind     string
	Prefixes []netip.Prefix
}

func (e *ExhaustedError) Error() string {
	if e.Prefixes == nil && limits[e.Kind] != 0 {
		return fmt.Sprintf("no free %s number", e.Kind)
	}
	return fmt.Sprintf("no free address in the %s pool %v", e.Kind, e.Prefixes)
}

// Allocate gives owner a number of the kind: the one they hold, or the lowest
// that was never used or has had its rest.
func (tx *Tx) Allocate(kind, owner string) (uint32, error) {
	var number uint32
	err := tx.queryRowWriting([]any{&number},
		`UPDATE allocation SET freed_at = 0 WHERE kind = $1 AND owner = $2 RETURNING number`, kind, owner)
	if errors.Is(err, ErrNotFound) {
		err = tx.queryRowWriting([]any{&number}, `UPDATE allocation SET owner = $1, freed_at = 0
			WHERE kind = $2 AND number = (SELECT MIN(number) FROM allocation
				WHERE kind = $3 AND freed_at > 0 AND freed_at <= $4) RETURNING number`,
			owner, kind, kind, nanos(tx.Now().Add(-Rest)))
	}
	if errors.Is(err, ErrNotFound) {
		err = tx.queryRowWriting([]any{&number}, `INSERT INTO allocation (kind, number, owner, freed_at)
			SELECT $1, COALESCE(MAX(number), 0) + 1, $2, 0 FROM allocation WHERE kind = $3 RETURNING number`,
			kind, owner, kind)
	}
	if limit := limits[kind]; err == nil && limit != 0 && number > limit {
		err = &ExhaustedError{Kind: kind}
	}
	if err != nil {
		return 0, fmt.Errorf("allocate a number for %s %s: %w", kind, owner, err)
	}
	return number, nil
}

// Free gives back the number that owner holds; nothing happens if they hold
// none.
func (tx *Tx) Free(kind, owner string) error {
	_, err := tx.exec(`UPDATE allocation SET freed_at = $1 WHERE kind = $2 AND owner = $3 AND freed_at = 0`,
		nanos(tx.Now()), kind, owner)
	if err != nil {
		return fmt.Errorf("free the number of %s %s: %w", kind, owner, err)
	}
	return nil
}

// Number reads the number that owner holds; ErrNotFound if none.
func (tx *Tx) Number(kind, owner string) (uint32, error) {
	var number uint32
	err := tx.queryRow([]any{&number},
		`SELECT number FROM allocation WHERE kind = $1 AND owner = $2 AND freed_at = 0`, kind, owner)
	return number, err
}

// Allocation is one number or address that somebody holds.
type Allocation struct {
	Kind  string
	What  string // the number or the address
	Owner string
}

// Allocations lists what is held, numbers and addresses: empty when nothing
// is left behind.
func (tx *Tx) Allocations() ([]Allocation, error) {
	numbers, err := query(tx, func(scan func(...any) error) (Allocation, error) {
		var a Allocation
		var n uint32
		err := scan(&a.Kind, &n, &a.Owner)
		a.What = fmt.Sprint(n)
		return a, err
	}, `SELECT kind, number, owner FROM allocation WHERE freed_at = 0 ORDER BY kind, number`)
	if err != nil {
		return nil, fmt.Errorf("allocations: %w", err)
	}
	addresses, err := query(tx, func(scan func(...any) error) (Allocation, error) {
		var a Allocation
		var x string
		if err := scan(&a.Kind, &x, &a.Owner); err != nil {
			return a, err
		}
		address, err := addressOf(x)
		a.What = address.String()
		return a, err
	}, `SELECT kind, address, owner FROM address WHERE freed_at = 0 ORDER BY kind, address`)
	if err != nil {
		return nil, fmt.Errorf("allocations: %w", err)
	}
	return append(numbers, addresses...), nil
}

// AddPool adds a prefix that addresses of the kind come from. Pools never
// overlap; adding one again changes nothing.
func (tx *Tx) AddPool(kind string, prefix netip.Prefix) error {
	if !prefix.IsValid() || prefix != prefix.Masked() {
		return fmt.Errorf("pool %s %s: not a prefix", kind, prefix)
	}
	if err := fits(kind, prefix); err != nil {
		return fmt.Errorf("pool %s %s: %w", kind, prefix, err)
	}
	for _, k := range AddressKinds {
		have, err := tx.Pools(k)
		if err != nil {
			return err
		}
		for _, p := range have {
			switch {
			case p == prefix && k == kind:
				return nil
			case p.Overlaps(prefix):
				return fmt.Errorf("pool %s %s overlaps pool %s %s: %w", kind, prefix, k, p, ErrExists)
			}
		}
	}
	_, err := tx.exec(`INSERT INTO pool (kind, prefix, seq)
		SELECT $1, $2, COALESCE(MAX(seq), 0) + 1 FROM pool`, kind, prefix.String())
	if err != nil {
		return fmt.Errorf("add pool %s %s: %w", kind, prefix, err)
	}
	return nil
}

// fits refuses a prefix that no address of the kind can come from.
func fits(kind string, prefix netip.Prefix) error {
	switch kind {
	case AddressInstance6, AddressVIP6:
		if prefix.Addr().Is4() {
			return errors.New("expected an IPv6 prefix")
		}
	case AddressElastic6:
		if prefix.Addr().Is4() || prefix.Bits() >= ElasticBits6 {
			return fmt.Errorf("expected an IPv6 prefix shorter than /%d", ElasticBits6)
		}
	case AddressInstance, AddressElastic, AddressVIP:
		if prefix.Addr().Is6() {
			return errors.New("expected an IPv4 prefix")
		}
	default:
		return fmt.Errorf("expected one of the kinds %v", AddressKinds)
	}
	return nil
}

// Pools lists the prefixes of a kind in the order in which they were added.
func (tx *Tx) Pools(kind string) ([]netip.Prefix, error) {
	all, err := query(tx, func(scan func(...any) error) (p netip.Prefix, err error) {
		var text string
		if err := scan(&text); err != nil {
			return p, err
		}
		return netip.ParsePrefix(text)
	}, `SELECT prefix FROM pool WHERE kind = $1 ORDER BY seq`, kind)
	if err != nil {
		return nil, fmt.Errorf("pools of kind %s: %w", kind, err)
	}
	return all, nil
}

// AllocateAddress gives owner an address of the kind: the one they hold, or
// the lowest of the first pool with one that was never used or has had its
// rest. An *ExhaustedError names the pool if there is none.
func (tx *Tx) AllocateAddress(kind, owner string) (netip.Addr, error) {
	var text string
	err := tx.queryRowWriting([]any{&text},
		`UPDATE address SET freed_at = 0 WHERE kind = $1 AND owner = $2 RETURNING address`, kind, owner)
	if err == nil {
		return addressOf(text)
	}
	if !errors.Is(err, ErrNotFound) {
		return netip.Addr{}, fmt.Errorf("address for %s %s: %w", kind, owner, err)
	}
	pools, err := tx.Pools(kind)
	if err != nil {
		return netip.Addr{}, err
	}
	for _, prefix := range pools {
		address, err := tx.addressFrom(kind, prefix, owner)
		if err == nil || !errors.Is(err, ErrNotFound) {
			return address, err
		}
	}
	return netip.Addr{}, &ExhaustedError{Kind: kind, Prefixes: pools}
}

// addressFrom takes the lowest address of one prefix; ErrNotFound if it has
// none.
func (tx *Tx) addressFrom(kind string, prefix netip.Prefix, owner string) (netip.Addr, error) {
	var text string
	err := tx.queryRowWriting([]any{&text}, `UPDATE address SET owner = $1, freed_at = 0
		WHERE kind = $2 AND address = (SELECT MIN(address) FROM address
			WHERE kind = $3 AND prefix = $4 AND freed_at > 0 AND freed_at <= $5) RETURNING address`,
		owner, kind, kind, prefix.String(), nanos(tx.Now().Add(-Rest)))
	if err == nil {
		return addressOf(text)
	}
	if !errors.Is(err, ErrNotFound) {
		return netip.Addr{}, fmt.Errorf("address for %s %s: %w", kind, owner, err)
	}
	first, last := usable(kind, prefix)
	var highest *string
	err = tx.queryRow([]any{&highest}, `SELECT MAX(address) FROM address WHERE kind = $1 AND prefix = $2`,
		kind, prefix.String())
	if err != nil {
		return netip.Addr{}, fmt.Errorf("address for %s %s: %w", kind, owner, err)
	}
	next := first
	if highest != nil {
		if next, err = addressOf(*highest); err != nil {
			return netip.Addr{}, err
		}
		next = following(kind, next)
	}
	if last.Less(next) {
		return netip.Addr{}, ErrNotFound
	}
	_, err = tx.exec(`INSERT INTO address (kind, address, prefix, owner, freed_at) VALUES ($1, $2, $3, $4, 0)`,
		kind, addressText(next), prefix.String(), owner)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("address for %s %s: %w", kind, owner, err)
	}
	return next, nil
}

// FreeAddress gives back the address that owner holds, if any.
func (tx *Tx) FreeAddress(kind, owner string) error {
	_, err := tx.exec(`UPDATE address SET freed_at = $1 WHERE kind = $2 AND owner = $3 AND freed_at = 0`,
		nanos(tx.Now()), kind, owner)
	if err != nil {
		return fmt.Errorf("free the address of %s %s: %w", kind, owner, err)
	}
	return nil
}

// following is the next address of a kind: of elastic6 the next prefix's.
func following(kind string, a netip.Addr) netip.Addr {
	if kind == AddressElastic6 {
		a = lastOf(netip.PrefixFrom(a, ElasticBits6))
	}
	return a.Next()
}

// usable leaves out the network's own address and the broadcast address, and
// of an instance pool the first one, which guests see as their gateway; of
// elastic6 the first prefix, which has the network's own address in it.
func usable(kind string, prefix netip.Prefix) (first, last netip.Addr) {
	first, last = prefix.Addr(), lastOf(prefix)
	if kind == AddressElastic6 {
		return following(kind, first), netip.PrefixFrom(last, ElasticBits6).Masked().Addr()
	}
	if host := prefix.Addr().BitLen() - prefix.Bits(); host < 2 {
		return first, last
	}
	first, last = first.Next(), last.Prev()
	if kind == AddressInstance || kind == AddressInstance6 {
		first = first.Next()
	}
	return first, last
}

func lastOf(prefix netip.Prefix) netip.Addr {
	b := prefix.Addr().AsSlice()
	for bit := prefix.Bits(); bit < len(b)*8; bit++ {
		b[bit/8] |= 0x80 >> (bit % 8)
	}
	last, _ := netip.AddrFromSlice(b)
	return last
}

func addressText(a netip.Addr) string {
	b := a.As16()
	return hex.EncodeToString(b[:])
}

func addressOf(text string) (netip.Addr, error) {
	b, err := hex.DecodeString(text)
	if err != nil || len(b) != 16 {
		return netip.Addr{}, fmt.Errorf("stored address %q: %w", text, err)
	}
	return netip.AddrFrom16([16]byte(b)).Unmap(), nil
}
