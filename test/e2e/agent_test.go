// SPDX-License-Identifier: Apache-2.0

//go:build lab

package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"time"

	"github.com/cilium/ebpf/link"

	"cairn/bpf"
	"cairn/dataplane/debug"
	"cairn/test/lab"
	"cairn/test/story"
)

// diff is nil when what a hypervisor has programmed is what it is wanted to.
func diff(ctx context.Context, l *lab.Lab, hv int) error {
	d, err := story.AskAgent[debug.Diff](ctx, l, hv, "diff")
	if err == nil && !d.Empty() {
		err = fmt.Errorf("hv%d: programmed differs from desired: %+v", hv, d)
	}
	return err
}

// programmed is what a restart of an agent must leave alone.
type programmed struct{ programs, maps string }

func (c *cloudUnderTest) programmed(hv int) programmed {
	c.Helper()
	s, err := story.AskAgent[debug.Status](c.Context(), c.Lab, hv, "status")
	must(c.T, "agent's status", err)
	if len(s.Programs) == 0 || len(s.Maps) == 0 {
		c.Fatalf("agent names no programs or no maps: %+v", s)
	}
	return programmed{fmt.Sprint(s.Programs), fmt.Sprint(s.Maps)}
}

// inStep waits until every agent has programmed what it was last told, and all
// of one role hold equal tables.
func (c *cloudUnderTest) inStep() {
	c.Helper()
	lab.Eventually(c.T, "agents in step", 30*time.Second, func() error {
		var services []debug.Digest
		for hv := 1; hv <= c.Hypervisors(); hv++ {
			s, err := story.AskAgent[debug.Status](c.Context(), c.Lab, hv, "status")
			if err != nil {
				return err
			}
			if s.Desired != s.Programmed || len(s.Unsettled) > 0 {
				return fmt.Errorf("hv%d: desired %v, programmed %v, unsettled %v", hv, s.Desired, s.Programmed, s.Unsettled)
			}
			services = append(services, s.Digests["slots"])
			if !reflect.DeepEqual(services[0], services[len(services)-1]) {
				return fmt.Errorf("hv%d holds other slots than hv1", hv)
			}
		}
		return nil
	})
}

// drops reads one of a hypervisor's counters; one that never moved is not
// listed.
func (c *cloudUnderTest) drops(hv int, reason bpf.Reason) uint64 {
	c.Helper()
	all, err := story.AskAgent[[]debug.Drop](c.Context(), c.Lab, hv, "drops")
	must(c.T, "drops", err)
	for _, d := range all {
		if d.Reason == reason.String() {
			return d.Count
		}
	}
	return 0
}

// detach takes the XDP program off a hypervisor's uplink by hand.
func (c *cloudUnderTest) detach(hv int) {
	c.Helper()
	found := 0
	err := filepath.WalkDir(c.Pins(hv), func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		l, err := link.LoadPinnedLink(path, nil)
		if err != nil {
			return nil // a map or a program
		}
		defer l.Close()
		info, err := l.Info()
		if err != nil {
			return err
		}
		if info.XDP() != nil {
			found++
			return l.Detach()
		}
		return nil
	})
	must(c.T, "detach uplink program", err)
	if found != 1 {
		c.Fatalf("hv%d has %d XDP links pinned", hv, found)
	}
}
