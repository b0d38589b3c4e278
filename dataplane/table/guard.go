// SPDX-License-Identifier: Apache-2.0

package table

import (
	"fmt"
	"slices"

	"cairn/cloud/wire"
)

// Intent is an operation's own count of the objects of a kind that it removes,
// written before anything was compiled.
type Intent struct {
	Operation string
	Kind      wire.Kind
	Count     uint32
}

// Tombstone removes an item; it names the operation whose intent permits it.
type Tombstone struct {
	Key       wire.Key
	Operation string
}

// allowance is how many of have objects of a kind may go without an intent.
func allowance(have int) int { return max(10, have/5) }

// maxOperations bounds the intents that are held: the oldest go first.
const maxOperations = 4096

type budget struct{ count, used uint32 }

// intents held, by operation and kind.
type intents struct {
	held  map[string]map[wire.Kind]budget
	order []string // of arrival
}

func (in *intents) add(i Intent) {
	if in.held == nil {
		in.held = map[string]map[wire.Kind]budget{}
	}
	kinds, ok := in.held[i.Operation]
	if !ok {
		if len(in.order) == maxOperations {
			delete(in.held, in.order[0])
			in.order = in.order[1:]
		}
		kinds = map[wire.Kind]budget{}
		in.held[i.Operation] = kinds
		in.order = append(in.order, i.Operation)
	}
	b := kinds[i.Kind]
	b.count = max(b.count, i.Count) // an intent is sent again at every reconnect
	kinds[i.Kind] = b
}

// take uses up one removal of a kind by an operation and says whether an
// intent covers it. An operation that counted only its own objects covers as
// many of what hangs on them: a port's removal takes its member and its
// announcement along.
func (in *intents) take(operation string, kind wire.Kind) bool {
	kinds, ok := in.held[operation]
	if !ok {
		return false
	}
	b, ok := kinds[kind]
	if !ok {
		for _, other := range kinds {
			b.count = max(b.count, other.count)
		}
	}
	if b.used == b.count {
		return false
	}
	b.used++
	kinds[kind] = b
	return true
}

// judgeTombstones splits the tombstones of objects that exist into those to
// obey and those to refuse: a kind loses at most its allowance beyond what
// intents cover.
func judgeTombstones(tombstones []Tombstone, have func(wire.Kind) int, in *intents) (obey []Tombstone, refused []Fault) {
	uncovered := map[wire.Kind][]Tombstone{}
	for _, t := range tombstones {
		if in.take(t.Operation, t.Key.Kind) {
			obey = append(obey, t)
		} else {
			uncovered[t.Key.Kind] = append(uncovered[t.Key.Kind], t)
		}
	}
	for _, kind := range wire.Kinds() {
		over := uncovered[kind]
		if len(over) <= allowance(have(kind)) {
			obey = append(obey, over...)
			continue
		}
		reason := fmt.Sprintf("refused: %d of %d removals of kind %s have no intent, at most %d may",
			len(over), have(kind), kind, allowance(have(kind)))
		for _, t := range over {
			refused = append(refused, Fault{Key: t.Key, Reason: reason})
		}
	}
	slices.SortStableFunc(obey, func(a, b Tombstone) int { return int(b.Key.Kind) - int(a.Key.Kind) })
	return obey, refused
}

// judgeAbsence says why a snapshot that leaves out so many of a kind is
// refused, or nothing. An absence never has an intent.
func judgeAbsence(kind wire.Kind, have, missing int) string {
	switch {
	case missing == 0:
		return ""
	case missing == have:
		return fmt.Sprintf("it would remove the last %d of kind %s", have, kind)
	case missing > allowance(have):
		return fmt.Sprintf("it leaves out %d of %d of kind %s, at most %d may go", missing, have, kind, allowance(have))
	}
	return ""
}
