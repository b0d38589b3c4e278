// SPDX-License-Identifier: Apache-2.0

package metadata

import (
	"sync"
	"time"
)

// maxBuckets is when buckets that are full again are let go. Only ports of this
// host have one.
const maxBuckets = 4096

// limit is a bucket of tokens for each port.
type limit struct {
	rate, burst float64
	now         func() time.Time

	mu      sync.Mutex
	buckets map[uint32]bucket
}

type bucket struct {
	tokens float64
	at     time.Time
}

func newLimit(rate, burst float64, now func() time.Time) *limit {
	return &limit{rate: rate, burst: burst, now: now, buckets: map[uint32]bucket{}}
}

// take one of a port's tokens, if it has any.
func (l *limit) take(port uint32) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	b, ok := l.buckets[port]
	if !ok {
		l.forget(now)
		b = bucket{l.burst, now}
	}
	b = bucket{l.filled(b, now), now}
	taken := b.tokens >= 1
	if taken {
		b.tokens--
	}
	l.buckets[port] = b
	return taken
}

func (l *limit) filled(b bucket, now time.Time) float64 {
	return min(l.burst, b.tokens+l.rate*max(0, now.Sub(b.at).Seconds()))
}

func (l *limit) forget(now time.Time) {
	if len(l.buckets) < maxBuckets {
		return
	}
	for port, b := range l.buckets {
		if l.filled(b, now) == l.burst {
			delete(l.buckets, port)
		}
	}
}
