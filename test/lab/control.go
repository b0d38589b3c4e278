// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// settleTimeout is how long Up waits for sessions and agents; they need about
// two seconds.
const settleTimeout = 90 * time.Second

func (l *Lab) program(name string) string { return filepath.Join(l.state.Bin, name) }
func (l *Lab) controlState() string       { return filepath.Join(l.Folder(), "ctl") }

// ControlState is the state folder of cairnd.
func (l *Lab) ControlState() string { return l.controlState() }

// hypervisorFolder holds the state and sockets of a hypervisor's daemons.
func (l *Lab) hypervisorFolder(i int) string {
	return filepath.Join(l.Folder(), fmt.Sprintf("hv%d", i))
}

// AgentState is the state folder of a hypervisor's agent; the instance
// driver keeps the machines and their logs below it.
func (l *Lab) AgentState(hv int) string { return filepath.Join(l.hypervisorFolder(hv), "agent") }

// AgentSocket is the unix socket of a hypervisor's agent, for `cairn debug`.
func (l *Lab) AgentSocket(hv int) string { return filepath.Join(l.hypervisorFolder(hv), "agent.sock") }

// SpeakerSocket is the unix socket of a hypervisor's cairn-bgpd.
func (l *Lab) SpeakerSocket(hv int) string {
	return filepath.Join(l.hypervisorFolder(hv), "bgpd.sock")
}

// Pins is the bpffs folder of a hypervisor's maps, programs and links.
func (l *Lab) Pins(hv int) string { return filepath.Join(l.state.Pins, fmt.Sprintf("hv%d", hv)) }

// Endpoint is a hypervisor's address on its uplink.
func (l *Lab) Endpoint(hv int) netip.Addr {
	_, a := uplinkAddresses(hv)
	return a
}

// initControl makes the database, the first key, and a row and a join token for
// each hypervisor, and plans the daemons.
func (l *Lab) initControl(ctx context.Context) error {
	out, err := l.cairnd(ctx, "init", "--state", l.controlState(), "--zone", Zone,
		"--instance-pool", InstancePrefix.String(), "--vip-pool", VIPPrefix.String(), "--vip6-pool", VIPPrefix6.String(),
		"--instance-pool6", InstancePrefix6.String(), "--elastic-pool", ElasticPrefix.String(), "--elastic6-pool", ElasticPrefix6.String())
	if err != nil {
		return err
	}
	if err := json.Unmarshal(out, &l.state.Credentials); err != nil {
		return fmt.Errorf("read what cairnd init printed: %w", err)
	}
	for i := 1; i <= l.state.Hypervisors; i++ {
		name := fmt.Sprintf("hv%d", i)
		out, err := l.cairnd(ctx, "hypervisor", "add", name, "--state", l.controlState(), "--failure-domain", fmt.Sprintf("rack%d", i))
		if err != nil {
			return err
		}
		if err := l.planHypervisor(i, strings.TrimSpace(string(out))); err != nil {
			return err
		}
	}
	return nil
}

// cairnd runs one of its verbs that end by themselves.
func (l *Lab) cairnd(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, l.program("cairnd"), args...)
	cmd.Env = append(os.Environ(), mark+"="+l.state.Name)
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("cairnd %s: %w: %s", strings.Join(args[:1], " "), err, strings.TrimSpace(complaint.String()))
	}
	return out.Bytes(), nil
}

func (l *Lab) planHypervisor(i int, token string) error {
	dir, ns := l.hypervisorFolder(i), hypervisorNamespace(l.state.Name, i)
	for _, d := range []string{"agent", "bgpd"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			return err
		}
	}
	router, endpoint := uplinkAddresses(i)
	l.add(daemonState{Name: fmt.Sprintf("hv%d/agent", i), Namespace: ns, Argv: append([]string{
		l.program("cairn-agent"), "--name", fmt.Sprintf("hv%d", i), "--state", l.AgentState(i), "--pins", l.Pins(i),
		"--uplink", uplinkName, "--endpoint", endpoint.String(),
		"--control", netip.AddrPortFrom(controlAddress, agentPort).String(), "--join", token, "--socket", l.AgentSocket(i),
		"--netns-prefix", ns, "--roles", l.state.Roles[i-1], "--echo", l.program("cairn-echo"),
	}, l.cfg.Agent...)})
	l.add(daemonState{Name: fmt.Sprintf("hv%d/bgpd", i), Namespace: ns, Argv: []string{
		l.program("cairn-bgpd"), "--state", filepath.Join(dir, "bgpd"), "--pins", l.Pins(i), "--socket", l.SpeakerSocket(i),
		"--local-as", fmt.Sprint(HypervisorAS), "--router-id", endpoint.String(), "--peer", router.String(),
		"--peer-as", fmt.Sprint(RouterAS), "--bfd", "--announcements", filepath.Join(l.AgentState(i), "announcements.json"),
	}})
	return nil
}

// startAll starts the router, then cairnd, then the hypervisors.
func (l *Lab) startAll() error {
	hypervisors := l.order
	l.order = nil
	router, err := routerDaemons(&l.state)
	if err != nil {
		return fmt.Errorf("prepare the router: %w", err)
	}
	for _, d := range router {
		l.add(d)
	}
	if !l.cfg.Bare {
		socket, err := l.socket() // for its port, which cairnd is told
		if err != nil {
			return err
		}
		socket.Close()
		l.add(daemonState{Name: "cairnd", Namespace: controlNamespace(l.state.Name), Inherits: true, Argv: append([]string{
			l.program("cairnd"), "run", "--state", l.controlState(),
			"--listen-agents", netip.AddrPortFrom(controlAddress, agentPort).String(), "--public-url", l.API(),
		}, l.cfg.Control...)})
	}
	l.order = append(l.order, hypervisors...)
	for i := 1; i <= l.state.Hypervisors; i++ {
		if err := os.MkdirAll(l.Pins(i), 0o700); err != nil {
			return err
		}
	}
	for _, d := range l.order {
		if err := d.Start(); err != nil {
			return err
		}
	}
	return nil
}

// settle waits until the router answers, every session is established and every
// agent is in step. A daemon that ends meanwhile ends the wait.
func (l *Lab) settle(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watch := func(cond func() error) func() error {
		return func() error {
			for _, d := range l.order {
				if !d.Alive() {
					err := fmt.Errorf("%s ended", d.Name())
					cancel(err)
					return err
				}
			}
			return cond()
		}
	}
	if err := WaitFor(ctx, "the router", settleTimeout, watch(func() error {
		_, err := l.Sessions()
		return err
	})); err != nil || l.cfg.Bare {
		return err
	}
	return errors.Join(
		WaitFor(ctx, "BGP", settleTimeout, watch(l.SessionsEstablished)),
		WaitFor(ctx, "agents in step", settleTimeout, watch(l.InStep)),
	)
}

// SessionsEstablished is nil when every hypervisor's session is.
func (l *Lab) SessionsEstablished() error {
	sessions, err := l.Sessions()
	if err != nil {
		return err
	}
	for i := 1; i <= l.state.Hypervisors; i++ {
		if name := fmt.Sprintf("hv%d", i); sessions[name] != "Established" {
			return fmt.Errorf("session of %s is %q", name, sessions[name])
		}
	}
	return nil
}

// InStep is nil when every agent has joined, is connected, and has programmed
// what it was told.
func (l *Lab) InStep() error {
	for i := 1; i <= l.state.Hypervisors; i++ {
		if err := l.agentInStep(i); err != nil {
			return fmt.Errorf("agent of hv%d: %w", i, err)
		}
	}
	return nil
}

func (l *Lab) agentInStep(i int) error {
	type mark struct{ Epoch, Revision uint64 }
	var status struct {
		Desired, Programmed mark
		Control             struct{ Connected bool }
	}
	client := http.Client{Timeout: time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", l.AgentSocket(i))
		},
	}}
	resp, err := client.Get("http://agent/status")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&status); err != nil {
		return fmt.Errorf("read its status: %w", err)
	}
	if !status.Control.Connected || status.Desired.Revision == 0 || status.Desired != status.Programmed {
		return fmt.Errorf("connected %t, desired %v, programmed %v", status.Control.Connected, status.Desired, status.Programmed)
	}
	return nil
}
