// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	v3 "github.com/exoscale/egoscale/v3"
	"golang.org/x/sys/unix"

	"cairn/dataplane/debug"
	"cairn/test/story"
)

const updates = 200

// The bars of a change.
const (
	middleBar = 10 * time.Millisecond
	ninthBar  = 50 * time.Millisecond
	atOnceBar = 95 // per cent of first answers that say success already
)

// clock reads CLOCK_MONOTONIC, which all processes of a machine share.
func clock() time.Duration {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // it has no way to fail
	return time.Duration(ts.Nano())
}

// firstByte is a transport that knows when the first byte of the last request
// was handed to the kernel.
type firstByte struct {
	*http.Transport
	armed atomic.Bool
	at    atomic.Int64
}

func newFirstByte() *firstByte {
	f := &firstByte{}
	f.Transport = &http.Transport{MaxIdleConnsPerHost: 1, DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return stamped{conn, f}, nil
	}}
	return f
}

// arm forgets the request before.
func (f *firstByte) arm() { f.armed.Store(true) }

func (f *firstByte) moment() time.Duration { return time.Duration(f.at.Load()) }

type stamped struct {
	net.Conn
	f *firstByte
}

func (s stamped) Write(b []byte) (int, error) {
	if s.f.armed.CompareAndSwap(true, false) {
		s.f.at.Store(int64(clock()))
	}
	return s.Conn.Write(b)
}

// sample is one update: what passed since its first byte.
type sample struct {
	written  time.Duration // last map write of the last agent; 0 if not known
	answered time.Duration
	atOnce   bool // the first answer said success
}

// editor makes updates of the service and measures them.
type editor struct {
	d    *demo
	byte *firstByte
	who  *story.Customer
}

func (d *demo) latency() error {
	f := newFirstByte()
	defer f.CloseIdleConnections()
	who, err := story.NewCustomerOver(d.ctx, d.lab, f)
	if err != nil {
		return err
	}
	e := &editor{d, f, who}
	// Two strategies in turn: each change is a new record of the service and a
	// switch to it, on every hypervisor.
	strategies := []v3.UpdateLoadBalancerServiceRequestStrategy{
		v3.UpdateLoadBalancerServiceRequestStrategySourceHash, v3.UpdateLoadBalancerServiceRequestStrategyRoundRobin,
	}
	changes, err := e.loop(func(i int) v3.UpdateLoadBalancerServiceRequest {
		return v3.UpdateLoadBalancerServiceRequest{Strategy: strategies[i%2]}
	}, true)
	if err != nil {
		return err
	}
	idle, err := e.loop(func(int) v3.UpdateLoadBalancerServiceRequest {
		return v3.UpdateLoadBalancerServiceRequest{Strategy: strategies[1]}
	}, false)
	if err != nil {
		return err
	}
	d.latencies(changes, idle)
	return nil
}

func (e *editor) loop(request func(int) v3.UpdateLoadBalancerServiceRequest, writes bool) ([]sample, error) {
	var all []sample
	for i := range updates {
		s, err := e.once(request(i), writes)
		if err != nil {
			return nil, fmt.Errorf("update %d of %d: %w", i+1, updates, err)
		}
		all = append(all, s)
	}
	return all, nil
}

func (e *editor) once(request v3.UpdateLoadBalancerServiceRequest, writes bool) (sample, error) {
	e.byte.arm()
	op, err := e.who.UpdateLoadBalancerService(e.d.ctx, e.d.nlb.ID, e.d.service.ID, request)
	answered := clock()
	if err != nil {
		return sample{}, err
	}
	s := sample{answered: answered - e.byte.moment(), atOnce: op.State == v3.OperationStateSuccess}
	if _, err := e.who.Done(op, nil); err != nil || !writes {
		return s, err
	}
	// Rounds later than the end of the operation are not its own.
	begin, end := e.byte.moment(), clock()
	if s.atOnce {
		end = answered
	}
	s.written, err = e.d.lastWrite(begin, end)
	s.written -= begin
	return s, err
}

// lastWrite is when the last hypervisor did its last map write of the span.
func (d *demo) lastWrite(begin, end time.Duration) (time.Duration, error) {
	var last time.Duration
	for hv := 1; hv <= d.lab.Hypervisors(); hv++ {
		status, err := story.AskAgent[debug.Status](d.ctx, d.lab, hv, "status")
		if err != nil {
			return 0, err
		}
		own, ok := latestWithin(status.Rounds, begin, end)
		if !ok {
			return 0, fmt.Errorf("hv%d wrote to no map between the first byte and success", hv)
		}
		last = max(last, own)
	}
	return last, nil
}

func latestWithin(rounds []debug.Round, begin, end time.Duration) (time.Duration, bool) {
	for _, r := range slices.Backward(rounds) {
		if at := time.Duration(r.ProgrammedNS); at >= begin && at <= end {
			return at, true
		}
	}
	return 0, false
}

func (d *demo) latencies(changes, idle []sample) {
	var written, answered, nothing []time.Duration
	atOnce := 0
	for _, s := range changes {
		written, answered = append(written, s.written), append(answered, s.answered)
		if s.atOnce {
			atOnce++
		}
	}
	for _, s := range idle {
		nothing = append(nothing, s.answered)
	}
	rows := [][]string{{"FROM THE FIRST BYTE TO", "P50", "P90", "MAX"}}
	row := func(what string, all []time.Duration) {
		rows = append(rows, []string{what, took(quantile(all, 50)), took(quantile(all, 90)), took(quantile(all, 100))})
	}
	row("the last map write", written)
	row("the answer", answered)
	row("the answer, nothing changed", nothing)
	d.table(rows)
	d.check(len(written) == updates, "%d updates of a service, each programmed by all %d hypervisors before its operation said success",
		len(written), d.lab.Hypervisors())
	d.bar("an update, to the last map write, p50", quantile(written, 50), middleBar)
	d.bar("an update, to the last map write, p90", quantile(written, 90), ninthBar)
	d.bar("an update, to the answer, p50", quantile(answered, 50), middleBar)
	d.bar("an update, to the answer, p90", quantile(answered, 90), ninthBar)
	share := 100 * atOnce / len(changes)
	d.barOf(share >= atOnceBar, "first answers that say success already", fmt.Sprintf("%d %%", share), fmt.Sprintf("≥ %d %%", atOnceBar))
}

// quantile is the smallest value that so many per cent of all do not exceed.
func quantile(all []time.Duration, percent int) time.Duration {
	if len(all) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(all))
	n := (len(sorted)*percent + 99) / 100
	return sorted[max(n, 1)-1]
}

// dozen times a pool of twelve.
func (d *demo) dozen() error {
	begin := time.Now()
	pool, err := d.customer.Pool("dozen", 12, d.group)
	if err != nil {
		return fmt.Errorf("create instance pool: %w", err)
	}
	running := time.Since(begin)
	d.did(begin, "create-instance-pool dozen, 12 instances, all running")
	members, err := d.customer.Members(pool)
	if err != nil {
		return err
	}
	n := 0
	for _, m := range members {
		if m.State == v3.InstanceStateRunning {
			n++
		}
	}
	d.check(n == 12, "a pool of 12 has %d running instances", n)
	d.bar("a pool of 12 through the API", running, 10*time.Second)
	begin = time.Now()
	if _, err := d.customer.Done(d.customer.DeleteInstancePool(d.ctx, pool)); err != nil {
		return fmt.Errorf("delete instance pool: %w", err)
	}
	d.did(begin, "delete-instance-pool dozen")
	return nil
}
