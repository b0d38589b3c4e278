// SPDX-License-Identifier: Apache-2.0

package traffic

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"cairn/cloud/meter"
	"cairn/controlplane/dist"
	"cairn/controlplane/eventlog"
)

// Usage implements dist.Traffic.
func (t *Traffic) Usage(name, boot string, at time.Time, ports []dist.PortUsage) {
	now := t.cfg.Now()
	if at.After(now) {
		at = now
	}
	snap := t.cfg.Snapshot()
	reports := make([]meter.Report, 0, len(ports))
	for _, p := range ports {
		facts, ok := t.portOf(snap, p.Port, now)
		if !ok {
			t.Stats.Unknown.Add(1)
			continue
		}
		reports = append(reports, meter.Report{
			Resource: facts.instance, Org: facts.org, Port: p.Port, Boot: name + "/" + boot, At: at,
			Counters: meter.Counters{PacketsIn: p.PacketsIn, BytesIn: p.BytesIn, PacketsOut: p.PacketsOut, BytesOut: p.BytesOut},
		})
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, r := range reports {
		switch t.meter.Take(r) {
		case meter.Reset:
			t.Stats.Resets.Add(1)
		case meter.Abandoned:
			t.Stats.Abandoned.Add(1)
		}
	}
}

// kept is what outlives the process. A window is closed here first, with the sums
// that are to be told; who is killed in between tells them again, as they were.
type kept struct {
	Meter   meter.State       `json:"meter"`
	Pending []meter.Usage     `json:"pending,omitempty"`
	Lost    map[string]uint64 `json:"lost,omitempty"` // by host, of what its agent has said: what was told
}

// How often sums are kept, at most and at least; and how long after their loss
// what ports have counted is taken for told.
const (
	keepMost  = time.Minute
	keepLeast = 250 * time.Millisecond
	blindness = 5 * time.Minute
)

// New goes on with the sums in a file, or begins anew.
func New(cfg Config) (*Traffic, error) {
	if cfg.Window == 0 {
		cfg.Window = time.Hour
	}
	if cfg.Grace == 0 {
		cfg.Grace = cfg.Window / 12
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	t := &Traffic{cfg: cfg, hosts: map[string]*host{}}
	now := cfg.Now()
	text, err := os.ReadFile(cfg.File)
	var k kept
	switch {
	case errors.Is(err, fs.ErrNotExist):
		t.meter = meter.New(now, cfg.Window, cfg.Grace)
		if cfg.Events.Next() > 0 { // the zone is not new: the file was lost
			t.meter.Blind(now.Add(blindness))
		}
		return t, nil
	case err != nil:
		return nil, fmt.Errorf("read sums of usage: %w", err)
	}
	if err := json.Unmarshal(text, &k); err != nil || k.Meter.Until.IsZero() {
		cfg.Log.Error("sums of usage are lost: what ports have counted until now is not billed", "error", err)
		t.meter = meter.New(now, cfg.Window, cfg.Grace)
		t.meter.Blind(now.Add(blindness))
		return t, nil
	}
	t.meter, t.pending = meter.Restore(k.Meter, cfg.Window, cfg.Grace), k.Pending
	for name, lost := range k.Lost {
		t.host(name, now).said.Lost = lost
	}
	return t, nil
}

// Run closes windows and keeps sums until ctx ends.
func (t *Traffic) Run(ctx context.Context) {
	tick := time.NewTicker(min(keepMost, max(keepLeast, t.cfg.Window/60)))
	defer tick.Stop()
	said := ""
	for {
		select {
		case <-ctx.Done():
			if err := t.keep(); err != nil {
				t.cfg.Log.Error("sums of usage not kept", "error", err)
			}
			return
		case <-tick.C:
		}
		t.tellLosses()
		err := t.settle(ctx)
		if text := fmt.Sprint(err); err != nil && text != said && ctx.Err() == nil {
			t.cfg.Log.Error("usage not settled", "error", err)
			said = text
		}
	}
}

// settle closes windows that have ended, and tells their sums: first they are
// kept, then they are put into the log, then they are done with.
func (t *Traffic) settle(ctx context.Context) error {
	t.mu.Lock()
	t.pending = append(t.pending, t.meter.Close(t.cfg.Now())...)
	t.mu.Unlock()
	if err := t.keep(); err != nil {
		return err
	}
	t.mu.Lock()
	pending := slices.Clone(t.pending) // nobody else takes from it
	t.mu.Unlock()
	if len(pending) == 0 {
		return nil
	}
	events := make([]eventlog.Event, len(pending))
	for i, u := range pending {
		events[i] = eventlog.Event{
			ID: u.ID, Time: u.End, Kind: eventlog.Usage, Zone: t.cfg.Zone, Org: u.Org, Instance: u.Resource, Usage: &pending[i],
		}
	}
	if err := t.cfg.Events.Append(ctx, events); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.pending = t.pending[len(pending):]
	return nil
}

// keep what outlives the process.
func (t *Traffic) keep() error {
	t.mu.Lock()
	k := kept{Meter: t.meter.State(), Pending: slices.Clone(t.pending), Lost: map[string]uint64{}}
	for name, h := range t.hosts {
		k.Lost[name] = h.said.Lost - min(h.said.Lost, h.loss.Agent)
	}
	t.mu.Unlock()
	text, err := json.Marshal(k)
	if err != nil {
		return fmt.Errorf("keep sums of usage: %w", err)
	}
	if err := replace(t.cfg.File, text); err != nil {
		return fmt.Errorf("keep sums of usage: %w", err)
	}
	return nil
}

// replace a file: who dies half-way leaves the old one. When it returns the new one
// outlives a power cut: sums are not told before that.
func replace(path string, text []byte) error {
	f, err := os.OpenFile(filepath.Clean(path)+".new", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	folder, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}

// tellLosses puts into the log how much of it is missing.
func (t *Traffic) tellLosses() {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.cfg.Now()
	for _, name := range slices.Sorted(maps.Keys(t.hosts)) {
		h := t.hosts[name]
		if h.loss == (eventlog.Loss{}) {
			continue
		}
		loss := h.loss
		e := eventlog.Event{Time: now, Kind: eventlog.Lost, Zone: t.cfg.Zone, Host: name, Loss: &loss}
		if t.cfg.Events.Offer([]eventlog.Event{e}) == 0 {
			continue // it is told with the next one
		}
		h.loss = eventlog.Loss{}
		t.cfg.Log.Warn("flows are missing in the log", "host", name, "by the agent", loss.Agent, "by the control plane", loss.ControlPlane)
	}
}
