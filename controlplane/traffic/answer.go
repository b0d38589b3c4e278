// SPDX-License-Identifier: Apache-2.0

package traffic

import (
	"context"
	"strconv"
	"time"

	"cairn/cloud"
	"cairn/controlplane/api"
	"cairn/controlplane/eventlog"
	"cairn/controlplane/store"
)

// How many entries an answer has, unless asked otherwise, and at most.
const (
	usualAnswer  = 100
	longestOne   = 1000
	notReadSoFar = time.Second // when to ask again while the zone is being read
)

// Handlers of the operation.
func (t *Traffic) Handlers() api.Handlers {
	return api.Handlers{"get-instance-flows": t.answer}
}

// answer reads the flow log of an instance, to whom it belongs.
func (t *Traffic) answer(_ context.Context, c api.Call) (any, error) {
	snap := t.cfg.Snapshot()
	if snap.Revision == 0 {
		return nil, cloud.Unavailablef(notReadSoFar, "the zone is being read")
	}
	i, ok := snap.Instance(c.ID("id"))
	if !ok || i.Org != c.Org {
		return nil, cloud.Missing(string(store.KindInstance), c.ID("id"))
	}
	var faults []cloud.FieldError
	number := func(name string, otherwise, least, most uint64) uint64 {
		text := c.Query.Get(name)
		if text == "" {
			return otherwise
		}
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil || n < least || n > most {
			faults = append(faults, cloud.Fault(name, "expected a number from %d to %d", least, most))
		}
		return n
	}
	limit := number("limit", usualAnswer, 1, longestOne)
	from := number("from", 0, 0, 1<<62)
	if faults != nil {
		return nil, cloud.InvalidFields(faults)
	}
	next := t.cfg.Events.Next() // before the reading: what comes meanwhile is left to the next question
	mine := func(e *eventlog.Event) bool { return e.Flow != nil && e.Org == c.Org }
	var events []eventlog.Event
	var err error
	if c.Query.Get("from") == "" {
		events, err = t.cfg.Events.Latest(i.ID, int(limit), mine)
	} else {
		events, err = t.cfg.Events.From(i.ID, from, int(limit), mine)
		if uint64(len(events)) == limit {
			next = 0 // there may be more before it
		}
	}
	if err != nil {
		return nil, err
	}
	list := cloud.FlowList{Flows: make([]cloud.Flow, len(events)), Next: next}
	for n, e := range events {
		list.Flows[n] = *e.Flow
		list.Flows[n].Offset = e.Offset
		list.Next = max(list.Next, e.Offset+1)
	}
	return list, nil
}
