// SPDX-License-Identifier: Apache-2.0

package speaker

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// watch signals when something was renamed into, or written in, the folder of
// path. Signals merge, and may come for other files: whoever receives one looks.
// The file is looked at every Interval anyway, so a lost signal costs only time.
func watch(path string, log *slog.Logger) (changes <-chan struct{}, stop func(), err error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, nil, err
	}
	folder := filepath.Dir(path)
	if err := os.MkdirAll(folder, 0o750); err != nil {
		return nil, nil, errors.Join(err, unix.Close(fd))
	}
	if _, err := unix.InotifyAddWatch(fd, folder, unix.IN_MOVED_TO|unix.IN_CLOSE_WRITE); err != nil {
		return nil, nil, errors.Join(err, unix.Close(fd))
	}
	f := os.NewFile(uintptr(fd), "inotify "+folder)
	signal := make(chan struct{}, 1)
	go func() {
		buf := make([]byte, 64*(unix.SizeofInotifyEvent+unix.NAME_MAX+1))
		for {
			if _, err := f.Read(buf); err != nil {
				if !errors.Is(err, os.ErrClosed) {
					log.Error("watch the announcements; changes are seen later", "err", err)
				}
				return
			}
			select {
			case signal <- struct{}{}:
			default:
			}
		}
	}()
	return signal, func() { f.Close() }, nil
}
