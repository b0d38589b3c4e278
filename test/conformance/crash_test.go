// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	v3 "github.com/exoscale/egoscale/v3"
	"github.com/exoscale/egoscale/v3/credentials"

	capi "cairn/cloud/api"
)

// daemon is cairnd as a process, on a socket that outlives it: a client that is
// cut off finds its successor behind the same address.
type daemon struct {
	t      *testing.T
	binary string
	state  string
	socket *os.File
	client *v3.Client

	stop context.CancelFunc
	ends chan error // of the supervisor
	dead int        // processes that were killed; read after stop
}

func buildCairnd(t *testing.T) string {
	t.Helper()
	// Reading the sources tells go test that its cached result depends on them.
	sources, err := filepath.Glob("../../cmd/cairnd/*.go")
	if err != nil || len(sources) == 0 {
		t.Fatalf("no sources of cairnd: %v", err)
	}
	for _, path := range sources {
		if _, err := os.ReadFile(path); err != nil {
			t.Fatal(err)
		}
	}
	binary := filepath.Join(t.TempDir(), "cairnd")
	build := exec.Command("go", "build", "-o", binary, "cairn/cmd/cairnd")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build cairnd: %v: %s", err, out)
	}
	return binary
}

// newDaemon initialises a zone, starts cairnd so that it kills itself after its
// nth commit (never if n is 0), and starts it anew as often as it dies.
func newDaemon(t *testing.T, binary string, n int) *daemon {
	t.Helper()
	d := &daemon{t: t, binary: binary, state: t.TempDir(), ends: make(chan error, 1)}
	out, err := exec.Command(binary, "init", "--state", d.state).Output()
	var key struct{ Key, Secret string }
	if err != nil || json.Unmarshal(out, &key) != nil {
		t.Fatalf("init: %v: %s", err, out)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() // the file below keeps the socket
	if d.socket, err = l.(*net.TCPListener).File(); err != nil {
		t.Fatal(err)
	}
	d.client, err = v3.NewClient(credentials.NewStaticCredentials(key.Key, key.Secret),
		v3.ClientOptWithEndpoint(v3.Endpoint(capi.Endpoint("http://"+l.Addr().String()))))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	d.stop = stop
	go func() { d.ends <- d.supervise(ctx, n) }()
	t.Cleanup(func() { d.end() })
	return d
}

func (d *daemon) supervise(ctx context.Context, n int) error {
	for {
		c := exec.CommandContext(ctx, d.binary, "run", "--state", d.state)
		c.Cancel = func() error { return c.Process.Signal(syscall.SIGTERM) }
		c.Env = append(os.Environ(), "LISTEN_FDS=1", "CAIRN_COMMIT_COUNT="+filepath.Join(d.state, "commits"),
			"CAIRN_CRASH_AFTER_COMMIT="+strconv.Itoa(n))
		c.ExtraFiles = []*os.File{d.socket}
		out, err := c.CombinedOutput()
		if ctx.Err() != nil {
			return nil
		}
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			return fmt.Errorf("cairnd ended by itself: %v: %s", err, out)
		}
		d.dead++
		n = 0
	}
}

// end stops cairnd and reports how often it was killed before.
func (d *daemon) end() (killed int) {
	d.stop()
	if err, ok := <-d.ends; ok {
		close(d.ends)
		if err != nil {
			d.t.Error(err)
		}
		d.socket.Close()
	}
	return d.dead
}

// hostless is a story that needs no host. It returns what is left at its end.
func hostless(t *testing.T, c *v3.Client) string {
	t.Helper()
	s := &story{t: t, Client: c, ctx: t.Context()}
	s.done(s.RegisterSSHKey(s.ctx, v3.RegisterSSHKeyRequest{Name: "me", PublicKey: publicKey}))
	s.done(s.RegisterSSHKey(s.ctx, v3.RegisterSSHKeyRequest{Name: "you", PublicKey: publicKey}))
	group := s.done(s.CreateAntiAffinityGroup(s.ctx, v3.CreateAntiAffinityGroupRequest{Name: "apart"}))
	sg := s.securityGroup() // a group, two rules, one of them removed
	s.done(s.CreateSecurityGroup(s.ctx, v3.CreateSecurityGroupRequest{Name: "db"}))
	s.done(s.DeleteSecurityGroup(s.ctx, sg))
	s.done(s.DeleteAntiAffinityGroup(s.ctx, group))
	s.done(s.DeleteSSHKey(s.ctx, "me"))

	var left []string
	for _, k := range must(s.ListSSHKeys(s.ctx))(t).SSHKeys {
		left = append(left, "key "+k.Name)
	}
	for _, g := range must(s.ListAntiAffinityGroups(s.ctx))(t).AntiAffinityGroups {
		left = append(left, "anti-affinity group "+g.Name)
	}
	for _, g := range must(s.ListSecurityGroups(s.ctx))(t).SecurityGroups {
		left = append(left, fmt.Sprintf("security group %s with %d rules", g.Name, len(g.Rules)))
	}
	return strings.Join(left, "; ")
}

// TestCrashAtEveryCommit: the story runs once to count its commits, then once a
// commit with the process killed right after it, before it can answer. The
// client does what it always does, and the end is the same.
func TestCrashAtEveryCommit(t *testing.T) {
	binary := buildCairnd(t)
	d := newDaemon(t, binary, 0)
	want := hostless(t, d.client)
	if killed := d.end(); killed != 0 {
		t.Fatalf("killed %d times without being asked to", killed)
	}
	text, err := os.ReadFile(filepath.Join(d.state, "commits"))
	commits, err2 := strconv.Atoi(string(text))
	if err != nil || err2 != nil || commits < 9 {
		t.Fatalf("%d commits: %v %v", commits, err, err2)
	}
	if want != "key you; security group default with 0 rules; security group db with 0 rules" {
		t.Fatalf("left: %s", want)
	}
	for n := 1; n <= commits; n++ {
		t.Run(fmt.Sprint("commit ", n), func(t *testing.T) {
			t.Parallel()
			d := newDaemon(t, binary, n)
			if got := hostless(t, d.client); got != want {
				t.Errorf("left: %s\nwant: %s", got, want)
			}
			if killed := d.end(); killed != 1 {
				t.Errorf("killed %d times", killed)
			}
		})
	}
}
