// SPDX-License-Identifier: Apache-2.0

package debug

import (
	"fmt"
	"io"
	"time"
)

// Traffic is what a host has forwarded as an LB node since it came up. Bytes are of
// IP.
type Traffic struct {
	Packets   uint64 `json:"packets"`
	Bytes     uint64 `json:"bytes"`
	Opened    uint64 `json:"opened"`              // TCP SYNs
	Forwarded uint64 `json:"forwarded,omitempty"` // handed on to a slot's other owner; of services only
}

// Connections of a backend, as its own host counts them; on others all are 0.
type Connections struct {
	Live           uint64 `json:"live"`
	Opened         uint64 `json:"opened"` // confirmed, since the host came up
	Closed         uint64 `json:"closed"`
	Refused        uint64 `json:"refused"` // SYNs it did not take
	ResetsIn       uint64 `json:"resets_in"`
	ResetsOut      uint64 `json:"resets_out"`
	RetransmitsIn  uint64 `json:"retransmits_in"`
	RetransmitsOut uint64 `json:"retransmits_out"`
}

// Latency is the histogram of the time from a SYN to its answer at the host of the
// backend. Bucket n counts t with 2^(n−1) ≤ t < 2^n µs, the first one t < 1 µs, the
// last one all above.
type Latency struct {
	Count  []uint64 `json:"count"`
	Micros uint64   `json:"sum_us"` // all together
}

// Total of all buckets.
func (l Latency) Total() (n uint64) {
	for _, c := range l.Count {
		n += c
	}
	return n
}

// Bound is the upper end of a bucket.
func (Latency) Bound(bucket int) time.Duration { return time.Microsecond << bucket }

// Below is a bound that the share q of all is below, 0 without any. What is in the
// last bucket has none; its lower end is named.
func (l Latency) Below(q float64) time.Duration {
	total, sum := l.Total(), uint64(0)
	for i, n := range l.Count {
		sum += n
		if n > 0 && float64(sum) >= q*float64(total) {
			return l.Bound(min(i, len(l.Count)-2))
		}
	}
	return 0
}

// Skew is the largest share of slots that a backend owns over the mean of those that
// own any; 0 without any.
func (s Service) Skew() float64 {
	most, sum, owners := 0, 0, 0
	for _, b := range s.Backends {
		if b.Slots > 0 {
			most, sum, owners = max(most, b.Slots), sum+b.Slots, owners+1
		}
	}
	if owners == 0 {
		return 0
	}
	return float64(most) * float64(owners) / float64(sum)
}

// pair is a count each way.
func pair(in, out uint64) string { return fmt.Sprintf("%d/%d", in, out) }

func printCounts(w io.Writer, services []Service) {
	grid(w, func(row func(...any)) {
		row("SERVICE", "BACKEND", "TRAFFIC", "SYN", "HANDED ON", "LIVE", "OPENED", "REFUSED", "RST IN/OUT", "AGAIN IN/OUT", "SKEW", "ANSWERS BELOW (50 %, 99 %)")
		for _, s := range services {
			below := ""
			if s.Latency.Total() > 0 {
				below = fmt.Sprintf("%s, %s", s.Latency.Below(0.5), s.Latency.Below(0.99))
			}
			row(s.ID, "", traffic(s.Traffic.Packets, s.Traffic.Bytes), s.Traffic.Opened, s.Traffic.Forwarded, "", "", "", "", "", fmt.Sprintf("%.3f", s.Skew()), below)
			for _, b := range s.Backends {
				c := b.Connections
				row("", b.ID, traffic(b.Traffic.Packets, b.Traffic.Bytes), b.Traffic.Opened, "", c.Live, c.Opened, c.Refused,
					pair(c.ResetsIn, c.ResetsOut), pair(c.RetransmitsIn, c.RetransmitsOut))
			}
		}
	})
}
