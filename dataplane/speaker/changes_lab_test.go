// SPDX-License-Identifier: Apache-2.0

//go:build lab

package speaker

import (
	"os"
	"slices"
	"testing"
	"time"
)

// A thousand times a VIP comes or goes, each seen in the router's kernel, and no
// session is reset: neither for what is announced, nor for how. FRR takes 60 ms for
// one: it does the thousand with CAIRN_LONG=1 (make long), else two hundred.
func TestThousandChangesKeepTheSession(t *testing.T) {
	forEachRouter(t, func(t *testing.T, router string) {
		r := newRig(t, router)
		r.startSpeaker("--bfd")
		r.lookUp(true)
		begin, err := r.status()
		must(t, err)
		var took []time.Duration
		changes := 1000
		if router != "bird" && os.Getenv("CAIRN_LONG") == "" {
			changes = 200
		}
		for i := range changes {
			if announced := i%2 == 0; announced {
				r.want(labVIP)
				took = append(took, r.fib(labVIP.Prefix, true))
			} else {
				r.want()
				took = append(took, r.fib(labVIP.Prefix, false))
			}
		}
		slices.Sort(took)
		t.Logf("%d changes on %s: each in the router's kernel after %v (median), %v at most", changes, router, took[changes/2], took[changes-1])
		end, err := r.status()
		must(t, err)
		was, is := begin.Sessions[0], end.Sessions[0]
		if is.Flaps != 0 || !is.Established || is.BFD != "up" || !is.Since.Equal(was.Since) {
			t.Errorf("session %+v, before %+v", is, was)
		}
	})
}
