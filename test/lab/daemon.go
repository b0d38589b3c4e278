// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Daemon is one program of the lab. It runs in its namespace with the host's
// mounts, in a session of its own, so that it outlives who started it.
type Daemon struct {
	lab *Lab

	mu     sync.Mutex // one action at a time
	record daemonState
	exit   error         // how the last process that we started ended, if it did
	ended  chan struct{} // closed when it did
}

func (l *Lab) add(record daemonState) *Daemon {
	if record.Log == "" {
		record.Log = filepath.Join(labFolder(l.state.Name), "log", strings.ReplaceAll(record.Name, "/", "-")+".log")
	}
	d := &Daemon{lab: l, record: record}
	l.daemons[record.Name] = d
	l.order = append(l.order, d)
	return d
}

// Daemon finds one by name: cairnd, hv1/agent, hv1/bgpd, router/bird. There is
// no lab without the ones it is made of, so an unknown name panics.
func (l *Lab) Daemon(name string) *Daemon {
	d, ok := l.daemons[name]
	if !ok {
		panic("lab " + l.state.Name + " has no daemon " + name)
	}
	return d
}

// Daemons are all of them, in the order in which they were started.
func (l *Lab) Daemons() []*Daemon { return l.order }

// Control is cairnd.
func (l *Lab) Control() *Daemon { return l.Daemon("cairnd") }

// Agent is the cairn-agent of a hypervisor, counted from 1.
func (l *Lab) Agent(hv int) *Daemon { return l.Daemon(fmt.Sprintf("hv%d/agent", hv)) }

// Speaker is the cairn-bgpd of a hypervisor, counted from 1.
func (l *Lab) Speaker(hv int) *Daemon { return l.Daemon(fmt.Sprintf("hv%d/bgpd", hv)) }

func (d *Daemon) Name() string { return d.record.Name }

// LogPath is where everything goes that it prints; restarts append.
func (d *Daemon) LogPath() string { return d.record.Log }

// PID is 0 when it does not run.
func (d *Daemon) PID() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.record.Process.alive() {
		return 0
	}
	return d.record.Process.PID
}

func (d *Daemon) Alive() bool { return d.PID() != 0 }

// Age is how long it has run since it was started last.
func (d *Daemon) Age() (time.Duration, error) {
	start, _, err := procStat(d.PID())
	if err != nil {
		return 0, err
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return 0, fmt.Errorf("read the clock: %w", err)
	}
	const tick = time.Second / 100 // of /proc/PID/stat, proc_pid_stat(5)
	return time.Duration(now.Nano()) - time.Duration(start)*tick, nil
}

// Start starts it; it returns as soon as the program runs, ready or not.
func (d *Daemon) Start() error { return d.StartWith() }

// StartWith is Start with more in the environment, KEY=VALUE; the next start
// knows nothing of it.
func (d *Daemon) StartWith(environment ...string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.record.Process.alive() {
		return fmt.Errorf("start %s: it runs already", d.record.Name)
	}
	if err := d.launch(environment); err != nil {
		return fmt.Errorf("start %s: %w", d.record.Name, err)
	}
	return d.lab.note(d.record)
}

func (d *Daemon) launch(environment []string) error {
	if d.record.After != "" {
		if err := WaitFor(context.Background(), d.record.After, 5*time.Second, func() error {
			_, err := os.Stat(d.record.After)
			return err
		}); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(filepath.Dir(d.record.Log), 0o755); err != nil {
		return err
	}
	log, err := os.OpenFile(d.record.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(d.record.Argv[0], d.record.Argv[1:]...)
	cmd.Dir = "/"
	cmd.Env = append(append(os.Environ(), environment...), mark+"="+d.lab.state.Name)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if d.record.Inherits {
		socket, err := d.lab.socket()
		if err != nil {
			return err
		}
		defer socket.Close()
		cmd.ExtraFiles = []*os.File{socket}
		cmd.Env = append(cmd.Env, "LISTEN_FDS=1")
	}
	if err := inNamespace(d.record.Namespace, cmd.Start); err != nil {
		return err
	}
	// Nobody reaps it before the Wait below, so it has an entry even if it ended.
	d.record.Process, err = identify(cmd.Process.Pid)
	ended := make(chan struct{})
	d.exit, d.ended = nil, ended
	go func() {
		defer close(ended)
		err := cmd.Wait()
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.ended == ended {
			d.exit = err
		}
	}()
	return err
}

// Wait returns when the process that was started last has ended, with how it
// ended as (*exec.Cmd).Wait says it, or when ctx ends. It is for those who
// started it.
func (d *Daemon) Wait(ctx context.Context) error {
	d.mu.Lock()
	ended := d.ended
	d.mu.Unlock()
	if ended == nil {
		return fmt.Errorf("wait for %s: started by somebody else", d.record.Name)
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-ended:
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.exit
}

// note writes a daemon's process down.
func (l *Lab) note(record daemonState) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	found := false
	for i := range l.state.Daemons {
		if l.state.Daemons[i].Name == record.Name {
			l.state.Daemons[i], found = record, true
		}
	}
	if !found {
		l.state.Daemons = append(l.state.Daemons, record)
	}
	return l.state.save()
}

// Kill ends it with SIGKILL and returns when it is gone.
func (d *Daemon) Kill() error { return d.end(unix.SIGKILL, 5*time.Second) }

// Terminate asks it to end and returns when it is gone.
func (d *Daemon) Terminate() error { return d.end(unix.SIGTERM, 10*time.Second) }

func (d *Daemon) end(s unix.Signal, timeout time.Duration) error {
	p := d.process()
	if err := p.signal(s); err != nil {
		return fmt.Errorf("end %s: %w", d.record.Name, err)
	}
	if !p.wait(timeout) {
		return fmt.Errorf("end %s: still there %s after signal %d", d.record.Name, timeout, s)
	}
	return nil
}

// Restart is a crash: SIGKILL, then Start.
func (d *Daemon) Restart() error {
	if err := d.Kill(); err != nil {
		return err
	}
	return d.Start()
}

// Freeze stops it as SIGSTOP does and returns when it stands still.
func (d *Daemon) Freeze() error {
	p := d.process()
	if err := p.signal(unix.SIGSTOP); err != nil {
		return fmt.Errorf("freeze %s: %w", d.record.Name, err)
	}
	deadline := time.Now().Add(5 * time.Second)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for p.state() != 'T' {
		if time.Now().After(deadline) {
			return fmt.Errorf("freeze %s: still running", d.record.Name)
		}
		<-tick.C
	}
	return nil
}

// Thaw lets a frozen one go on.
func (d *Daemon) Thaw() error {
	if err := d.process().signal(unix.SIGCONT); err != nil {
		return fmt.Errorf("thaw %s: %w", d.record.Name, err)
	}
	return nil
}

func (d *Daemon) process() process {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.record.Process
}

// Tail returns the last lines of its log.
func (d *Daemon) Tail(lines int) string {
	b, err := os.ReadFile(d.record.Log)
	if err != nil {
		return err.Error()
	}
	all := bytes.SplitAfter(b, []byte("\n"))
	if len(all) > lines+1 {
		all = all[len(all)-lines-1:]
	}
	return string(bytes.Join(all, nil))
}

// lastWords tells which daemons have ended, how, and what they said last.
func (l *Lab) lastWords() error {
	var errs []error
	for _, d := range l.order {
		d.mu.Lock()
		gone, exit := d.record.Process.PID != 0 && !d.record.Process.alive(), d.exit
		d.mu.Unlock()
		if gone {
			errs = append(errs, fmt.Errorf("%s ended (%v): %s", d.record.Name, exit, d.Tail(5)))
		}
	}
	return errors.Join(errs...)
}

// socket returns the API's listening socket, to be closed after use. The lab
// keeps one open, so that connections wait in its queue while cairnd is away; a
// lab that was opened, not made, has to open the same port again.
func (l *Lab) socket() (*os.File, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.listener == nil {
		at := l.state.Listen
		if at == "" {
			at = "127.0.0.1:0"
		}
		opened, err := net.Listen("tcp4", at)
		if err != nil {
			return nil, fmt.Errorf("open the API's socket: %w", err)
		}
		l.listener = opened.(*net.TCPListener)
		l.state.Listen = l.listener.Addr().String()
	}
	return l.listener.File()
}

func (l *Lab) closeSocket() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.listener != nil {
		l.listener.Close()
		l.listener = nil
	}
}
