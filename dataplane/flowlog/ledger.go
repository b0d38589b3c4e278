// SPDX-License-Identifier: Apache-2.0

package flowlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"os"

	"golang.org/x/sys/unix"

	"cairn/dataplane/host"
)

// ledger counts what became of events, for good. It is a file in memory, so that
// it outlives the process however that ends, and costs a store a count; it does
// not outlive the machine, and neither do the programs' own counters. Without
// a file it counts for this process.
type ledger struct {
	words []byte
	file  *os.File
}

// What it counts, by the word.
const (
	format  = iota
	boot    // of the machine that the counts are of
	base    // lost and muted by the programs before there was a ledger
	taking  // flows that a stream has taken
	dropped // flows that are lost here, with an agent that was killed too
	settled // events whose fate is known
	words
)

// version of the file.
const version = 0xca190001

// openLedger goes on with a file, given what the programs have counted. What they
// have told and nobody has settled, and does not wait to be read either, was lost
// with the agent before.
func openLedger(path string, counts host.EventCounts) (*ledger, error) {
	memory := &ledger{words: make([]byte, 8*words)}
	memory.found(counts)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return memory, fmt.Errorf("open the ledger of the flow log: %w", err)
	}
	if err := reserve(f); err != nil {
		return memory, errors.Join(fmt.Errorf("open the ledger of the flow log: %w", err), f.Close())
	}
	mapped, err := unix.Mmap(int(f.Fd()), 0, 8*words, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return memory, errors.Join(fmt.Errorf("map the ledger of the flow log: %w", err), f.Close())
	}
	l := &ledger{mapped, f}
	known := counts.Told - min(counts.Told, counts.Waiting)
	if l.get(format) != version || l.get(boot) != bootOf() || l.get(settled) > counts.Told || l.get(base) > counts.Lost+counts.Muted {
		l.found(counts)
		return l, nil
	}
	gap := known - min(known, l.get(settled))
	l.add(dropped, gap)
	l.add(settled, gap)
	return l, nil
}

// reserve has the file hold all words. On a full disk that fails here: a store
// into a mapped file for which there is no room would end the process.
func reserve(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Size() == 8*words {
		return nil
	}
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err = f.WriteAt(make([]byte, 8*words), 0)
	return err
}

// found begins to count.
func (l *ledger) found(counts host.EventCounts) {
	clear(l.words)
	l.set(boot, bootOf())
	l.set(base, counts.Lost+counts.Muted)
	l.set(settled, counts.Told-min(counts.Told, counts.Waiting))
	l.set(format, version)
}

// kernel is what the programs have lost since the ledger was begun.
func (l *ledger) kernel(counts host.EventCounts) uint64 {
	now := counts.Lost + counts.Muted
	return now - min(now, l.get(base))
}

func (l *ledger) get(word int) uint64    { return binary.NativeEndian.Uint64(l.words[8*word:]) }
func (l *ledger) set(word int, n uint64) { binary.NativeEndian.PutUint64(l.words[8*word:], n) }
func (l *ledger) add(word int, n uint64) { l.set(word, l.get(word)+n) }

func (l *ledger) close() error {
	if l == nil || l.file == nil {
		return nil
	}
	mapped := l.words
	l.words = make([]byte, 8*words)
	copy(l.words, mapped)
	return errors.Join(unix.Munmap(mapped), l.file.Close())
}

// bootOf the machine, as a number.
func bootOf() uint64 {
	text, _ := os.ReadFile("/proc/sys/kernel/random/boot_id") // without one, counters that fall tell of a reboot
	h := fnv.New64a()
	h.Write(text)
	return h.Sum64()
}
