// SPDX-License-Identifier: Apache-2.0

package privatenetwork

import (
	"cairn/controlplane/fsm"
	"cairn/controlplane/operation"
	"cairn/controlplane/store"
)

var machine = operation.StoredMachine("private-network")

// Noun is what the gate knows of private networks.
var Noun = operation.Noun{
	Kind:   store.KindPrivateNetwork,
	Settle: operation.Settle(&machine, func(d *store.PrivateNetworkDoc) *string { return &d.Status }),
}

func state(d Doc) fsm.State { return fsm.State(d.Body.Status) }
