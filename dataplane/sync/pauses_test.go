// SPDX-License-Identifier: Apache-2.0

package sync

import (
	"testing"
	"time"
)

// TestPauses: each entry is how long a stream stood, and around which pause, in
// multiples of the first, an agent looks for the next one.
func TestPauses(t *testing.T) {
	const none = 0
	for name, story := range map[string][]struct{ stood, around time.Duration }{
		"nobody there":                 {{none, 1}, {none, 2}, {none, 4}, {none, 8}, {none, 8}},
		"refused at once":              {{time.Millisecond, 1}, {time.Millisecond, 2}, {time.Millisecond, 4}},
		"restarted every two seconds":  {{2 * time.Second, 1}, {2 * time.Second, 1}, {2 * time.Second, 1}},
		"there again after an absence": {{none, 1}, {none, 2}, {none, 4}, {time.Hour, 1}, {none, 2}},
	} {
		for range 100 {
			p := pauses{first: time.Second}
			for i, s := range story {
				got, middle := p.next(s.stood), s.around*time.Second
				if got < middle/2 || got >= middle*3/2 {
					t.Fatalf("%s: pause %d is %s, want %s ± half of it", name, i, got, middle)
				}
			}
		}
	}
	if grace := 15 * time.Second; maxWaits*time.Second*3/2 >= grace {
		t.Errorf("an agent may stay away for longer than the control plane's grace, %s", grace)
	}
}
