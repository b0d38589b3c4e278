// SPDX-License-Identifier: Apache-2.0

package place_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"cairn/cloud/place"
)

const gib = int64(1) << 30

// fleet is n equal and empty hypervisors, hv1 first.
func fleet(n int) []place.Candidate {
	var all []place.Candidate
	for i := range n {
		all = append(all, place.Candidate{ID: fmt.Sprint("hv", i+1), Joined: true, InLease: true,
			Drivers: []string{"netns"}, CPUs: 8, Memory: 16 * gib})
	}
	return all
}

// put places a request and does what the transaction does.
func put(r place.Request, all []place.Candidate, sibling bool) (string, error) {
	id, err := place.Place(r, all)
	for i := range all {
		if c := &all[i]; err == nil && c.ID == id {
			c.Instances++
			c.UsedCPUs += r.CPUs
			c.UsedMemory += r.Memory
			for _, g := range r.Groups {
				c.Groups = append(c.Groups, g.ID)
			}
			if sibling {
				c.Siblings++
			}
		}
	}
	return id, err
}

func small(groups ...place.Group) place.Request {
	return place.Request{CPUs: 1, Memory: gib, Driver: "netns", Groups: groups}
}

func Example() {
	all := fleet(3)
	web := place.Group{ID: "1", Name: "web"}
	for range 4 {
		fmt.Println(put(small(web), all, false))
	}
	for range 4 {
		fmt.Println(put(small(), all, true))
	}
	// Output:
	// hv1 <nil>
	// hv2 <nil>
	// hv3 <nil>
	//  anti-affinity group web: no hypervisor left: 3 with an instance of it
	// hv1 <nil>
	// hv2 <nil>
	// hv3 <nil>
	// hv1 <nil>
}

func TestRefusals(t *testing.T) {
	a, b := place.Group{ID: "a", Name: "alpha"}, place.Group{ID: "b", Name: "beta"}
	cases := []struct {
		name    string
		change  func(all []place.Candidate)
		request place.Request
		says    string
		is      error
	}{
		{"nobody", func(all []place.Candidate) {
			for i := range all {
				all[i].Joined = false
			}
		}, small(), "no hypervisor left: 3 not joined", place.ErrUnavailable},
		{"each another reason", func(all []place.Candidate) {
			all[0].InLease, all[1].Draining = false, true
			all[2].UsedMemory = 16 * gib
		}, small(), "no hypervisor left: 1 draining, 1 silent, 1 without memory", place.ErrUnavailable},
		{"driver", func([]place.Candidate) {}, place.Request{Driver: "qemu"}, "no hypervisor left: 3 without driver qemu", place.ErrUnavailable},
		{"cpus", func([]place.Candidate) {}, place.Request{Driver: "netns", CPUs: 9}, "no hypervisor left: 3 without cpus", place.ErrUnavailable},
		{"one group excludes all that fit", func(all []place.Candidate) {
			all[0].Groups, all[1].Groups = []string{"a", "b"}, []string{"b"}
			all[2].Draining = true
		}, small(a, b), "anti-affinity group beta: no hypervisor left: 2 with an instance of it, 1 draining", place.ErrAntiAffinity},
		{"two groups together exclude all", func(all []place.Candidate) {
			all[0].Groups, all[1].Groups, all[2].Groups = []string{"a"}, []string{"b"}, []string{"b"}
		}, small(a, b), "anti-affinity group alpha, beta: no hypervisor left: 3 with an instance of it", place.ErrAntiAffinity},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			all := fleet(3)
			c.change(all)
			id, err := place.Place(c.request, all)
			if id != "" || err == nil || err.Error() != c.says || !errors.Is(err, c.is) || !errors.Is(err, place.ErrUnavailable) {
				t.Errorf("got %q, %v; want %s", id, err, c.says)
			}
			if c.is != place.ErrAntiAffinity && errors.Is(err, place.ErrAntiAffinity) {
				t.Error("blames a group")
			}
		})
	}
	if _, err := place.Place(small(), nil); err == nil || err.Error() != "no hypervisor left" {
		t.Errorf("no candidates at all: %v", err)
	}
}

func TestOrder(t *testing.T) {
	cases := []struct {
		name   string
		change func(all []place.Candidate)
		want   string
	}{
		{"first by id", func([]place.Candidate) {}, "hv1"},
		{"fewest instances", func(all []place.Candidate) { all[0].Instances, all[1].Instances = 1, 1 }, "hv3"},
		{"least loaded", func(all []place.Candidate) { all[0].UsedCPUs, all[2].UsedMemory, all[1].Instances = 1, 3*gib, 9 }, "hv2"},
		{"the scarcer resource counts", func(all []place.Candidate) {
			all[0].UsedCPUs, all[1].UsedMemory, all[2].UsedCPUs = 4, 15*gib, 5
		}, "hv1"},
		{"fewest siblings", func(all []place.Candidate) { all[0].Siblings, all[1].Siblings, all[2].UsedCPUs = 1, 1, 7 }, "hv3"},
	}
	for _, c := range cases {
		all := fleet(3)
		c.change(all)
		slices.Reverse(all)
		if id, err := place.Place(small(), all); id != c.want || err != nil {
			t.Errorf("%s: got %s, %v; want %s", c.name, id, err, c.want)
		}
	}
}

// Any fleet, any requests one after the other: what is chosen fits and shares no
// group; the order of candidates does not matter; and a refusal means that
// nothing would have fitted.
func TestAnyFleet(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		all := fleet(rapid.IntRange(0, 6).Draw(t, "hypervisors"))
		for i := range all {
			c := &all[i]
			c.Joined = rapid.IntRange(0, 9).Draw(t, "joined") > 0
			c.InLease = rapid.IntRange(0, 9).Draw(t, "in lease") > 0
			c.Draining = rapid.IntRange(0, 9).Draw(t, "draining") == 0
			c.CPUs = rapid.IntRange(0, 8).Draw(t, "cpus")
		}
		for range rapid.IntRange(1, 20).Draw(t, "requests") {
			r := place.Request{CPUs: rapid.IntRange(0, 3).Draw(t, "cpus"), Memory: gib, Driver: "netns"}
			for _, g := range rapid.SliceOfDistinct(rapid.SampledFrom([]string{"a", "b", "c"}), rapid.ID[string]).Draw(t, "groups") {
				r.Groups = append(r.Groups, place.Group{ID: g, Name: g})
			}
			fits := func(c place.Candidate) bool {
				apart := !slices.ContainsFunc(r.Groups, func(g place.Group) bool { return slices.Contains(c.Groups, g.ID) })
				return c.Joined && c.InLease && !c.Draining && apart && c.UsedCPUs+r.CPUs <= c.CPUs && c.UsedMemory+r.Memory <= c.Memory
			}
			before := slices.Clone(all)
			other, _ := place.Place(r, rapid.Permutation(all).Draw(t, "order"))
			id, err := put(r, all, false)
			if other != id {
				t.Fatalf("%q or %q, as the candidates come", id, other)
			}
			i := slices.IndexFunc(before, func(c place.Candidate) bool { return c.ID == id })
			switch {
			case err != nil && slices.ContainsFunc(before, fits):
				t.Fatalf("%v, but one fits", err)
			case err == nil && !fits(before[i]):
				t.Fatalf("%s does not fit: %+v", id, before[i])
			}
		}
	})
}
