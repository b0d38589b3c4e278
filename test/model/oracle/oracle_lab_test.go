// SPDX-License-Identifier: Apache-2.0

//go:build lab

package oracle

import (
	"os"
	"strconv"
	"testing"
	"time"

	"cairn/test/model/firewall"
	"cairn/test/model/scenario"
)

const howLong = 20 * time.Second

// TestNftablesAgreesWithTheModel makes up rules and packets and has the kernel's
// own filter and the model judge them.
func TestNftablesAgreesWithTheModel(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("the first round is SEED=%d", seed)
	judged := map[bool]int{}
	for begin := time.Now(); time.Since(begin) < howLong; seed++ {
		r := newRouter(t)
		g := scenario.NewGenerator(seed)
		h := scenario.NewModel()
		h.Ports[5].Mail = true // nftables knows nothing of it
		var story []scenario.Step
		for _, c := range g.Rules() {
			story = append(story, scenario.Step{Change: c})
			scenario.Apply(h, *c)
		}
		r.filter(h)
		for range 150 {
			s := g.Plain(h)
			story = append(story, scenario.Step{Send: s})
			want := scenario.Judge(h, *s, nil)
			passes := want.Reason == firewall.ToPort || want.Reason == firewall.ToUplink
			if got := r.passes(*s); got != passes {
				t.Fatalf("SEED=%d: nftables: passes %v, the model says %s, after:\n%s\n%s", seed, got, want.Reason, scenario.Text(story), Table(h, h.Ports[5]))
			}
			judged[passes]++
		}
	}
	t.Logf("passed by both: %d, dropped by both: %d", judged[true], judged[false])
	if judged[true] < 100 || judged[false] < 100 {
		t.Error("that is no test")
	}
}
