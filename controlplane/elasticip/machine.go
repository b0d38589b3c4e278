// SPDX-License-Identifier: Apache-2.0

package elasticip

import (
	"cairn/controlplane/fsm"
	"cairn/controlplane/operation"
	"cairn/controlplane/store"
)

var machine = operation.StoredMachine("elastic-ip")

// Noun is what the gate knows of elastic IPs.
var Noun = operation.Noun{
	Kind:   store.KindElasticIP,
	Settle: operation.Settle(&machine, func(d *store.ElasticIPDoc) *string { return &d.Status }),
}

func state(d Doc) fsm.State { return fsm.State(d.Body.Status) }
