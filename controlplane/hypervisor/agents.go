// SPDX-License-Identifier: Apache-2.0

package hypervisor

import (
	"context"
	"encoding/json"
	"time"

	"cairn/controlplane/dist"
	"cairn/controlplane/store"
)

// Agents hears of agents from package dist and keeps the rows accordingly.
type Agents struct {
	Hypervisors *Hypervisors
	// Reported hands on what agents say of instances, checks and slots.
	Reported func(ctx context.Context, host string, reports []dist.Report) error
}

var _ dist.Events = Agents{}

// Hello implements dist.Events.
func (a Agents) Hello(ctx context.Context, host string, in dist.Inventory) (uint32, error) {
	doc, err := a.Hypervisors.Hello(ctx, host, Inventory{
		Endpoint: in.Endpoint, MTU: in.MTU, Roles: in.Roles, Drivers: in.Drivers,
		CPUs: in.CPUs, Memory: in.Memory, Version: in.Version,
	})
	return doc.Number, err
}

// Report implements dist.Events.
func (a Agents) Report(ctx context.Context, host string, reports []dist.Report) error {
	if a.Reported == nil {
		return nil
	}
	return a.Reported(ctx, host, reports)
}

// Alive implements dist.Events. A hypervisor whose uplink is down says so
// itself, and cannot be reached.
func (a Agents) Alive(ctx context.Context, host string, uplinkDown bool) error {
	return a.Hypervisors.Commit(ctx, Fact{
		Name: host, Unreachable: uplinkDown, UplinkDown: uplinkDown, Since: a.Hypervisors.store.Now(),
	})
}

// Lost implements dist.Events.
func (a Agents) Lost(ctx context.Context, host string, since time.Time) error {
	return a.Hypervisors.Commit(ctx, Fact{Name: host, Unreachable: true, Since: since})
}

// Refused implements dist.Events: it is audited in the zone's own chain.
func (a Agents) Refused(ctx context.Context, who, why string) {
	_, err := a.Hypervisors.store.Write(ctx, func(tx *store.Tx) error {
		event, err := json.Marshal(map[string]any{
			"timestamp": tx.Now().UnixMilli(), "handler": "agent", "source-ip": who, "message": why,
		})
		if err != nil {
			return err
		}
		return tx.Audit("", string(event))
	})
	if err != nil {
		a.Hypervisors.log.Error("audit a refusal", "who", who, "why", why, "error", err)
	}
}
