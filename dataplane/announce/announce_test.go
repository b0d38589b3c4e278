// SPDX-License-Identifier: Apache-2.0

package announce

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"cairn/cloud/wire"
)

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func sample() Set {
	return Set{Revision: 42, Wanted: []Wanted{
		{Prefix: prefix("198.51.100.7/32"), Origin: Instance, Port: 9},
		{Prefix: prefix("203.0.113.1/32"), Origin: VIP, Rank: 2, Communities: []uint32{65001<<16 | 7},
			Services: []Service{{80, 6}, {53, 17}}},
		{Prefix: prefix("203.0.113.2/32"), Origin: VIP, Drain: true},
	}}
}

func TestWriteThenRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "announcements.json")
	if _, err := Read(path); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("Read of nothing = %v, want fs.ErrNotExist", err)
	}
	want := sample()
	shuffled := Set{Revision: 42, Wanted: []Wanted{want.Wanted[2], want.Wanted[0], want.Wanted[1]}}
	if err := Write(path, shuffled); err != nil {
		t.Fatal(err)
	}
	got, err := Read(path)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("read back %+v, want %+v", got, want)
	}
	if shuffled.Wanted[0].Prefix != want.Wanted[2].Prefix {
		t.Error("Write sorted its caller's slice")
	}
	if err := Write(path, Set{Revision: 43}); err != nil {
		t.Fatal(err)
	}
	if got, err := Read(path); err != nil || got.Revision != 43 || len(got.Wanted) != 0 {
		t.Errorf("an empty set reads back as %+v, %v", got, err)
	}
	if left, err := filepath.Glob(path + ".*"); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestWriteRefusesWhatNobodyCanUse(t *testing.T) {
	tests := map[string]Wanted{
		"is not one":            {Prefix: prefix("203.0.113.1/24"), Origin: VIP},
		"instance without":      {Prefix: prefix("198.51.100.7/32"), Origin: Instance},
		"origin":                {Prefix: prefix("198.51.100.7/32")},
		"rank":                  {Prefix: prefix("203.0.113.1/32"), Origin: VIP, Rank: -1},
		"neither tcp nor udp":   {Prefix: prefix("203.0.113.1/32"), Origin: VIP, Services: []Service{{1, 1}}},
		"prefix invalid Prefix": {Origin: VIP},
	}
	for word, w := range tests {
		path := filepath.Join(t.TempDir(), "a")
		if err := Write(path, sample()); err != nil {
			t.Fatal(err)
		}
		err := Write(path, Set{Revision: 43, Wanted: []Wanted{w}})
		if err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("Write = %v, want an error with %q", err, word)
		}
		if got, err := Read(path); err != nil || got.Revision != 42 {
			t.Errorf("%s: the old file is gone: %+v, %v", word, got, err)
		}
	}
	twice := Set{Wanted: []Wanted{sample().Wanted[1], sample().Wanted[1]}}
	if err := Write(filepath.Join(t.TempDir(), "a"), twice); err == nil {
		t.Error("a prefix twice was written")
	}
}

// Whatever a disk does to the file, Read gives the set that was written or
// ErrCorrupt: never another set, never a panic.
func TestReadNeverGivesAnotherSet(t *testing.T) {
	good, err := encode(sample())
	if err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	path := filepath.Join(folder, "a")
	refused := 0
	rapid.Check(t, func(t *rapid.T) {
		data := append([]byte{}, good...)
		switch rapid.SampledFrom([]string{"flip", "cut", "zero", "twice"}).Draw(t, "damage") {
		case "flip":
			at := rapid.IntRange(0, len(data)-1).Draw(t, "at")
			data[at] ^= byte(1 << rapid.IntRange(0, 7).Draw(t, "bit"))
		case "cut":
			data = data[:rapid.IntRange(0, len(data)-1).Draw(t, "length")]
		case "zero":
			at := rapid.IntRange(0, len(data)-1).Draw(t, "at")
			clear(data[at:])
		case "twice":
			data = append(data, good...)
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := Read(path)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatalf("Read = %v, want ErrCorrupt", err)
			}
			refused++
			return
		}
		if !reflect.DeepEqual(got, sample()) {
			t.Fatalf("Read gives another set: %+v", got)
		}
	})
	if refused == 0 {
		t.Error("no damage was ever refused")
	}
}

func FuzzDecode(f *testing.F) {
	good, err := encode(sample())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"version":1,"sha256":"","set":null}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		set, err := decode(data)
		if err != nil {
			return
		}
		if err := set.Validate(); err != nil {
			t.Errorf("decoded a set that is not valid: %v", err)
		}
	})
}

func TestOtherVersionIsRefused(t *testing.T) {
	good, err := encode(sample())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := decode([]byte(strings.Replace(string(good), `"version":1`, `"version":2`, 1))); err == nil {
		t.Error("version 2 was read")
	}
}

func table(owners ...uint32) []byte {
	out := make([]byte, 8*len(owners))
	for i, o := range owners {
		binary.LittleEndian.PutUint32(out[8*i:], o)
	}
	return out
}

func TestCollect(t *testing.T) {
	vip, lonely, foreign := netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("203.0.113.2"), netip.MustParseAddr("203.0.113.3")
	instance, young := netip.MustParseAddr("198.51.100.7"), netip.MustParseAddr("198.51.100.8")
	d := Desired{
		Revision: 7, Host: 2,
		Announcements: []wire.Announcement{
			{Prefix: netip.PrefixFrom(vip, 32), Service: true, Announcers: []uint32{3, 2, 1}},
			{Prefix: netip.PrefixFrom(lonely, 32), Service: true, Announcers: []uint32{2}, Communities: []uint32{5}},
			{Prefix: netip.PrefixFrom(foreign, 32), Service: true, Announcers: []uint32{1, 3}},
			{Prefix: netip.PrefixFrom(instance, 32)},
			{Prefix: netip.PrefixFrom(young, 32)},
			{Prefix: netip.MustParsePrefix("192.0.2.7/32")},
			{Prefix: netip.MustParsePrefix("192.0.2.8/32")}, // active elsewhere
			{Prefix: netip.MustParsePrefix("2001:db8:0:7::/96")},
		},
		Services: []wire.Service{
			{ID: 1, VIP: vip, Port: 80, Protocol: 6},
			{ID: 2, VIP: vip, Port: 81, Protocol: 6},
			{ID: 3, VIP: vip, Port: 82, Protocol: 6},
			{ID: 4, VIP: foreign, Port: 80, Protocol: 6},
		},
		Slots: map[uint32]wire.Slots{1: {Table: table(0, 0, 11)}, 2: {Table: table(0, 0)}, 4: {Table: table(1)}},
		Ports: []wire.Port{
			{
				ID: 9, Addresses: []netip.Addr{instance}, Policy: 1,
				Allowed: []netip.Prefix{netip.MustParsePrefix("192.0.2.7/32"), netip.MustParsePrefix("192.0.2.8/32")},
				Active:  []netip.Prefix{netip.MustParsePrefix("192.0.2.7/32"), netip.MustParsePrefix("2001:db8:0:7::/96")},
			},
			{ID: 10, Addresses: []netip.Addr{young}}, // no policy yet: it would drop everything
		},
	}
	want := "7\n" +
		"192.0.2.7/32 instance port 9 rank 0 [] []\n" +
		"198.51.100.7/32 instance port 9 rank 0 [] []\n" +
		"203.0.113.1/32 vip port 0 rank 1 [80/tcp] []\n" +
		"203.0.113.2/32 vip port 0 rank 0 [] [5]\n" +
		"2001:db8:0:7::/96 instance port 9 rank 0 [] []\n"
	var got strings.Builder
	got.WriteString(fmt.Sprintln(Collect(d).Revision))
	for _, w := range Collect(d).Wanted {
		got.WriteString(fmt.Sprintf("%s %s port %d rank %d %v %v\n", w.Prefix, w.Origin, w.Port, w.Rank, w.Services, w.Communities))
		if w.Drain {
			t.Errorf("%s drains without a reason", w.Prefix)
		}
	}
	if got.String() != want {
		t.Errorf("Collect:\n%swant:\n%s", got.String(), want)
	}
	if err := Collect(d).Validate(); err != nil {
		t.Error(err)
	}
	d.Draining = true
	for _, w := range Collect(d).Wanted {
		if !w.Drain {
			t.Errorf("%s does not drain with its host", w.Prefix)
		}
	}
}
