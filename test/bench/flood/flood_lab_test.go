// SPDX-License-Identifier: Apache-2.0

//go:build lab

package main

import (
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/cilium/ebpf/rlimit"

	"cairn/test/bench"
	"cairn/test/rig"
)

func TestMain(m *testing.M) { rig.TestAlone(m.Run) }

// A flood of a second at an open and at a closed port harms nobody: the short
// form of the benchmark, with its bars and its control.
func TestFloodHarmsNobody(t *testing.T) {
	_ = rlimit.RemoveMemlock()
	b := floodBench{
		Report: &bench.Report{Out: t.Output()}, lasts: time.Second, established: 1000, dials: 100, floods: floods[:5], server: serveIn,
	}
	if err := b.run(t.TempDir()); err != nil {
		t.Fatal(err)
	}
	if !b.Close() {
		t.Error("a bar is missed")
	}
}

// serveIn has this process be the machine.
func serveIn(g *rig.Guest) (stop func() error, err error) {
	err = g.Space.Do(func() error {
		l, err := net.Listen("tcp4", fmt.Sprintf(":%d", open))
		if err != nil {
			return err
		}
		conn, err := net.ListenPacket("udp4", fmt.Sprintf(":%d", open))
		if err != nil {
			return err
		}
		go func() { _ = echoConnections(l) }()
		go echoDatagrams(conn)
		stop = func() error {
			_ = conn.Close()
			return l.Close()
		}
		return nil
	})
	return stop, err
}
