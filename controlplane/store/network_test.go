// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"net/netip"
	"testing"

	"cairn/cloud"
)

func testLeases(t *testing.T, s *Store, _ *clock) {
	a := netip.MustParseAddr
	start, end, server := a("10.0.0.10"), a("10.0.0.14"), a("10.0.0.12")
	const net, other = cloud.ID("net"), cloud.ID("other")
	next := func(i cloud.ID, want string) {
		t.Helper()
		_, err := s.Write(t.Context(), func(tx *Tx) error {
			got, err := tx.LeaseNext(net, i, start, end, server)
			if want == "" {
				var exhausted *ExhaustedError
				if !errors.As(err, &exhausted) {
					t.Errorf("%s got %s, %v", i, got, err)
				}
				return nil
			}
			if err == nil && got != a(want) {
				t.Errorf("%s got %s, want %s", i, got, want)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	write := func(fn func(tx *Tx) error) error { _, err := s.Write(t.Context(), fn); return err }
	next("a", "10.0.0.10")
	next("b", "10.0.0.11")
	next("c", "10.0.0.13") // the server's is left out
	if err := write(func(tx *Tx) error { return tx.FreeLease(net, "a") }); err != nil {
		t.Fatal(err)
	}
	next("d", "10.0.0.14") // what was given up is taken last
	next("e", "10.0.0.10")
	next("f", "")
	if err := write(func(tx *Tx) error { return tx.Lease(net, "f", a("10.0.0.11")) }); !errors.Is(err, ErrExists) {
		t.Errorf("an address twice: %v", err)
	}
	// Another network has addresses of its own, and who moves frees the old one.
	err := write(func(tx *Tx) error {
		return errors.Join(tx.Lease(other, "b", a("10.0.0.11")), tx.Lease(net, "b", a("10.0.0.11")), tx.Lease(net, "b", a("10.0.0.99")))
	})
	if err != nil {
		t.Fatal(err)
	}
	next("f", "10.0.0.11")
	if err := s.Read(t.Context(), func(tx *Tx) error {
		all, err := tx.Leases(net)
		if len(all) != 5 || all[0] != (LeaseOf{a("10.0.0.10"), "e"}) || all[4] != (LeaseOf{a("10.0.0.99"), "b"}) {
			t.Errorf("leases %v", all)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

func testPoolKinds(t *testing.T, s *Store, _ *clock) {
	p := netip.MustParsePrefix
	_, err := s.Write(t.Context(), func(tx *Tx) error {
		for _, bad := range []struct {
			kind   string
			prefix netip.Prefix
		}{
			{AddressInstance, p("2001:db8::/64")}, {AddressInstance6, p("10.0.0.0/8")}, {AddressElastic, p("2001:db8::/64")},
			{AddressElastic6, p("192.0.2.0/24")}, {AddressElastic6, p("2001:db8::/96")}, {"other", p("192.0.2.0/24")},
		} {
			if tx.AddPool(bad.kind, bad.prefix) == nil {
				t.Errorf("%s of %s is a pool", bad.prefix, bad.kind)
			}
		}
		return errors.Join(tx.AddPool(AddressInstance6, p("2001:db8::/64")), tx.AddPool(AddressElastic6, p("2001:db8:1::/94")))
	})
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Write(t.Context(), func(tx *Tx) error {
		for _, c := range []struct{ kind, owner, want string }{
			{AddressInstance6, "a", "2001:db8::2"}, {AddressInstance6, "b", "2001:db8::3"},
			{AddressElastic6, "a", "2001:db8:1::1:0:0"}, {AddressElastic6, "b", "2001:db8:1::2:0:0"}, {AddressElastic6, "c", "2001:db8:1::3:0:0"},
		} {
			if got, err := tx.AllocateAddress(c.kind, c.owner); err != nil || got != netip.MustParseAddr(c.want) {
				t.Errorf("%s of %s: %s, %v; want %s", c.kind, c.owner, got, err, c.want)
			}
		}
		var exhausted *ExhaustedError
		if _, err := tx.AllocateAddress(AddressElastic6, "d"); !errors.As(err, &exhausted) {
			t.Errorf("a prefix too many: %v", err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func testVNIs(t *testing.T, s *Store, _ *clock) {
	_, err := s.Write(t.Context(), func(tx *Tx) error {
		_, err := tx.exec(`INSERT INTO allocation (kind, number, owner, freed_at) VALUES ($1, $2, 'last', 0)`, NumberNetwork, 0xfffffd)
		if err != nil {
			return err
		}
		var exhausted *ExhaustedError
		if n, err := tx.Allocate(NumberNetwork, "one"); !errors.As(err, &exhausted) {
			t.Errorf("network %d, %v", n, err)
		}
		return errors.New("nothing is to be kept")
	})
	if err == nil || err.Error() != "nothing is to be kept" {
		t.Fatal(err)
	}
}
