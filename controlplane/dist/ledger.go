// SPDX-License-Identifier: Apache-2.0

package dist

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"iter"
	"maps"
	"os"
	"path/filepath"

	"cairn/cloud"
	"cairn/cloud/wire"
	"cairn/controlplane/compile"
	"cairn/controlplane/store"
)

// The ledger is a file that says what was told to agents: keys, places and
// sums, no bodies. A record is written before any agent hears of it, so after a
// restart everything that an agent may hold is known, and what has gone since is
// removed by tombstones that name their operation. Without it an agent whose
// objects went while cairnd was away could only be sent a snapshot, and would
// rightly refuse one that leaves out the last of a kind.
//
// It is a memory, not a truth: lost or torn, it costs snapshots. It is not
// synced, since it must outlive this process, not this machine.
type ledger struct {
	path string
	file *os.File
	size int64 // of the file
	base int64 // of its last whole record
}

// record is one line: the whole of what was told, or what a batch changed.
type record struct {
	Zone     cloud.ID                    `json:"zone,omitempty"` // in a whole one
	Epoch    uint64                      `json:"epoch,omitempty"`
	Floor    uint64                      `json:"floor,omitempty"`
	Revision uint64                      `json:"revision"`
	Set      []setLine                   `json:"set,omitempty"`
	Gone     []goneLine                  `json:"gone,omitempty"`
	Intents  map[cloud.ID][]store.Intent `json:"intents,omitempty"`
}

type setLine struct {
	Key        string   `json:"k"`
	Owner      string   `json:"o"`
	Generation uint64   `json:"g,omitempty"`
	Sum        uint64   `json:"s"`
	Hosts      []uint32 `json:"h,omitempty"`
	All        bool     `json:"a,omitempty"`
	Revision   uint64   `json:"r"`
}

type goneLine struct {
	Key       string   `json:"k"`
	Revision  uint64   `json:"r"`
	Operation cloud.ID `json:"op,omitempty"`
	Hosts     []uint32 `json:"h,omitempty"`
	All       bool     `json:"a,omitempty"`
	Removed   bool     `json:"x,omitempty"` // nobody holds it any more
}

// past is what the ledger tells.
type past struct {
	zone     cloud.ID
	epoch    uint64
	floor    uint64
	revision uint64
	items    map[wire.Key]*compile.Entry
	graves   []grave
	intents  map[cloud.ID][]store.Intent
}

// openLedger reads the ledger at path and goes on with it. Lines that are torn
// or were written by another version are passed over.
func openLedger(path string) (*ledger, past, error) {
	p := past{items: map[wire.Key]*compile.Entry{}, intents: map[cloud.ID][]store.Intent{}}
	if path == "" {
		return nil, p, nil
	}
	if err := p.read(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, p, fmt.Errorf("open ledger: %w", err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, p, fmt.Errorf("open ledger: %w", err)
	}
	return &ledger{path: path, file: f}, p, nil
}

func (p *past) read(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	lines := bufio.NewReader(f)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return nil // the end, or a last line that was cut short
		}
		sum, text, ok := bytes.Cut(bytes.TrimSuffix(line, []byte("\n")), []byte(" "))
		var r record
		if !ok || string(sum) != checksum(text) || json.Unmarshal(text, &r) != nil {
			continue
		}
		p.take(r)
	}
}

func (p *past) take(r record) {
	if r.Zone != "" {
		*p = past{
			zone: r.Zone, epoch: r.Epoch, floor: r.Floor,
			items: map[wire.Key]*compile.Entry{}, intents: map[cloud.ID][]store.Intent{},
		}
	}
	p.revision = r.Revision
	maps.Copy(p.intents, r.Intents)
	for _, line := range r.Gone {
		key, err := parseKey(line.Key)
		if err != nil {
			continue
		}
		if line.Removed {
			delete(p.items, key)
		}
		if line.All || len(line.Hosts) > 0 {
			p.graves = append(p.graves, grave{key, line.Revision, line.Operation, line.Hosts, line.All})
		}
	}
	for _, line := range r.Set {
		key, err := parseKey(line.Key)
		owner, err2 := compile.ParseOwner(line.Owner)
		if err == nil && err2 == nil {
			p.items[key] = &compile.Entry{
				Key: key, Owner: owner, Generation: line.Generation, Sum: line.Sum,
				Hosts: line.Hosts, All: line.All, Revision: line.Revision,
			}
		}
	}
}

func parseKey(s string) (wire.Key, error) {
	for i := range len(s) {
		if s[i] == '/' {
			kind, err := wire.ParseKind(s[:i])
			return wire.Key{Kind: kind, ID: s[i+1:]}, err
		}
	}
	return wire.Key{}, fmt.Errorf("key %q is not known", s)
}

func checksum(text []byte) string {
	sum := crc32.ChecksumIEEE(text)
	return hex.EncodeToString([]byte{byte(sum >> 24), byte(sum >> 16), byte(sum >> 8), byte(sum)})
}

func lineOf(e *compile.Entry) setLine {
	return setLine{e.Key.String(), e.Owner.String(), e.Generation, e.Sum, e.Hosts, e.All, e.Revision}
}

// note writes down a batch.
func (l *ledger) note(r compile.Result, intents map[cloud.ID][]store.Intent) error {
	if l == nil {
		return nil
	}
	rec := record{Revision: r.Revision, Intents: intents}
	for _, step := range r.Steps {
		g, buried := graveOf(step, r.Revision)
		if buried || step.After == nil {
			rec.Gone = append(rec.Gone, goneLine{step.Key().String(), r.Revision, step.Operation(), g.Hosts, g.All, step.After == nil})
		}
		if step.After != nil {
			rec.Set = append(rec.Set, lineOf(step.After))
		}
	}
	n, err := write(l.file, rec)
	l.size += n
	if err != nil {
		return fmt.Errorf("write ledger: %w", err)
	}
	return nil
}

// full says that it is time to write the ledger anew.
func (l *ledger) full() bool { return l != nil && l.size > 1<<20 && l.size > 4*l.base }

// renew replaces the ledger by one record of the whole.
func (l *ledger) renew(p past, items iter.Seq[*compile.Entry]) error {
	if l == nil {
		return nil
	}
	rec := record{Zone: p.zone, Epoch: p.epoch, Floor: p.floor, Revision: p.revision, Intents: p.intents}
	for e := range items {
		rec.Set = append(rec.Set, lineOf(e))
	}
	for _, g := range p.graves {
		rec.Gone = append(rec.Gone, goneLine{g.Key.String(), g.Revision, g.Operation, g.Hosts, g.All, false})
	}
	f, err := os.CreateTemp(filepath.Dir(l.path), ".ledger-*")
	if err != nil {
		return fmt.Errorf("renew ledger: %w", err)
	}
	defer os.Remove(f.Name()) // no such file once it was renamed
	n, err := write(f, rec)
	if err == nil {
		err = os.Rename(f.Name(), l.path)
	}
	if err != nil {
		f.Close()
		return fmt.Errorf("renew ledger: %w", err)
	}
	l.file.Close()
	l.file, l.size, l.base = f, n, n
	return nil
}

func (l *ledger) close() {
	if l != nil {
		l.file.Close()
	}
}

func write(f *os.File, r record) (int64, error) {
	text, err := json.Marshal(r)
	if err != nil {
		return 0, err
	}
	line := append([]byte(checksum(text)+" "), text...)
	n, err := f.Write(append(line, '\n'))
	return int64(n), err
}
