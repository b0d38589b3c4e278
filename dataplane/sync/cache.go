// SPDX-License-Identifier: Apache-2.0

package sync

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"cairn/cloud/wire"
	"cairn/dataplane/table"
)

// cacheFile holds one generation of the desired state; cacheMagic is its format.
const (
	cacheFile  = "desired"
	cacheMagic = "cairn desired 1\n"
)

// ErrCorrupt is the error of a cache that cannot be trusted.
var ErrCorrupt = errors.New("the cache is corrupt")

// Cache keeps the last good state on disk. It is written behind: the mark in
// the maps is what counts, and a cache before it is brought up to date by the
// control plane before anything of it is programmed.
type Cache struct {
	path string

	mu   sync.Mutex
	next *table.View
	kick chan struct{}
}

// NewCache in a folder.
func NewCache(folder string) *Cache {
	return &Cache{path: filepath.Join(folder, cacheFile), kick: make(chan struct{}, 1)}
}

// Offer a view that was programmed. Only the last one offered is written.
func (c *Cache) Offer(v table.View) {
	c.mu.Lock()
	c.next = &v
	c.mu.Unlock()
	select {
	case c.kick <- struct{}{}:
	default:
	}
}

// Run writes what is offered until ctx ends, and then what is left. Between two
// writes it pauses.
func (c *Cache) Run(ctx context.Context, pause time.Duration, log func(error)) {
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-c.kick:
			if err := c.flush(); err != nil {
				log(err)
			}
			select {
			case <-ctx.Done():
			case <-time.After(pause):
			}
		}
	}
	if err := c.flush(); err != nil {
		log(err)
	}
}

func (c *Cache) flush() error {
	c.mu.Lock()
	v := c.next
	c.next = nil
	c.mu.Unlock()
	if v == nil {
		return nil
	}
	return c.write(*v)
}

func (c *Cache) write(v table.View) error {
	var b bytes.Buffer
	b.WriteString(cacheMagic)
	number(&b, v.Mark().Epoch, v.Mark().Revision)
	for _, kind := range wire.Kinds() {
		for row := range v.Rows(kind) {
			number(&b, uint64(kind), row.Generation, uint64(len(row.Key.ID)), uint64(len(row.Body)))
			b.WriteString(row.Key.ID)
			b.Write(row.Body)
		}
	}
	sum := sha256.Sum256(b.Bytes())
	b.Write(sum[:])
	if err := replace(c.path, b.Bytes()); err != nil {
		return fmt.Errorf("write cache: %w", err)
	}
	return nil
}

func number(b *bytes.Buffer, values ...uint64) {
	for _, v := range values {
		b.Write(binary.AppendUvarint(nil, v))
	}
}

// replace leaves the old file or the new one, never half of it.
func replace(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".desired-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // not there any more once it was renamed
	_, err = f.Write(data)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// Load reads the cache. The error is fs.ErrNotExist if there is none.
func (c *Cache) Load() (table.Mark, []table.Upsert, error) {
	data, err := os.ReadFile(c.path)
	if err != nil {
		return table.Mark{}, nil, fmt.Errorf("load cache: %w", err)
	}
	at, ups, err := decode(data)
	if err != nil {
		return table.Mark{}, nil, fmt.Errorf("load cache: %w", err)
	}
	return at, ups, nil
}

func decode(data []byte) (at table.Mark, ups []table.Upsert, err error) {
	body := len(data) - sha256.Size
	if body < len(cacheMagic) || string(data[:len(cacheMagic)]) != cacheMagic {
		return at, nil, ErrCorrupt
	}
	if sum := sha256.Sum256(data[:body]); !bytes.Equal(sum[:], data[body:]) {
		return at, nil, ErrCorrupt
	}
	r := bytes.NewReader(data[len(cacheMagic):body])
	read := func() uint64 {
		v, e := binary.ReadUvarint(r)
		err = errors.Join(err, e)
		return v
	}
	take := func(n uint64) []byte {
		if n > uint64(r.Len()) {
			err = errors.Join(err, io.ErrUnexpectedEOF)
			return nil
		}
		b := make([]byte, n)
		_, e := io.ReadFull(r, b)
		err = errors.Join(err, e)
		return b
	}
	at.Epoch, at.Revision = read(), read()
	for err == nil && r.Len() > 0 {
		kind, generation, key, body := read(), read(), read(), read()
		ups = append(ups, table.Upsert{
			Key: wire.Key{Kind: wire.Kind(kind), ID: string(take(key))}, Generation: generation, Body: take(body),
		})
	}
	if err != nil {
		return table.Mark{}, nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return at, ups, nil
}
