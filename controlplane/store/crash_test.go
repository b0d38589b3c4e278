// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"cairn/cloud"
)

const (
	crashPath   = "CAIRN_TEST_CRASH_STORE" // set in the child only
	crashWrites = 6
)

// TestMain turns the test program into a writer that acknowledges each write
// on its standard output, when it is asked to.
func TestMain(m *testing.M) {
	path := os.Getenv(crashPath)
	if path == "" {
		os.Exit(m.Run())
	}
	if err := writeAndTell(path); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func writeAndTell(path string) error {
	ctx := context.Background()
	s, err := Open(ctx, path)
	if err != nil {
		return err
	}
	defer s.Close()
	if _, err := s.Init(ctx, "ch-gva-2", nil); err != nil {
		return err
	}
	for i := range crashWrites {
		g := group(fmt.Sprint(i))
		_, err := s.Write(ctx, func(tx *Tx) error {
			op := Operation{ID: cloud.NewID(), Org: org, Subject: g.Ref(), State: cloud.OperationPending, Detail: "{}"}
			return errors.Join(tx.AddOperation(op), Put(tx, op.ID, g))
		})
		if err != nil {
			return err
		}
		fmt.Println(g.ID)
	}
	return nil
}

// TestCrashAfterEveryCommit kills a writer right after each of its commits: all
// that it acknowledged is there, whole.
func TestCrashAfterEveryCommit(t *testing.T) {
	for n := 1; ; n++ {
		path := filepath.Join(t.TempDir(), "cairn.db")
		count := filepath.Join(t.TempDir(), "commits")
		child := exec.Command(os.Args[0])
		child.Env = append(os.Environ(), crashPath+"="+path, "CAIRN_COMMIT_COUNT="+count,
			fmt.Sprint("CAIRN_CRASH_AFTER_COMMIT=", n))
		out, err := child.Output()
		var exit *exec.ExitError
		killed := errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL
		if err != nil && !killed {
			t.Fatalf("crash after commit %d: %v: %s", n, err, exit.Stderr)
		}
		acknowledged := strings.Fields(string(out))
		if text, err := os.ReadFile(count); err != nil || killed && string(text) != fmt.Sprint(n) {
			t.Errorf("crash after commit %d: counted %q %v", n, text, err)
		}
		checkAfterCrash(t, n, path, acknowledged)
		if !killed {
			if len(acknowledged) != crashWrites || n != crashWrites+2 { // and one for the zone
				t.Errorf("%d writes acknowledged after %d crashes", len(acknowledged), n-1)
			}
			return
		}
	}
}

func checkAfterCrash(t *testing.T, n int, path string, acknowledged []string) {
	t.Helper()
	s, err := Open(t.Context(), path)
	if err != nil {
		t.Fatalf("crash after commit %d: %v", n, err)
	}
	defer s.Close()
	read(t, s, func(tx *Tx) error {
		rows, err := tx.Rows(KindAntiAffinity, org)
		if err != nil {
			return err
		}
		// One more than was acknowledged may be there: the one it died after.
		if len(rows) < len(acknowledged) || len(rows) > len(acknowledged)+1 {
			t.Errorf("crash after commit %d: %d rows, %d acknowledged", n, len(rows), len(acknowledged))
		}
		for _, id := range acknowledged {
			if _, err := Get[AntiAffinityDoc](tx, org, cloud.ID(id)); err != nil {
				t.Errorf("crash after commit %d: acknowledged and lost: %v", n, err)
			}
		}
		pending, err := tx.Pending(Ref{})
		if err != nil {
			return err
		}
		rev, err := tx.Revision()
		if len(pending) != len(rows) || int(rev) != len(rows) {
			t.Errorf("crash after commit %d: %d rows, %d operations, revision %d: not one transaction",
				n, len(rows), len(pending), rev)
		}
		return err
	})
}
