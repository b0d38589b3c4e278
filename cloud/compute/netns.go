// SPDX-License-Identifier: Apache-2.0

package compute

import (
	"bytes"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
)

// Netns is the driver whose machine is a named network namespace with one
// process in it, for laboratories and tests: it isolates the network and the
// process tree and nothing else, the workload runs as the driver's own user on
// the hypervisor's files. Its namespace is PREFIX-i<port>, or PREFIX-n<id> without
// a public port. The hypervisor's end of a port is cp<port> in the namespace that
// the driver runs in, the guest's end of the public one is eth0, of others eth1
// and on; the alias "lease" says that the guest is to ask for its address.
type Netns struct {
	cfg Config

	// A machine's calls take the lock its id falls on; two machines that share
	// one wait for each other, which costs time and nothing else.
	locks [64]sync.Mutex
}

// NewNetns checks that it can work here and makes nothing.
func NewNetns(cfg Config) (*Netns, error) {
	if cfg.State == "" || cfg.Prefix == "" {
		return nil, errors.New("driver netns: state folder and prefix are needed")
	}
	// A relative path would be another one in the workload's working folder.
	state, err := filepath.Abs(cfg.State)
	if err != nil {
		return nil, fmt.Errorf("driver netns: %w", err)
	}
	cfg.State = state
	for name, argv := range cfg.Commands {
		if len(argv) == 0 {
			return nil, fmt.Errorf("driver netns: workload %s has no program", name)
		}
		if info, err := os.Stat(argv[0]); err != nil {
			return nil, fmt.Errorf("driver netns: workload %s: %w", name, err)
		} else if info.Mode()&0o111 == 0 {
			return nil, fmt.Errorf("driver netns: workload %s: %s is not a program", name, argv[0])
		}
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	return &Netns{cfg: cfg}, nil
}

var _ Driver = (*Netns)(nil)

// Name is what a template says to get this driver.
func (d *Netns) Name() string { return "netns" }

// Namespace is the name of the network namespace of a machine with that public
// port.
func (d *Netns) Namespace(port uint32) string { return fmt.Sprintf("%s-i%d", d.cfg.Prefix, port) }

func (d *Netns) namespaceOf(spec Spec) string {
	if spec.Port != 0 {
		return d.Namespace(spec.Port)
	}
	id, _, _ := strings.Cut(spec.ID, "-")
	return fmt.Sprintf("%s-n%s", d.cfg.Prefix, id)
}

// List implements Driver.
func (d *Netns) List() ([]Machine, error) {
	ids, err := listIDs(d.cfg.State)
	if err != nil {
		return nil, fmt.Errorf("list machines: %w", err)
	}
	machines := make([]Machine, 0, len(ids))
	for _, id := range ids {
		r, err := readRecord(d.cfg.State, id)
		switch {
		case err != nil:
			machines = append(machines, Machine{ID: id, State: StateError, Err: err.Error()})
		case r == nil:
			machines = append(machines, Machine{ID: id, State: StateError, Err: "half made: no record"})
		default:
			machines = append(machines, describe(r))
		}
	}
	return machines, nil
}

func describe(r *record) Machine {
	m := Machine{ID: r.ID, Port: r.Port, Generation: r.Generation, SpecHash: r.Hash, State: StateStopped}
	if r.Process.alive() {
		m.State, m.PID = StateRunning, r.Process.PID
	}
	switch {
	case !namespaceExists(r.Namespace):
		m.State, m.Err = StateError, "namespace "+r.Namespace+" is gone"
	case r.Hash == "":
		m.State, m.Err = StateError, "half made"
	case r.Running && m.PID == 0:
		m.Err = "workload ended by itself"
	}
	return m
}

// Ensure implements Driver. When it dies half-way the record is there with an
// empty hash, List says error, and the next Ensure goes on from what it finds.
func (d *Netns) Ensure(spec Spec) error {
	defer d.lock(spec.ID)()
	if err := d.ensure(spec); err != nil {
		return fmt.Errorf("ensure machine %s: %w", spec.ID, err)
	}
	return nil
}

func (d *Netns) ensure(spec Spec) error {
	if err := d.check(spec); err != nil {
		return err
	}
	r, err := readRecord(d.cfg.State, spec.ID)
	if err != nil {
		d.cfg.Log.Warn("machine's record is unreadable, made anew", "machine", spec.ID, "err", err)
	}
	if r == nil {
		r = &record{ID: spec.ID}
	}
	if r.Namespace != "" && r.Port != spec.Port {
		return fmt.Errorf("port cannot change from %d to %d", r.Port, spec.Port)
	}
	r.Port, r.Namespace, r.Running = spec.Port, d.namespaceOf(spec), spec.Running
	had := r.Links
	r.Hash, r.Links = "", assign(spec, had)
	for port, name := range had {
		if r.Links[port] == "" {
			if err := unwire(port); err != nil {
				return fmt.Errorf("detach %s: %w", name, err)
			}
		}
	}
	if err := writeRecord(d.cfg.State, r); err != nil {
		return fmt.Errorf("write record: %w", err)
	}
	for _, s := range plan(spec, look(r)) {
		if err := d.apply(s, spec, r); err != nil {
			return fmt.Errorf("%s: %w", s, err)
		}
		d.cfg.Log.Debug("machine step", "machine", spec.ID, "step", s.String())
	}
	r.Hash, r.Generation = spec.Hash(), spec.Generation
	if err := writeRecord(d.cfg.State, r); err != nil {
		return fmt.Errorf("write record: %w", err)
	}
	return nil
}

func (d *Netns) check(spec Spec) error {
	if err := checkID(spec.ID); err != nil {
		return err
	}
	if _, ok := d.cfg.Commands[spec.Command]; !ok {
		return fmt.Errorf("no workload is called %q here", spec.Command)
	}
	ids, err := listIDs(d.cfg.State)
	if err != nil {
		return err
	}
	for _, id := range ids {
		if id == spec.ID {
			continue
		}
		r, err := readRecord(d.cfg.State, id)
		if err != nil || r == nil {
			continue
		}
		for _, n := range nics(spec, nil) {
			if _, other := r.Links[n.port]; other || r.Port == n.port {
				return fmt.Errorf("port %d still belongs to machine %s", n.port, id)
			}
		}
	}
	return nil
}

// look reads what there is of a machine.
func look(r *record) found {
	have := found{namespace: namespaceExists(r.Namespace), command: r.Command}
	if r.Process.alive() {
		have.workload = r.Process
	}
	if !have.namespace {
		return have
	}
	have.strays = slices.DeleteFunc(inits(r.Namespace), func(p process) bool { return p == have.workload })
	return have
}

func (d *Netns) apply(s step, spec Spec, r *record) error {
	switch s.verb {
	case endProcess:
		return s.process.end()
	case makeNamespace:
		return createNamespace(r.Namespace)
	case wireLinks:
		return wire(r.Namespace, spec, r.Links)
	case startWorkload:
		return d.start(spec, r)
	}
	return fmt.Errorf("no such step: %s", s.verb)
}

// start runs the workload and writes its process down. A crash in between
// leaves a stray, which look finds.
func (d *Netns) start(spec Spec, r *record) error {
	argv := slices.Clone(d.cfg.Commands[spec.Command])
	if bytes.HasPrefix(spec.UserData, []byte("#!")) {
		script := filepath.Join(machineFolder(d.cfg.State, spec.ID), "user-data")
		if err := os.WriteFile(script, spec.UserData, 0o700); err != nil {
			return fmt.Errorf("write user data: %w", err)
		}
		// The shell becomes the workload, so that pid 1 stays what is recorded.
		argv = append([]string{"/bin/sh", "-c", `"$0" || echo "user data ended with status $?"; exec "$@"`, script}, argv...)
	}
	process, err := launch(r.Namespace, argv, environment(spec), LogPath(d.cfg.State, spec.ID))
	if err != nil {
		return err
	}
	r.Process, r.Command = process, spec.Command
	return writeRecord(d.cfg.State, r)
}

// environment is all that a workload gets to know; the driver's own variables
// are none of its business.
func environment(spec Spec) []string {
	address := ""
	if spec.Address.IsValid() {
		address = spec.Address.String()
	}
	return []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"CAIRN_INSTANCE_ID=" + spec.ID,
		"CAIRN_INSTANCE_NAME=" + strings.ReplaceAll(spec.Name, "\x00", ""),
		"CAIRN_INSTANCE_ADDRESS=" + address,
		"CAIRN_ZONE=" + spec.Zone,
	}
}

// Remove implements Driver. The record goes last: a crash half-way leaves a
// machine that List shows and the next Remove ends.
func (d *Netns) Remove(id string) error {
	defer d.lock(id)()
	if err := d.remove(id); err != nil {
		return fmt.Errorf("remove machine %s: %w", id, err)
	}
	return nil
}

func (d *Netns) remove(id string) error {
	if err := checkID(id); err != nil {
		return err
	}
	r, err := readRecord(d.cfg.State, id)
	if err != nil {
		d.cfg.Log.Warn("machine's record is unreadable, folder removed", "machine", id, "err", err)
	}
	if r != nil && r.Namespace != "" {
		if err := r.Process.end(); err != nil {
			return err
		}
		for _, p := range inits(r.Namespace) {
			if err := p.end(); err != nil {
				return err
			}
		}
		for _, port := range append(slices.Collect(maps.Keys(r.Links)), r.Port) {
			if err := unwire(port); err != nil {
				return err
			}
		}
		if err := deleteNamespace(r.Namespace); err != nil {
			return fmt.Errorf("delete namespace %s: %w", r.Namespace, err)
		}
	}
	return os.RemoveAll(machineFolder(d.cfg.State, id))
}

// lock makes calls for one machine wait for each other and returns the unlock.
func (d *Netns) lock(id string) func() {
	h := fnv.New32a()
	_, _ = h.Write([]byte(id))
	l := &d.locks[h.Sum32()%uint32(len(d.locks))]
	l.Lock()
	return l.Unlock
}
