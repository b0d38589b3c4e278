// SPDX-License-Identifier: Apache-2.0

package speaker

import (
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"cairn/dataplane/announce"
)

// source is the wanted set and where it comes from. Stale beats empty: a file
// that is gone, broken or older than the set in force changes nothing, and the
// last good file is kept as the speaker's own copy for its next start.
type source struct {
	path, copy string
	log        *slog.Logger

	set  announce.Set
	have bool
	last fs.FileInfo // of the file last looked at; nil: there was none
	sourceStatus
}

type sourceStatus struct {
	from      string
	revision  uint64
	complaint string
	refused   uint64
}

func newSource(path, state string, log *slog.Logger) source {
	return source{path: path, copy: filepath.Join(state, "announcements.good"), log: log}
}

// start adopts the copy of an earlier life first, and then the file unless it
// is older or broken.
func (s *source) start() {
	if set, err := announce.Read(s.copy); err == nil {
		s.take(set, s.copy)
	}
	s.poll()
}

// poll looks whether the file is another one than last time and adopts it if it
// may. It reports whether the set in force has changed.
func (s *source) poll() bool {
	info, err := os.Stat(s.path)
	if err != nil {
		s.last = nil
		s.complain(fmt.Sprintf("no announcement file: %v", err), false)
		return false
	}
	if s.last != nil && os.SameFile(s.last, info) && s.last.ModTime().Equal(info.ModTime()) && s.last.Size() == info.Size() {
		return false
	}
	s.last = info
	set, err := announce.Read(s.path)
	if err != nil {
		s.complain(err.Error(), true)
		return false
	}
	if s.have && set.Revision < s.set.Revision {
		s.complain(fmt.Sprintf("revision %d is older than %d in force", set.Revision, s.set.Revision), true)
		return false
	}
	s.complaint = ""
	s.take(set, s.path)
	if err := announce.Write(s.copy, set); err != nil {
		s.log.Error("keep a copy of the announcements", "err", err)
	}
	return true
}

func (s *source) take(set announce.Set, from string) {
	s.set, s.have, s.from, s.revision = set, true, from, set.Revision
	s.log.Info("took the announcements", "from", from, "revision", set.Revision, "wanted", len(set.Wanted))
}

func (s *source) complain(why string, refused bool) {
	if refused {
		s.refused++
	}
	if why != s.complaint {
		s.log.Warn("announcements kept as they were", "reason", why, "revision", s.revision)
	}
	s.complaint = why
}

func (s *source) status() sourceStatus { return s.sourceStatus }
