// SPDX-License-Identifier: Apache-2.0

package announce_test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"cairn/lb/announce"
)

var (
	vip0 = netip.MustParsePrefix("203.0.113.1/32") // this host is rank 0
	vip1 = netip.MustParsePrefix("203.0.113.2/32")
	vm   = netip.MustParsePrefix("198.51.100.7/32")
)

func wanted() []announce.Announcement {
	return []announce.Announcement{
		{Prefix: vip0, Origin: announce.Service, Rank: 0},
		{Prefix: vip1, Origin: announce.Service, Rank: 1},
		{Prefix: vm, Origin: announce.Instance},
	}
}

func ExampleDecide() {
	var s announce.State
	good := announce.Result{Link: announce.Pass(), Prefixes: map[netip.Prefix]announce.Test{
		vip1: announce.Pass(), vm: announce.Pass()}}
	s, verdicts := announce.Decide(s, wanted()[1:], good)
	for _, v := range verdicts {
		fmt.Println(v.Prefix, v.Announce, v.Reason)
	}
	bad := good
	bad.Link = announce.Fail("no link pinned")
	s, _ = announce.Decide(s, wanted()[1:], bad)
	_, verdicts = announce.Decide(s, wanted()[1:], bad)
	for _, v := range verdicts {
		fmt.Println(v.Prefix, v.Announce, v.Reason)
	}
	// Output:
	// 198.51.100.7/32 true port present
	// 203.0.113.2/32 true probe passed
	// 198.51.100.7/32 true port present
	// 203.0.113.2/32 false uplink program gone: no link pinned
}

// A round is written as four letters: link, probe of vip0, probe of vip1, port
// of vm; P passes, F fails, - is not tested.
func TestDecide(t *testing.T) {
	cases := []struct {
		name   string
		rounds []string
		want   []netip.Prefix
	}{
		{"nothing tested", []string{"P---"}, nil},
		{"all well", []string{"PPPP"}, []netip.Prefix{vm, vip0, vip1}},
		{"the rest of the round later", []string{"PP--", "P-P-"}, []netip.Prefix{vip0, vip1}},
		{"first tests failed", []string{"PFFF"}, nil},
		{"first test of the link failed", []string{"FPPP"}, []netip.Prefix{vm}},
		{"one failure of each", []string{"PPPP", "FFFF"}, []netip.Prefix{vm, vip0, vip1}},
		{"failures apart", []string{"PPPP", "FFFF", "PPPP", "FFFF"}, []netip.Prefix{vm, vip0, vip1}},
		{"probes failed twice", []string{"PPPP", "PFF-", "PFF-"}, []netip.Prefix{vm, vip0}},
		{"probes failed twice, not in successive rounds", []string{"PPPP", "PFF-", "P---", "PFF-"}, []netip.Prefix{vm, vip0}},
		{"probes never passed, last announcer", []string{"PFF-", "PFF-"}, []netip.Prefix{vip0}},
		{"link failed twice", []string{"PPPP", "FPPP", "FPPP"}, []netip.Prefix{vm}},
		{"link came back", []string{"PPPP", "F---", "F---", "P---"}, []netip.Prefix{vm, vip0, vip1}},
		{"port gone", []string{"PPPP", "PPPF", "PPPF"}, []netip.Prefix{vip0, vip1}},
		{"port came back", []string{"PPPP", "---F", "---F", "P--P"}, []netip.Prefix{vm, vip0, vip1}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			var s announce.State
			var verdicts []announce.Verdict
			for _, round := range c.rounds {
				s, verdicts = announce.Decide(s, wanted(), result(round))
			}
			var got []netip.Prefix
			for _, a := range announce.Set(verdicts) {
				got = append(got, a.Prefix)
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("announced %v, want %v; %v", got, c.want, verdicts)
			}
			for _, v := range verdicts {
				if v.Reason == "" {
					t.Errorf("%s: no reason", v.Prefix)
				}
			}
		})
	}
}

func result(round string) announce.Result {
	test := func(i int) announce.Test {
		if round[i] == 'P' {
			return announce.Pass()
		}
		return announce.Fail("gone")
	}
	r := announce.Result{Link: test(0), Prefixes: map[netip.Prefix]announce.Test{}}
	for i, p := range []netip.Prefix{vip0, vip1, vm} {
		if round[i+1] != '-' {
			r.Prefixes[p] = test(i + 1)
		}
	}
	return r
}

func TestTwoForOnePrefix(t *testing.T) {
	want := []announce.Announcement{{Prefix: vip0, Origin: announce.Service, Rank: 3}, {Prefix: vip0, Origin: announce.Service}}
	_, verdicts := announce.Decide(announce.State{}, want, result("PP--"))
	if len(verdicts) != 1 || verdicts[0].Rank != 0 || !verdicts[0].Announce {
		t.Errorf("got %+v", verdicts)
	}
	if want[0].Rank != 3 {
		t.Error("the argument was reordered")
	}
}

// Whatever happens: nothing unwanted is announced; after a removal from the
// wanted set a prefix starts untested; an instance's address depends on its own
// tests only; and while the link holds, rank 0 is never withdrawn once tested.
func TestDecideAlways(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var s announce.State
		var vmAnnounced, vip0Tested bool
		vmFailed, linkFailed := 0, 0
		for range rapid.IntRange(1, 30).Draw(t, "rounds") {
			want := wanted()
			if rapid.IntRange(0, 9).Draw(t, "drop") == 0 {
				want = want[1:2]
			}
			round := rapid.StringMatching(`[PF][PF-]{3}`).Draw(t, "round")
			var verdicts []announce.Verdict
			s, verdicts = announce.Decide(s, want, result(round))
			if round[0] == 'F' {
				linkFailed++
			} else {
				linkFailed = 0
			}
			if len(want) == 1 {
				vmAnnounced, vip0Tested, vmFailed = false, false, 0
			}
			for _, v := range verdicts {
				if !slices.ContainsFunc(want, func(a announce.Announcement) bool { return a.Prefix == v.Prefix }) {
					t.Fatalf("%s is not wanted", v.Prefix)
				}
				switch v.Prefix {
				case vm:
					switch round[3] {
					case 'P':
						vmAnnounced, vmFailed = true, 0
					case 'F':
						if vmFailed++; vmFailed >= 2 {
							vmAnnounced = false
						}
					}
					if v.Announce != vmAnnounced {
						t.Fatalf("vm announced: %v, want %v", v.Announce, vmAnnounced)
					}
				case vip0:
					vip0Tested = vip0Tested || v.Announce
					if vip0Tested && linkFailed < 2 && !v.Announce {
						t.Fatalf("rank 0 withdrawn: %s", v.Reason)
					}
				case vip1:
					if v.Announce && linkFailed >= 2 {
						t.Fatal("VIP announced without a link")
					}
				}
			}
		}
	})
}
