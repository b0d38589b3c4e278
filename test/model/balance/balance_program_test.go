// SPDX-License-Identifier: Apache-2.0

//go:build program

package balance

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// tell a story to both; the error says where they part, or what flow is lost.
func tell(f *Fabric, seed uint64, hasty bool) (sent int, err error) {
	if err := f.Clear(); err != nil {
		return 0, err
	}
	s, err := NewStory(seed, HashOf, f)
	if err != nil {
		return 0, err
	}
	s.Hasty = hasty
	for sent := range 200 {
		if err := s.Change(); err != nil {
			return sent, err
		}
		p := s.Packet()
		s.tell("%s", p)
		got, err := f.Send(p)
		want := s.Zone.Judge(p)
		if err == nil && got != want {
			err = fmt.Errorf("%s: %s, the description says %s", p, got, want)
		}
		if err == nil {
			err = s.Check(p, got)
		}
		if err == nil && got.Backend != 0 {
			err = f.Answer(p, got.Backend)
		}
		if err != nil {
			return sent, fmt.Errorf("%w\nafter:\n%s", err, strings.Join(s.Told[max(0, len(s.Told)-25):], "\n"))
		}
	}
	return 200, nil
}

// TestHostsAgreeWithTheDescription sends made-up packets between three hosts'
// programs while slots move and backends turn and die: who gets each is who the
// description says, and no flow changes its backend. SEED=… begins with a story
// again, FUZZ_TIME=… says how long it goes on.
func TestHostsAgreeWithTheDescription(t *testing.T) {
	f, err := NewFabric()
	if err != nil {
		t.Fatalf("%+v", err)
	}
	defer f.Close()
	until, seed := 5*time.Second, uint64(time.Now().UnixNano())
	if s := os.Getenv("FUZZ_TIME"); s != "" {
		if until, err = time.ParseDuration(s); err != nil {
			t.Fatal(err)
		}
	}
	if s := os.Getenv("SEED"); s != "" {
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("the first story is SEED=%d", seed)
	stories, packets := 0, 0
	for begin := time.Now(); stories == 0 || time.Since(begin) < until; stories++ {
		sent, err := tell(f, seed, false)
		if err != nil {
			t.Fatalf("SEED=%d: %v", seed, err)
		}
		seed++
		packets += sent
	}
	t.Logf("%d stories, %d packets", stories, packets)

	// The control: a slot whose old owner is forgotten too early loses flows.
	for seed := range uint64(20) {
		if _, err := tell(f, seed, true); err != nil && strings.Contains(err.Error(), "but the flow is backend") {
			return
		}
	}
	t.Error("20 stories without patience lose no flow")
}
