// SPDX-License-Identifier: Apache-2.0

package cloud

import (
	"net/netip"
	"time"
)

// What is logged of a flow.
const (
	FlowOpened = "opened"
	FlowClosed = "closed"
	FlowDenied = "denied"
)

// Flow is an entry of the flow log of an instance: a flow that began or ended,
// or a first packet that was denied. Addresses and ports are those that the
// instance sees.
type Flow struct {
	Offset          uint64        `json:"offset,omitempty" table:"true" doc:"its place in the log"`
	At              time.Time     `json:"at" table:"true"`
	Event           string        `json:"event" enum:"opened,closed,denied" table:"true"`
	Direction       FlowDirection `json:"direction" enum:"ingress,egress" table:"true" doc:"of the first packet"`
	Protocol        string        `json:"protocol" table:"true"`
	Source          netip.Addr    `json:"source" table:"true" doc:"of the first packet"`
	SourcePort      uint16        `json:"source-port,omitempty" table:"true"`
	Destination     netip.Addr    `json:"destination" table:"true"`
	DestinationPort uint16        `json:"destination-port,omitempty" table:"true" doc:"of ICMP the type times 256, plus the code"`
	Reason          string        `json:"reason,omitempty" table:"true" doc:"of a denial, or of an end that was not its own"`
	Rule            *FlowRule     `json:"rule,omitempty" doc:"that admitted it"`
	OpenedAt        time.Time     `json:"opened-at,omitzero"`
	Packets         uint64        `json:"packets,omitempty" table:"true" doc:"of a flow that ended, both ways"`
	Bytes           uint64        `json:"bytes,omitempty" table:"true" doc:"of IP, both ways"`
	PrivateNetwork  *Ref          `json:"private-network,omitempty" doc:"where it was, if not in public"`
	LoadBalancer    *FlowService  `json:"load-balancer,omitempty" doc:"through which it came"`
}

// FlowRule is the rule of a security group that admitted a flow. One that has
// gone long since is known by its number alone.
type FlowRule struct {
	ID            ID     `json:"id,omitempty"`
	SecurityGroup *Ref   `json:"security-group,omitempty"`
	Number        uint32 `json:"number" doc:"by which hypervisors know it"`
}

// FlowService is a service of a load balancer.
type FlowService struct {
	ID      ID `json:"id,omitempty"`
	Service ID `json:"service-id"`
}

// FlowList answers get-instance-flows: entries in the order in which they came
// in. Next is where to go on.
type FlowList struct {
	Flows []Flow `json:"flows"`
	Next  uint64 `json:"next" doc:"from where the next ones are"`
}
