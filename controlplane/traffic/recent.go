// SPDX-License-Identifier: Apache-2.0

package traffic

import (
	"sync"
	"time"
)

// A number of the wire is not given to anything else before it has rested for ten
// minutes. So what it was found to mean holds for a while after it has gone, which
// is when the last is told of it; and it need not be looked up for each packet.
const (
	fresh   = time.Minute
	resting = 10 * time.Minute
	most    = 1 << 17
)

// recent remembers what numbers mean.
type recent[T any] struct {
	mu sync.Mutex
	of map[uint32]meaning[T]
}

type meaning[T any] struct {
	what T
	at   time.Time // when it was so
}

// find what a number means, by look or, when that is not so any more, by memory.
func (r *recent[T]) find(n uint32, now time.Time, look func() (T, bool)) (T, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	had, ok := r.of[n]
	age := now.Sub(had.at)
	if ok && age < fresh {
		return had.what, true
	}
	if what, found := look(); found {
		r.keep(n, what, now)
		return what, true
	}
	return had.what, ok && age < resting
}

func (r *recent[T]) keep(n uint32, what T, now time.Time) {
	if r.of == nil {
		r.of = map[uint32]meaning[T]{}
	}
	if len(r.of) >= most {
		for k, m := range r.of {
			if now.Sub(m.at) >= fresh {
				delete(r.of, k)
			}
		}
		if len(r.of) >= most {
			clear(r.of)
		}
	}
	r.of[n] = meaning[T]{what, now}
}
