// SPDX-License-Identifier: Apache-2.0

package zone

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"cairn/controlplane/pki"
	"cairn/controlplane/store"
)

// Folder is a zone's state folder, with its keys, and its database, which is a
// file in the folder unless a postgres:// URL or another path is named.
type Folder struct{ State, Database string }

// Open opens the store, and makes the folder and an empty database if they are
// not there.
func (f Folder) Open(ctx context.Context) (*store.Store, error) {
	if f.State == "" {
		return nil, errors.New("--state is required")
	}
	if err := os.MkdirAll(f.State, 0o700); err != nil {
		return nil, err
	}
	dsn := f.Database
	if dsn == "" {
		dsn = filepath.Join(f.State, "cairn.db")
	}
	return store.Open(ctx, dsn, store.WithLog(slog.Default()))
}

// Lock keeps a second daemon off the folder, until unlock or the end of the
// process. One that was killed has the lock until the last of its threads is
// through with the disk: so long it waits.
func (f Folder) Lock(patience time.Duration) (unlock func(), err error) {
	if f.State == "" {
		return nil, errors.New("--state is required")
	}
	file, err := os.OpenFile(filepath.Join(f.State, "cairnd.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { file.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) || time.Now().After(deadline) {
			file.Close()
			return nil, fmt.Errorf("lock %s: another cairnd runs on it: %w", f.State, err)
		}
	}
}

func (f Folder) rootKey() string { return filepath.Join(f.State, "root.key") }

func (f Folder) issuer(zone string) (*pki.FileIssuer, error) {
	return pki.Open(filepath.Join(f.State, "pki"), zone, time.Now)
}
