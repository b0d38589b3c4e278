// SPDX-License-Identifier: Apache-2.0

//go:build lab

package store

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"
)

const postgresBin = "/usr/lib/postgresql/15/bin"

// TestPostgres runs the suite, and two replicas at once, on a cluster of its
// own that listens on a unix socket only and is gone afterwards.
func TestPostgres(t *testing.T) {
	socket := startPostgres(t)
	for _, c := range suite {
		t.Run(c.name, func(t *testing.T) {
			clock := newClock()
			s := openPostgres(t, socket, "t_"+c.name, clock)
			if _, err := s.Init(t.Context(), "ch-gva-2", nil); err != nil {
				t.Fatal(err)
			}
			c.test(t, s, clock)
		})
	}
	t.Run("two replicas", func(t *testing.T) { testTwoReplicas(t, socket) })
}

// testTwoReplicas: two processes decide at the same time; neither decision is
// made on what the other has changed meanwhile.
func testTwoReplicas(t *testing.T, socket string) {
	const each = 30
	clock := newClock()
	a := openPostgres(t, socket, "replicas", clock)
	if _, err := a.Init(t.Context(), "ch-gva-2", nil); err != nil {
		t.Fatal(err)
	}
	b := openPostgres(t, socket, "replicas", clock)
	counter := group("counter")
	write(t, a, func(tx *Tx) error { return Put(tx, "", counter) })
	var wg sync.WaitGroup
	for _, s := range []*Store{a, b} {
		wg.Go(func() {
			for range each {
				_, err := s.Write(t.Context(), func(tx *Tx) error {
					d, err := Get[AntiAffinityDoc](tx, org, counter.ID)
					if err != nil {
						return err
					}
					d.Generation++
					return Put(tx, "", d)
				})
				if err != nil {
					t.Errorf("count: %v", err)
				}
			}
		})
	}
	wg.Wait()
	read(t, a, func(tx *Tx) error {
		d, err := Get[AntiAffinityDoc](tx, org, counter.ID)
		if d.Generation != 1+2*each || d.Revision != 1+2*each {
			t.Errorf("%d counts at revision %d, want %d of each", d.Generation, d.Revision, 1+2*each)
		}
		return err
	})
}

func openPostgres(t *testing.T, socket, database string, clock *clock) *Store {
	t.Helper()
	exec.Command(filepath.Join(postgresBin, "createdb"), "-h", socket, "-U", "postgres", database).Run() // may be there
	dsn := fmt.Sprintf("postgres:///%s?%s", database, url.Values{"host": {socket}, "user": {"postgres"}}.Encode())
	s, err := Open(t.Context(), dsn, WithClock(clock.now))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// startPostgres makes a cluster as the user postgres, since PostgreSQL refuses
// to run as root, and returns the folder of its socket.
func startPostgres(t *testing.T) string {
	if _, err := os.Stat(filepath.Join(postgresBin, "postgres")); err != nil {
		t.Skipf("PostgreSQL 15 is missing: %v", err)
	}
	if os.Getuid() != 0 {
		t.Skip("root is missing: the cluster runs as the user postgres")
	}
	account, err := user.Lookup("postgres")
	if err != nil {
		t.Skipf("the user postgres is missing: %v", err)
	}
	uid, _ := strconv.Atoi(account.Uid)
	gid, _ := strconv.Atoi(account.Gid)
	dir, err := os.MkdirTemp("", "cairn-pg-") // short: a socket's path has 107 octets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chown(dir, uid, gid); err != nil {
		t.Fatal(err)
	}
	command := func(ctx context.Context, name string, args ...string) *exec.Cmd {
		c := exec.CommandContext(ctx, filepath.Join(postgresBin, name), args...)
		c.Dir = dir
		c.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C"}
		c.SysProcAttr = &syscall.SysProcAttr{
			Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)},
			Pdeathsig:  syscall.SIGKILL,
		}
		return c
	}
	data := filepath.Join(dir, "data")
	if out, err := command(t.Context(), "initdb", "-D", data, "-U", "postgres", "-A", "trust", "--no-sync").CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v: %s", err, out)
	}
	// Shared memory in the folder goes with it, also when the server is killed.
	server := command(context.Background(), "postgres", "-D", data, "-k", dir, "-h", "", "-F", "-c", "dynamic_shared_memory_type=mmap")
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		server.Process.Signal(syscall.SIGINT) // fast shutdown
		server.Wait()
	})
	deadline := time.Now().Add(20 * time.Second)
	for command(t.Context(), "pg_isready", "-h", dir).Run() != nil {
		if time.Now().After(deadline) {
			t.Fatal("PostgreSQL does not get ready")
		}
	}
	return dir
}
