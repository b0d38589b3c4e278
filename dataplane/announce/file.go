// SPDX-License-Identifier: Apache-2.0

package announce

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// ErrCorrupt is the error of a file that exists but is not whole, or not ours:
// the reader keeps what it had.
var ErrCorrupt = errors.New("announcement file is corrupt")

// maxFile bounds what a reader loads: 64 MiB hold some 300,000 prefixes.
const maxFile = 64 << 20

// version of the format. A speaker refuses one that it does not know, and keeps
// what it had.
const version = 1

// file is the envelope. The checksum is over the bytes of Set as written, so it
// holds however a later version spells them.
type file struct {
	Version int             `json:"version"`
	SHA256  string          `json:"sha256"`
	Set     json.RawMessage `json:"set"`
}

// Write replaces the file at path by set, atomically and durably: a reader sees
// the old file or the new one, also after a power cut. The entries are sorted
// first. A set that no speaker could use is refused. If it dies half-way a file
// "path.new" may be left, which the next Write replaces.
func Write(path string, set Set) error {
	set.Wanted = append([]Wanted{}, set.Wanted...)
	set.sort()
	if err := set.Validate(); err != nil {
		return fmt.Errorf("write announcements: %w", err)
	}
	data, err := encode(set)
	if err != nil {
		return fmt.Errorf("write announcements: %w", err)
	}
	if err := replace(path, data); err != nil {
		return fmt.Errorf("write announcements: %w", err)
	}
	return nil
}

func encode(set Set) ([]byte, error) {
	body, err := json.Marshal(set)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(body)
	data, err := json.Marshal(file{Version: version, SHA256: hex.EncodeToString(sum[:]), Set: body})
	if err != nil {
		return nil, err
	}
	return append(data, '\n'), nil
}

func replace(path string, data []byte) error {
	temporary := path + ".new"
	f, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o640)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err != nil {
		return err
	}
	if err := os.Rename(temporary, path); err != nil {
		return err
	}
	folder, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}

// Read loads the set at path. The error is fs.ErrNotExist if there is none, and
// ErrCorrupt if what is there cannot be trusted.
func Read(path string) (Set, error) {
	f, err := os.Open(path)
	if err != nil {
		return Set{}, fmt.Errorf("read announcements: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return Set{}, fmt.Errorf("read announcements: %w", err)
	}
	if len(data) > maxFile {
		return Set{}, fmt.Errorf("read announcements: %w: more than %d bytes", ErrCorrupt, maxFile)
	}
	set, err := decode(data)
	if err != nil {
		return Set{}, fmt.Errorf("read announcements: %w: %w", ErrCorrupt, err)
	}
	return set, nil
}

func decode(data []byte) (Set, error) {
	var env file
	if err := json.Unmarshal(data, &env); err != nil {
		return Set{}, err
	}
	if env.Version != version {
		return Set{}, fmt.Errorf("version %d, want %d", env.Version, version)
	}
	sum := sha256.Sum256(env.Set)
	if hex.EncodeToString(sum[:]) != env.SHA256 {
		return Set{}, errors.New("checksum differs")
	}
	var set Set
	dec := json.NewDecoder(bytes.NewReader(env.Set))
	if err := dec.Decode(&set); err != nil {
		return Set{}, err
	}
	return set, set.Validate()
}
