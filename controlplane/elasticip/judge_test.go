// SPDX-License-Identifier: Apache-2.0

package elasticip

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"cairn/controlplane/store"
)

// scene reads places like "1@1 ok active, 2@2 fail dead": port and host, verdict
// (? is none), whether it is active, and what is wrong with it: stopped, or dead.
func scene(text string) (places []store.ElasticPlace, facts map[uint32]fact) {
	facts = map[uint32]fact{}
	for part := range strings.SplitSeq(text, ", ") {
		var p store.ElasticPlace
		words := strings.Fields(part)
		fmt.Sscanf(words[0], "%d@%d", &p.Port, &p.Host)
		p.Verdict = map[string]string{"ok": store.VerdictSuccess, "fail": store.VerdictFailure, "?": store.VerdictInitial}[words[1]]
		p.Active = slices.Contains(words, "active")
		facts[p.Port] = fact{runs: !slices.Contains(words, "stopped"), reachable: !slices.Contains(words, "dead")}
		places = append(places, p)
	}
	return places, facts
}

func active(places []store.ElasticPlace) string {
	var ports []string
	for _, p := range places {
		if p.Active {
			ports = append(ports, fmt.Sprint(p.Port))
		}
	}
	return strings.Join(ports, " ")
}

func TestJudge(t *testing.T) {
	for _, c := range []struct {
		name    string
		managed bool
		scene   string
		want    string
	}{
		{"the first place gets it", true, "1@1 ?, 2@2 ?", "1"},
		{"a well one gets it first", true, "1@1 ?, 2@2 ok", "2"},
		{"unknown is not unhealthy", true, "1@1 ? active, 2@2 ok", "1"},
		{"it moves to a healthy one", true, "1@1 fail active, 2@2 ok", "2"},
		{"it does not move to an unknown one", true, "1@1 fail active, 2@2 ?", "1"},
		{"none healthy: it stays", true, "1@1 fail, 2@2 fail active", "2"},
		{"it does not move back", true, "1@1 ok, 2@2 ok active", "2"},
		{"a healthy one on a dead host is none", true, "1@1 fail active, 2@2 ok dead, 3@3 ok", "3"},
		{"a dead host is left for a healthy one", true, "1@1 ok active dead, 2@2 fail, 3@3 ok", "3"},
		{"and for an unknown one", true, "1@1 ok active dead, 2@2 fail, 3@3 ?", "3"},
		{"and for an unhealthy one", true, "1@1 ok active dead, 2@2 fail", "2"},
		{"a stopped instance is left", true, "1@1 ok active stopped, 2@2 ok", "2"},
		{"all dead: it stays", true, "1@1 ok, 2@2 ok active dead", "1"},
		{"alone and unwell", true, "1@1 fail active", "1"},
		{"alone and dead", true, "1@1 fail active dead stopped", "1"},

		{"all of them", false, "1@1 ?, 2@2 ?", "1 2"},
		{"verdicts do not count", false, "1@1 fail, 2@2 ok", "1 2"},
		{"one on each host", false, "2@1 ?, 1@1 ?, 3@2 ?", "1 3"},
		{"not the stopped ones", false, "1@1 ? active stopped, 2@1 ?, 3@2 ? active stopped", "2"},
		{"unless all are", false, "1@1 ? stopped, 2@2 ? stopped", "1 2"},
	} {
		places, facts := scene(c.scene)
		if got := active(judge(c.managed, places, facts, time.Now())); got != c.want {
			t.Errorf("%s: %s: active %q, want %q", c.name, c.scene, got, c.want)
		}
	}
}

// TestOneIsActive: whatever is known, a managed elastic IP comes to exactly one of
// its places, and judging again changes nothing.
func TestOneIsActive(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var words []string
		for n := range rapid.IntRange(1, 6).Draw(t, "places") {
			word := []string{fmt.Sprintf("%d@%d", n+1, rapid.IntRange(1, 3).Draw(t, "host")), rapid.SampledFrom([]string{"ok", "fail", "?"}).Draw(t, "verdict")}
			for _, more := range []string{"active", "stopped", "dead"} {
				if rapid.Bool().Draw(t, more) {
					word = append(word, more)
				}
			}
			words = append(words, strings.Join(word, " "))
		}
		places, facts := scene(strings.Join(words, ", "))
		now := time.Now()
		for _, managed := range []bool{true, false} {
			after := judge(managed, places, facts, now)
			if n := len(strings.Fields(active(after))); managed && n != 1 || n == 0 {
				t.Fatalf("%v: %d are active", words, n)
			}
			if !slices.Equal(after, judge(managed, after, facts, now.Add(time.Hour))) {
				t.Fatalf("%v: judged twice it moves", words)
			}
		}
	})
}
