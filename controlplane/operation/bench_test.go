// SPDX-License-Identifier: Apache-2.0

package operation

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"cairn/cloud"
	"cairn/controlplane/store"
)

// BenchmarkAccept is one mutation: resource, change, operation, audit entry and
// answer, durable when it returns.
func BenchmarkAccept(b *testing.B) {
	g := newBench(b)
	g.join()
	var times []time.Duration
	for b.Loop() {
		start := time.Now()
		_, err := g.Accept(b.Context(), g.call("create-load-balancer"), func(tx *store.Tx, op cloud.ID) (Plan, error) {
			id := cloud.NewID()
			d := store.Doc[store.LoadBalancerDoc]{ID: id, Org: org, Generation: 1, Body: store.LoadBalancerDoc{
				LoadBalancer: cloud.LoadBalancer{ID: id, Name: fmt.Sprint(id)}}}
			return Plan{Subject: d.Ref(), Generation: 1}, store.Put(tx, op, d)
		})
		if err != nil {
			b.Fatal(err)
		}
		times = append(times, time.Since(start))
	}
	slices.Sort(times)
	b.ReportMetric(float64(times[len(times)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(times[len(times)*99/100].Microseconds()), "p99-µs")
}
