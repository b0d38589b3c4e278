// SPDX-License-Identifier: Apache-2.0

//go:build lab

package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	v3 "github.com/exoscale/egoscale/v3"
	"github.com/exoscale/egoscale/v3/credentials"

	"cairn/controlplane/store"
	"cairn/test/lab"
	"cairn/test/story"
)

const (
	samples    = 6                // crash points of a run that does not try all
	enough     = 60 * time.Second // after that it begins no further round
	leastStory = 30               // commits; a story with fewer has lost a part
	patience   = time.Minute      // of a round: the shortest deadline of an operation
	soon       = 20 * time.Second // what hosts and router need after an operation has ended
)

// TestEveryCommitIsACrashPoint plays one story again and again in one lab:
// first undisturbed, to count its commits, then with cairnd killed right after
// one of them, before anybody hears of it, and started again. The customer's
// client repeats what got no answer, as it does by itself. Each time the story
// goes through, and leaves nothing.
//
// A run tries every kth commit from a random one on; CAIRN_CRASH_SEED repeats a
// run, CAIRN_CRASH_ALL=1 tries all, CAIRN_CRASH_AT=n the nth alone, or
// with n+m that and then the mth of the process that takes over.
func TestEveryCommitIsACrashPoint(t *testing.T) {
	t.Parallel()
	begin := time.Now()
	c := newCampaign(t, lab.Config{})
	undisturbed := c.mustPlay(point{})
	if undisturbed.deaths > 0 || undisturbed.commits < leastStory {
		t.Fatalf("%d deaths, %d commits in a story that nobody disturbs", undisturbed.deaths, undisturbed.commits)
	}
	t.Logf("%d commits, undisturbed in %s: %s", undisturbed.commits, undisturbed.took.Round(time.Millisecond), undisturbed.where())

	points, how := choose(t, undisturbed.commits)
	played, tried, restarts, slowest := 0, 0, 0, time.Duration(0)
	for _, p := range points {
		if time.Since(begin) > enough && os.Getenv("CAIRN_CRASH_ALL") == "" {
			t.Logf("time is up after %d of %d rounds", played, len(points))
			break
		}
		played++
		r := c.mustPlay(p)
		if r.deaths == 0 {
			t.Logf("commit %d: the story was over after %d", p.after, r.commits)
			continue
		}
		t.Logf("%s, during %q: %s, of which %s", p, r.died, r.took.Round(time.Millisecond), r.longest)
		if other := r.otherThan(undisturbed); other != "" {
			t.Errorf("the story went otherwise: %s", other)
		}
		tried++
		restarts += r.deaths
		slowest = max(slowest, r.took)
	}
	if 3*tried < 2*played {
		t.Errorf("cairnd died in %d of %d rounds", tried, played)
	}
	t.Logf("%d commits, %d crash points tried (%s), %d restarts, slowest round %s, %s in all",
		undisturbed.commits, tried, how, restarts, slowest.Round(time.Millisecond), time.Since(begin).Round(time.Millisecond))
}

// TestCrashesThatLoseOrRepeatAWriteAreNoticed is the negative control. A
// request that comes again under another signature is another one, and is seen;
// a control plane that comes back without what it has acknowledged does not get
// through the round.
func TestCrashesThatLoseOrRepeatAWriteAreNoticed(t *testing.T) {
	t.Parallel()
	c := newCampaign(t, lab.Config{Hypervisors: 1})
	undisturbed := c.mustPlay(point{})
	r, err := c.play(point{}, func(r *round) error {
		if r.step != "pool" {
			return nil
		}
		err := r.Admit(r.group, v3.AddRuleToSecurityGroupRequestProtocolTCP, 80) // as the step before did
		if !errors.Is(err, v3.ErrConflict) {
			return fmt.Errorf("the same rule again: %w", err)
		}
		return nil
	})
	must(t, "a round with a request that is sent anew", err)
	if other := r.otherThan(undisturbed); !strings.Contains(other, "1 × add-rule-to-security-group 409") {
		t.Errorf("a request that was sent anew is not noticed: %q", other)
	}

	var backup map[string][]byte
	_, err = c.play(point{}, func(r *round) error {
		switch r.step {
		case "pool":
			backup = c.files()
		case "service":
			c.dieAndForget(backup)
		}
		return nil
	})
	if !errors.Is(err, v3.ErrNotFound) {
		t.Errorf("a load balancer that was forgotten is not noticed: %v", err)
	}
	t.Logf("noticed: %v", err)
}

// point is where a round is disturbed: after a commit of the story, 0 for not
// at all, and then again after a commit of the process that took over.
type point struct{ after, again int }

func (p point) String() string {
	if p.again > 0 {
		return fmt.Sprintf("killed after commit %d, and after %d more", p.after, p.again)
	}
	return fmt.Sprintf("killed after commit %d", p.after)
}

// choose says where to crash, and how that was chosen.
func choose(t *testing.T, commits int) (points []point, how string) {
	t.Helper()
	every, offset, last := 1, 0, commits+4 // rounds differ by a few
	seed := rand.Uint64N(1_000_000)
	if text := os.Getenv("CAIRN_CRASH_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("CAIRN_CRASH_SEED: %v", err)
		}
	}
	if text := os.Getenv("CAIRN_CRASH_AT"); text != "" {
		first, second, twice := strings.Cut(text, "+")
		if !twice {
			second = "0"
		}
		after, err1 := strconv.Atoi(first)
		again, err2 := strconv.Atoi(second)
		must(t, "CAIRN_CRASH_AT", errors.Join(err1, err2))
		return []point{{after, again}}, "CAIRN_CRASH_AT=" + text
	}
	random := rand.New(rand.NewPCG(seed, 0))
	if os.Getenv("CAIRN_CRASH_ALL") == "" {
		every = max(1, (commits+samples-1)/samples)
		offset, last = random.IntN(every), commits
	}
	for n := 1 + offset; n <= last; n += every {
		p := point{after: n}
		if random.IntN(5) == 0 {
			p.again = 1 + random.IntN(6)
		}
		points = append(points, p)
	}
	random.Shuffle(len(points), func(i, j int) { points[i], points[j] = points[j], points[i] })
	how = fmt.Sprintf("every %d. from %d, CAIRN_CRASH_SEED=%d", every, 1+offset, seed)
	t.Logf("crash points: %s", how)
	return points, how
}

// campaign is a lab whose cairnd dies at a commit and is started again at once.
type campaign struct {
	*cloudUnderTest
	ctx    context.Context
	cancel context.CancelCauseFunc

	organisation string
	held         []store.Allocation // by nobody's wish: hosts, and the default group

	mu      sync.Mutex
	lives   int
	life    life   // of the process that runs
	playing *round // nil between rounds
}

// life is one process of cairnd: its commits so far, and that of which it dies.
type life struct{ commits, death string }

func (l life) count() int {
	text, err := os.ReadFile(l.commits)
	if err != nil {
		return 0 // none so far
	}
	n, _ := strconv.Atoi(string(text))
	return n
}

func (l life) dieAt(n int) error {
	if err := os.WriteFile(l.death+".new", []byte(strconv.Itoa(n)), 0o600); err != nil {
		return err
	}
	return os.Rename(l.death+".new", l.death)
}

func newCampaign(t *testing.T, cfg lab.Config) *campaign {
	t.Helper()
	c := &campaign{cloudUnderTest: newCloud(t, cfg)}
	c.ctx, c.cancel = context.WithCancelCause(t.Context())
	c.organisation = c.Credentials().Organization
	customer, err := story.NewCustomer(c.ctx, c.Lab)
	must(t, "customer", err)
	// The client as it comes, which repeats requests that got no answer.
	customer.Client, err = v3.NewClient(credentials.NewStaticCredentials(c.Credentials().Key, c.Credentials().Secret),
		v3.ClientOptWithEndpoint(v3.Endpoint(c.API())))
	must(t, "client", err)
	c.Customer = customer

	// Freed addresses rest for minutes, so that a long campaign needs many.
	must(t, "add addresses", c.store(func(s *store.Store) error {
		_, err := s.Write(c.ctx, func(tx *store.Tx) error {
			return errors.Join(tx.AddPool(store.AddressInstance, netip.MustParsePrefix("198.18.0.0/17")),
				tx.AddPool(store.AddressVIP, netip.MustParsePrefix("198.18.128.0/17")))
		})
		return err
	}))
	must(t, "kill cairnd", c.Control().Kill())
	must(t, "start cairnd", c.begin(0))
	ended := make(chan struct{})
	go func() { defer close(ended); c.keepAlive() }()
	t.Cleanup(func() { c.cancel(errors.New("the test is over")); <-ended })
	lab.Eventually(t, "a number for each host", soon, func() error {
		return c.read(func(tx *store.Tx) (err error) {
			c.held, err = tx.Allocations()
			hosts := 0
			for _, a := range c.held {
				if a.Kind == store.NumberHost {
					hosts++
				}
			}
			if err == nil && hosts < c.Hypervisors() {
				err = fmt.Errorf("%d", hosts)
			}
			return err
		})
	})
	return c
}

// begin starts a process, which dies of its nth commit if n is not 0.
func (c *campaign) begin(n int) error {
	c.lives++
	path := filepath.Join(c.Lab.Folder(), fmt.Sprintf("life-%d-", c.lives))
	c.life = life{commits: path + "commits", death: path + "death"}
	if n > 0 {
		if err := c.life.dieAt(n); err != nil {
			return err
		}
	}
	return c.Control().StartWith("CAIRN_COMMIT_COUNT="+c.life.commits, "CAIRN_CRASH_FILE="+c.life.death)
}

// keepAlive starts cairnd anew as often as it is killed, until the test is over
// or it ends otherwise.
func (c *campaign) keepAlive() {
	for {
		err := c.Control().Wait(c.ctx)
		if c.ctx.Err() != nil {
			return
		}
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			c.cancel(fmt.Errorf("cairnd ended by itself: %v: %s", err, c.Control().Tail(5)))
			return
		}
		if err := c.revive(); err != nil {
			c.cancel(fmt.Errorf("start cairnd again: %w", err))
			return
		}
	}
}

func (c *campaign) revive() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	r, n := c.playing, 0
	if r != nil {
		r.commits += c.life.count() - r.base
		r.base = 0
		if r.deaths++; r.deaths == 1 {
			r.died, n = r.step, r.again
		}
	}
	return c.begin(n)
}

// mustPlay plays a round that has to go through.
func (c *campaign) mustPlay(p point) *round {
	c.Helper()
	r, err := c.play(p, nil)
	if err != nil {
		c.Fatalf("%s, during %q: %v", p, r.died, err)
	}
	return r
}

// play goes through the story once. Before it looks at what a step has brought
// about it calls the given function, if any, with the step's name.
func (c *campaign) play(p point, looking func(*round) error) (*round, error) {
	r := &round{campaign: c, point: p, looking: looking, began: time.Now(), marks: map[string]int{}}
	giveUp := time.AfterFunc(patience, func() { c.cancel(fmt.Errorf("the round is not over after %s", patience)) })
	defer giveUp.Stop()
	c.mu.Lock()
	c.playing, r.base = r, c.life.count()
	var err error
	if p.after > 0 {
		err = c.life.dieAt(r.base + p.after)
	}
	c.mu.Unlock()
	for _, s := range r.steps() {
		if err == nil {
			r.enter(s.name)
			begin := time.Now()
			err = s.do()
			r.spent(s.name, time.Since(begin))
		}
		if err != nil {
			err = fmt.Errorf("%s: %w", s.name, err)
			break
		}
	}
	if cause := context.Cause(c.ctx); cause != nil && err != nil {
		err = fmt.Errorf("%w: %w", cause, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.playing = nil
	os.Remove(c.life.death)
	r.commits += c.life.count() - r.base
	r.took = time.Since(r.began)
	return r, err
}

// store gives do the store of the zone. It is opened for the moment only, so
// that cairnd is the last to close its file whenever it is killed.
func (c *campaign) store(do func(*store.Store) error) error {
	s, err := store.Open(c.ctx, c.database())
	if err != nil {
		return err
	}
	return errors.Join(do(s), s.Close())
}

func (c *campaign) database() string { return filepath.Join(c.ControlState(), "cairn.db") }

func (c *campaign) read(do func(*store.Tx) error) error {
	return c.store(func(s *store.Store) error { return s.Read(c.ctx, do) })
}

// files reads the database as it is.
func (c *campaign) files() map[string][]byte {
	c.Helper()
	out := map[string][]byte{}
	for _, suffix := range []string{"", "-wal"} {
		b, err := os.ReadFile(c.database() + suffix)
		must(c.T, "read the database", err)
		out[suffix] = b
	}
	return out
}

// dieAndForget kills cairnd and puts an older database in the place of its own
// before it is started again.
func (c *campaign) dieAndForget(older map[string][]byte) {
	c.Helper()
	c.mu.Lock() // keepAlive waits for it
	defer c.mu.Unlock()
	must(c.T, "kill cairnd", c.Control().Kill())
	must(c.T, "remove the index", os.Remove(c.database()+"-shm"))
	for suffix, content := range older {
		must(c.T, "put the older database back", os.WriteFile(c.database()+suffix, content, 0o600))
	}
}

// where lists how many commits each step of the story took.
func (r *round) where() string {
	var out []string
	steps := r.steps()
	for i, s := range steps {
		end := r.commits
		if i+1 < len(steps) {
			end = r.marks[steps[i+1].name]
		}
		out = append(out, fmt.Sprintf("%s %d", s.name, end-r.marks[s.name]))
	}
	return strings.Join(slices.DeleteFunc(out, func(s string) bool { return strings.HasSuffix(s, " 0") }), ", ")
}
