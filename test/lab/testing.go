// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// TB is what New needs of a *testing.T, so that programs that serve no tests do
// not carry package testing.
type TB interface {
	Helper()
	Name() string
	Context() context.Context
	Cleanup(func())
	Failed() bool
	Logf(format string, args ...any)
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// made counts the labs of this process; current are those that are up.
var (
	made    atomic.Int32
	current sync.Map // *Lab → nil
	prepare sync.Once
)

// New brings a lab up for a test and takes it down with it; the daemons' last
// lines are logged when the test has failed. The commands are built first,
// into the module's bin folder, unless CAIRN_BIN names a folder with them. A lab
// also ends when the test is interrupted; one whose test was killed is ended by
// the next New, or by `cairn lab down --stale`.
func New(t TB, cfg Config) *Lab {
	t.Helper()
	prepare.Do(func() {
		if err := DownStale(); err != nil {
			t.Logf("%v", err)
		}
		go downWhenInterrupted()
	})
	if cfg.Name == "" {
		cfg.Name = fmt.Sprintf("clab-%d-%d", os.Getpid(), made.Add(1))
	}
	if cfg.Bin == "" && !cfg.Bare {
		bin, err := commands()
		if err != nil {
			t.Fatalf("build the commands: %v", err)
		}
		cfg.Bin = bin
	}
	self, err := identify(os.Getpid())
	if err != nil {
		t.Fatalf("identify this test: %v", err)
	}
	cfg.owner = &self
	if cfg.Progress == nil {
		cfg.Progress = func(s Took) { t.Logf("lab: %-26s %6.2f s", s.Step, s.Time.Seconds()) }
	}
	l, err := Up(t.Context(), cfg)
	if err != nil {
		t.Fatalf("%v", err)
	}
	current.Store(l, nil)
	t.Cleanup(func() {
		if t.Failed() {
			l.dump(t)
		}
		if err := l.Down(); err != nil {
			t.Errorf("%v", err)
		}
		current.Delete(l)
		if left := Left(l.Name()); len(left) != 0 {
			t.Errorf("left behind: %s", strings.Join(left, ", "))
		}
	})
	return l
}

// Eventually fails the test unless cond returns nil within the time.
func Eventually(t TB, what string, timeout time.Duration, cond func() error) {
	t.Helper()
	if err := WaitFor(t.Context(), what, timeout, cond); err != nil {
		t.Fatalf("%v", err)
	}
}

func (l *Lab) dump(t TB) {
	t.Helper()
	for _, d := range l.Daemons() {
		alive := "runs"
		if !d.Alive() {
			alive = "has ended"
		}
		t.Logf("-- %s %s, its log ends with:\n%s", d.Name(), alive, d.Tail(30))
	}
}

// commands builds our programs; it costs a second when nothing has changed.
var commands = sync.OnceValues(func() (string, error) {
	if bin := os.Getenv("CAIRN_BIN"); bin != "" {
		return filepath.Abs(bin)
	}
	out, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return "", err
	}
	root := filepath.Dir(strings.TrimSpace(string(out)))
	bin := filepath.Join(root, "bin")
	cmd := exec.Command("go", "build", "-o", bin+"/", "./cmd/...")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w\n%s", err, out)
	}
	return bin, nil
})

func downWhenInterrupted() {
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt, syscall.SIGTERM)
	<-interrupted
	current.Range(func(l, _ any) bool {
		if err := l.(*Lab).Down(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		return true
	})
	os.Exit(130)
}
