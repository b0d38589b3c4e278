// SPDX-License-Identifier: Apache-2.0

//go:build program

package port

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"cairn/bpf"
	"cairn/cloud/wire"
	"cairn/dataplane/maps"
)

// kernel is the port's programs with maps of their own.
type kernel struct {
	*testing.T
	maps map[maps.Map]*ebpf.Map
	ask  *ebpf.Program
}

func newKernel(t *testing.T) *kernel {
	t.Helper()
	specs, err := bpf.LoadCollectionSpecs()
	if err != nil {
		t.Fatal(err)
	}
	for name, size := range map[string]uint32{"slots": 64, "port_cfg": 64, "ct_est": 64, "ct_new": 64, "rule_stats": 64} {
		if m := specs.Port.Maps[name]; m != nil {
			m.MaxEntries = size
		}
	}
	c, err := ebpf.NewCollection(specs.Port)
	if err != nil {
		t.Fatalf("%+v", err)
	}
	t.Cleanup(c.Close)
	k := &kernel{T: t, maps: map[maps.Map]*ebpf.Map{}, ask: c.Programs["ask"]}
	for _, m := range append(policyMaps, maps.Members, maps.PortCfg) {
		k.maps[m] = c.Maps[m.String()]
	}
	return k
}

// hold has the maps hold what an image holds, and nothing else.
func (k *kernel) hold(im *maps.Image) {
	k.Helper()
	for m, into := range k.maps {
		var keys [][]byte
		var key, value []byte
		for it := into.Iterate(); m != maps.PortCfg && it.Next(&key, &value); {
			keys = append(keys, append([]byte(nil), key...))
		}
		for _, key := range keys {
			if err := into.Delete(key); err != nil {
				k.Fatal(err)
			}
		}
		for e := range im.Entries(m) {
			if m == maps.PortCfg { // as if its device were there
				cfg := maps.As[bpf.PortCfg](e.Value)
				cfg.Ifindex = 1
				e.Value = maps.Bytes(cfg)
			}
			if err := into.Put([]byte(e.Key), []byte(e.Value)); err != nil {
				k.Fatalf("put %s: %v", e, err)
			}
		}
	}
}

// asked is a packet as the program is asked about it.
func asked(q packet) bpf.Inquiry {
	i := bpf.Inquiry{Port: 1}
	i.Question.Direction, i.Question.Proto, i.Question.Match = uint32(q.direction), uint32(q.protocol), uint32(q.match)
	i.Question.Scope, i.Question.Fragment, i.Question.Peer.B = q.scope, q.fragment, bpf.IP16(q.peer).B
	return i
}

// judge asks the program.
func (k *kernel) judge(q packet) (verdict, bpf.Reason) {
	k.Helper()
	i := asked(q)
	run := &ebpf.RunOptions{Data: []byte(maps.Bytes(i)), DataOut: make([]byte, 256)}
	if code, err := k.ask.Run(run); err != nil || code != 0 {
		k.Fatalf("ask answers %d: %v", code, err)
	}
	i = maps.As[bpf.Inquiry](string(run.DataOut))
	return verdict{i.Verdict.Rule, i.Verdict.Flags&bpf.VerdictKeep != 0}, bpf.Reason(i.Reason)
}

func seeded(t *testing.T) *rand.Rand {
	t.Helper()
	n := uint64(time.Now().UnixNano())
	if s := os.Getenv("SEED"); s != "" {
		var err error
		if n, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("SEED=%d", n)
	return rand.New(rand.NewPCG(n, 0))
}

func pick[T any](rnd *rand.Rand, of []T) T { return of[rnd.IntN(len(of))] }

// random rules of every kind, as many as there may be.
func randomPolicy(rnd *rand.Rand, n int) wire.Policy {
	p := wire.Policy{ID: 3}
	for i := range n {
		r := wire.Rule{
			ID: uint32(i + 1), Direction: wire.Direction(i % 2), Keep: rnd.IntN(4) == 0, ICMPType: -1, ICMPCode: -1,
			Protocol: pick(rnd, []uint8{6, 6, 6, 17, 1, 58, 50, 51, 47, 4, 132, 0}),
		}
		if r.Protocol == 0 && rnd.IntN(n) > 4 {
			r.Protocol = 17
		}
		switch r.Protocol {
		case 6, 17:
			r.PortMin = uint16(rnd.IntN(65536))
			r.PortMax = uint16(min(65535, int(r.PortMin)+rnd.IntN(pick(rnd, []int{1, 64, 1000}))))
			if rnd.IntN(50) == 0 {
				r.PortMin, r.PortMax = 1, 65535
			}
		case 1, 58:
			r.ICMPType, r.ICMPCode = int16(rnd.IntN(257)-1), int16(rnd.IntN(4)-1)
		}
		if rnd.IntN(2) == 0 {
			r.PeerGroup = uint32(rnd.IntN(6) + 5)
			for range rnd.IntN(3) {
				r.Sources = append(r.Sources, pick(rnd, prefixes))
			}
		} else {
			r.Peer = pick(rnd, prefixes)
		}
		p.Rules = append(p.Rules, r)
	}
	return p
}

// The program admits by the very rule that a reading of the rules one by one
// finds, at every edge of the rules, for IPv4 and IPv6.
func TestTheProgramAgreesWithTheRules(t *testing.T) {
	rnd := seeded(t)
	k := newKernel(t)
	questions, admitted := 0, map[uint32]bool{}
	for _, n := range []int{0, 1, 2, 10, 64, 129, 600, 2 * wire.MaxRules} {
		p := randomPolicy(rnd, n)
		items := []wire.Item{p, wire.Port{ID: 1, MAC: [6]byte{2}, Policy: 3}}
		groups := map[member][]uint32{}
		classes := [][]uint32{nil, {5}, {6}, {5, 7}, {5, 6, 7, 8}, {9, 10}}
		for i, c := range classes[1:] {
			items = append(items, wire.Class{ID: uint32(i + 1), Groups: c})
		}
		for _, peer := range peers {
			for _, scope := range []uint32{0, 77} {
				if class := rnd.IntN(len(classes)); class > 0 {
					items = append(items, wire.Member{Scope: scope, Address: peer, Class: uint32(class)})
					groups[member{scope, peer}] = classes[class]
				}
			}
		}
		desired := tableOf(t, items...)
		im := image(t, desired.View(), maps.NewImage())
		desired.Close()
		k.hold(im)
		value, _ := im.Get(maps.ID{Map: maps.PortCfg, Key: maps.Bytes(uint32(1))})
		open := maps.As[bpf.PortCfg](value).Flags&bpf.PortEgressOpen != 0
		for range 20_000 {
			q := packet{
				direction: pick(rnd, directions), scope: pick(rnd, []uint32{0, 77}), peer: pick(rnd, peers),
				protocol: pick(rnd, []uint8{6, 6, 6, 17, 17, 1, 58, 50, 51, 47, 4, 132, 99}), fragment: rnd.IntN(10) == 0,
				match: uint16(rnd.IntN(65536)),
			}
			if n > 0 && rnd.IntN(3) > 0 {
				from, to := span(pick(rnd, p.Rules))
				q.match = pick(rnd, []uint16{from - 1, from, to, to + 1})
			}
			want, reason := plain(p, groups, q), bpf.ReasonNone
			switch {
			case q.direction == wire.Egress && open:
			case want.rule == 0 && q.direction == wire.Ingress:
				reason = bpf.ReasonPolicyIn
			case want.rule == 0:
				reason = bpf.ReasonPolicyOut
			}
			got, why := k.judge(q)
			if got != want || why != reason {
				t.Fatalf("%d rules, %+v: %v, %s, want %v, %s", n, q, got, why, want, reason)
			}
			questions++
			admitted[got.rule] = true
		}
	}
	t.Logf("%d questions, admitted by %d rules", questions, len(admitted)-1)
	if len(admitted) < 200 {
		t.Errorf("only %d rules ever admitted", len(admitted)-1)
	}
}

// What a policy of 1,000 rules weighs in the kernel, and how long a question
// takes: printed, and judged against one rule with room for a loaded machine.
func TestQuestionsCostTheSame(t *testing.T) {
	k, rnd, one := newKernel(t), seeded(t), time.Duration(0)
	weigh := func() (bytes uint64) {
		for m, in := range k.maps {
			info, err := in.Info()
			if err != nil {
				t.Fatal(err)
			}
			if size, ok := info.Memlock(); ok && m != maps.Members && m != maps.PortCfg {
				bytes += size
			}
		}
		return bytes
	}
	empty := weigh()
	for _, c := range large {
		for _, n := range []int{1, 1000} {
			t.Run(fmt.Sprint(n, " rules, ", c.name), func(t *testing.T) {
				desired := tableOf(t, policyOfSize(n, c.rule), wire.Port{ID: 1, MAC: [6]byte{2}, Policy: 3})
				defer desired.Close()
				k.T = t
				k.hold(image(t, desired.View(), maps.NewImage()))
				weight, took := weigh()-empty, k.time(rnd, n, c.rule)
				t.Logf("%d bytes in the kernel, %d ns a question", weight, took)
				if n == 1 {
					one = took
				}
				if n == 1000 && (weight > 1<<20 || took > 8*one) {
					t.Errorf("%d bytes in the kernel, %d ns a question and %d of 1 rule", weight, took, one)
				}
			})
		}
	}
}

// time of a question that one of n rules answers, in ns: the least of some runs
// of each of some questions, averaged.
func (k *kernel) time(rnd *rand.Rand, n int, rule func(int) wire.Rule) time.Duration {
	k.Helper()
	const questions = 200
	var total time.Duration
	for range questions {
		r := rule(rnd.IntN(n))
		peer := r.Peer
		if r.PeerGroup != 0 {
			peer = r.Sources[0]
		}
		from, _ := span(r)
		i := asked(packet{protocol: r.Protocol, match: from, peer: peer.Addr().Next()})
		best := time.Hour
		for range 5 {
			code, took, err := k.ask.Benchmark([]byte(maps.Bytes(i)), 500, nil)
			if err != nil || code != 0 {
				k.Fatal(code, err)
			}
			best = min(best, took)
		}
		total += best
	}
	return total / questions
}
