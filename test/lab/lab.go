// SPDX-License-Identifier: Apache-2.0

// Package lab owns laboratories: a whole cloud on one machine, in network
// namespaces – clients behind a router that runs BIRD or FRR, hypervisors with
// the built cairn-agent and cairn-bgpd, and cairnd in a namespace of its own –
// and the hands on it: kill a daemon, pull an uplink, dial as a client, read the
// router's routes. It serves tests (New) and `cairn lab` (Command). It never
// looks inside a daemon: it starts programs, and knows of them what the API, the
// sockets and the kernel show. Nothing restarts a daemon but who calls for it.
// Start at Up; what a lab's network is made of is topology.go, how it ends is
// down.go.
package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// Config says what lab is wanted. The zero value of a field means its default.
type Config struct {
	Name        string   // prefix of everything; default "lab"
	Hypervisors int      // default 3
	Clients     int      // default 1
	Router      string   // BIRD (default) or FRR
	Roles       []string // of hypervisor 1, 2, …; default "compute,lb"
	Agent       []string // further flags of every cairn-agent
	Control     []string // further flags of cairnd run
	Bin         string   // folder of the built commands
	Bare        bool     // network and router only, none of our daemons
	Progress    func(Took)

	owner *process // the test that ends it
}

func (c Config) complete() (Config, error) {
	if c.Name == "" {
		c.Name = "lab"
	}
	if c.Hypervisors == 0 {
		c.Hypervisors = 3
	}
	if c.Clients == 0 {
		c.Clients = 1
	}
	if c.Router == "" {
		c.Router = BIRD
	}
	for i := len(c.Roles); i < c.Hypervisors; i++ {
		c.Roles = append(c.Roles[:i:i], "compute,lb")
	}
	if err := checkName(c.Name); err != nil {
		return c, err
	}
	if c.Hypervisors < 0 || c.Hypervisors > maxHypervisors || c.Clients < 0 || c.Clients > maxClients {
		return c, fmt.Errorf("%d hypervisors and %d clients: up to %d and %d", c.Hypervisors, c.Clients, maxHypervisors, maxClients)
	}
	if !c.Bare {
		for _, p := range []string{"cairnd", "cairn-agent", "cairn-bgpd", "cairn-echo"} {
			if _, err := os.Stat(filepath.Join(c.Bin, p)); err != nil {
				return c, fmt.Errorf("find %s: %w", p, err)
			}
		}
	}
	return c, nil
}

// Lab is a laboratory that is up.
type Lab struct {
	cfg Config

	mu       sync.Mutex // guards state and its file
	state    state
	daemons  map[string]*Daemon
	order    []*Daemon
	listener *net.TCPListener // the API's, held so that a restart of cairnd refuses nobody
}

// Up makes a lab and returns when its BGP sessions are established and its
// agents are in step. On any error, and when ctx ends, it takes down what it
// made.
func Up(ctx context.Context, cfg Config) (*Lab, error) {
	cfg, err := cfg.complete()
	if err != nil {
		return nil, fmt.Errorf("lab up: %w", err)
	}
	if os.Geteuid() != 0 {
		return nil, errors.New("lab up: network namespaces and BPF need root")
	}
	if err := makeFolder(cfg.Name); errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("lab %s is there already: `cairn lab down --name %s` first", cfg.Name, cfg.Name)
	} else if err != nil {
		return nil, fmt.Errorf("lab up: %w", err)
	}
	l := &Lab{cfg: cfg, daemons: map[string]*Daemon{}, state: state{
		Name: cfg.Name, Created: time.Now(), Owner: cfg.owner, Hypervisors: cfg.Hypervisors, Clients: cfg.Clients, Roles: cfg.Roles,
		Router: cfg.Router, Bin: cfg.Bin, Pins: filepath.Join(pinFolder, cfg.Name),
	}}
	err = l.up(ctx)
	if err == nil {
		err = ctx.Err() // it may have ended when nothing was left to wait for
	}
	if err != nil {
		err = errors.Join(fmt.Errorf("lab %s up: %w", cfg.Name, err), l.lastWords())
		if downErr := l.Down(); downErr != nil {
			err = errors.Join(err, downErr)
		}
		return nil, err
	}
	return l, nil
}

// makeFolder makes a lab's folder, which must not be there yet. Another lab that
// is the last to go removes the folder of all labs, so that it may have to be
// made once more.
func makeFolder(name string) error {
	for {
		if err := os.MkdirAll(folder, 0o755); err != nil {
			return err
		}
		if err := os.Mkdir(labFolder(name), 0o755); !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
}

// up makes the parts in the order in which they need each other; the control
// plane's database and the network do not, and are made at once.
func (l *Lab) up(ctx context.Context) error {
	begin := time.Now()
	t := plan(l.state.Name, l.state.Hypervisors, l.state.Clients)
	l.state.Namespaces = t.namespaces
	if err := l.state.save(); err != nil {
		return err
	}
	initialised := make(chan error, 1)
	if l.cfg.Bare {
		initialised <- nil
	} else {
		go func() { initialised <- l.step("control plane initialised", func() error { return l.initControl(ctx) }) }()
	}
	err := l.step("network made", func() error {
		if err := mountBPF(l.state.Name); err != nil {
			return fmt.Errorf("mount %s: %w", pinFolder, err)
		}
		return t.build(ctx)
	})
	if err := errors.Join(err, <-initialised); err != nil {
		return err
	}
	if err := l.step("daemons started", func() error { return l.startAll() }); err != nil {
		return err
	}
	if err := l.step("settled", func() error { return l.settle(ctx) }); err != nil {
		return err
	}
	l.report(Took{Step: "up", Time: time.Since(begin)})
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state.save()
}

func (l *Lab) step(name string, do func() error) error {
	begin := time.Now()
	if err := do(); err != nil {
		return err
	}
	l.report(Took{Step: name, Time: time.Since(begin)})
	return nil
}

func (l *Lab) report(t Took) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.state.Took = append(l.state.Took, t)
	if l.cfg.Progress != nil {
		l.cfg.Progress(t)
	}
}

// Open takes hold of a lab that another process brought up.
func Open(name string) (*Lab, error) {
	s, err := load(name)
	if err != nil {
		return nil, fmt.Errorf("open lab: %w", err)
	}
	l := &Lab{cfg: Config{Name: name}, state: *s, daemons: map[string]*Daemon{}}
	for _, d := range s.Daemons {
		l.add(d)
	}
	return l, nil
}

// Name is the prefix of everything that belongs to the lab.
func (l *Lab) Name() string { return l.state.Name }

// Folder holds state, logs and sockets.
func (l *Lab) Folder() string { return labFolder(l.state.Name) }

// Hypervisors is how many there are; they count from 1.
func (l *Lab) Hypervisors() int { return l.state.Hypervisors }

// API is the address of the public API, reachable from the root namespace.
func (l *Lab) API() string { return "http://" + l.state.Listen + "/v2" }

// Credentials are those of the first organisation.
func (l *Lab) Credentials() Credentials { return l.state.Credentials }

// Took lists the steps of Up and their durations; the last is the whole.
func (l *Lab) Took() []Took { return l.state.Took }

// WaitFor asks again and again, every few milliseconds, until cond returns nil;
// when the time is over or ctx ends it returns cond's last error.
func WaitFor(ctx context.Context, what string, timeout time.Duration, cond func() error) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := cond()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w (last: %w)", what, ctx.Err(), err)
		case <-tick.C:
		}
	}
}
