// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"time"

	v3 "github.com/exoscale/egoscale/v3"
	"github.com/exoscale/egoscale/v3/credentials"

	"cairn/cloud"
	"cairn/controlplane/securitygroup"
	"cairn/controlplane/store"
	"cairn/controlplane/zone"
	"cairn/test/rig"
)

const (
	zoneName   = "ch-gva-2"
	agentsPort = 7443
)

// world is a zone that runs in this process, agents that are processes on
// hypervisors of their own, and simulated ones.
type world struct {
	folder string
	rig    *rig.Rig
	zone   zone.Folder
	store  *store.Store
	org    cloud.ID
	api    *v3.Client

	agents    []*rig.Agent
	simulated []*simulated
	ended     chan error
}

func newWorld(ctx context.Context, folder string) (*world, error) {
	w := &world{folder: folder, zone: zone.Folder{State: filepath.Join(folder, "zone")}, ended: make(chan error, 1)}
	key, err := w.zone.Found(ctx, zone.Founding{Zone: zoneName, Organisation: "bench"})
	if err != nil {
		return nil, err
	}
	w.org = key.Org
	if w.rig, err = rig.New(folder); err != nil {
		return nil, err
	}
	if w.store, err = w.zone.Open(ctx); err != nil {
		return nil, err
	}
	clients, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	url := "http://" + clients.Addr().String() + "/v2"
	z, err := zone.New(ctx, w.zone, w.store, zone.Config{PublicURL: url, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, err
	}
	var agents net.Listener
	err = w.rig.Wire().Do(func() (err error) {
		agents, err = net.Listen("tcp4", fmt.Sprintf(":%d", agentsPort))
		return err
	})
	if err != nil {
		return nil, err
	}
	go func() { w.ended <- z.Run(ctx, clients, agents) }()
	w.api, err = v3.NewClient(credentials.NewStaticCredentials(key.Key, key.Secret), v3.ClientOptWithEndpoint(v3.Endpoint(url)),
		v3.ClientOptWithHTTPClient(&http.Client{Timeout: 30 * time.Second}))
	return w, err
}

// close ends the agents and what they programmed.
func (w *world) close() error {
	var errs []error
	for _, a := range w.agents {
		errs = append(errs, a.Kill())
	}
	return errors.Join(append(errs, w.rig.Close())...)
}

// addAgents starts so many processes, each on its hypervisor.
func (w *world) addAgents(ctx context.Context, program, echo string, n int) error {
	for i := range n {
		h, err := w.rig.Hypervisor(1)
		if err != nil {
			return err
		}
		w.rig.Defer(h.Remove)
		token, err := w.zone.Admit(ctx, rig.Name(h.Number), fmt.Sprintf("rack%d", i))
		if err != nil {
			return err
		}
		a, err := h.Joining(program, filepath.Join(w.folder, rig.Name(h.Number)))
		if err != nil {
			return err
		}
		router := netip.AddrFrom4([4]byte{10, 64, 0, byte(2 * i)})
		a.Control = netip.AddrPortFrom(router, agentsPort).String()
		a.Arguments = []string{"--join", token.String(), "--roles", "compute", "--echo", echo}
		w.agents = append(w.agents, a)
		if err := a.Start(); err != nil {
			return err
		}
	}
	return nil
}

// addSimulated joins so many that are not.
func (w *world) addSimulated(ctx context.Context, n int) error {
	dial := func(ctx context.Context, address string) (conn net.Conn, err error) {
		err = w.rig.Wire().Do(func() (err error) {
			conn, err = new(net.Dialer).DialContext(ctx, "tcp4", address)
			return err
		})
		return conn, err
	}
	for i := range n {
		s := &simulated{name: fmt.Sprintf("sim%d", i+1), endpoint: netip.AddrFrom4([4]byte{10, 64, 1, byte(i + 1)}).String()}
		token, err := w.zone.Admit(ctx, s.name, fmt.Sprintf("row%d", i))
		if err != nil {
			return err
		}
		if err := s.enroll(ctx, fmt.Sprintf("127.0.0.1:%d", agentsPort), dial, token, zoneName); err != nil {
			return err
		}
		w.simulated = append(w.simulated, s)
		go s.live(ctx)
	}
	return nil
}

// done waits for an operation.
func (w *world) done(ctx context.Context, op *v3.Operation, err error) (v3.UUID, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for err == nil && op.State == v3.OperationStatePending {
		<-time.After(5 * time.Millisecond)
		op, err = w.api.GetOperation(ctx, op.ID)
	}
	if err != nil {
		return "", err
	}
	if op.State != v3.OperationStateSuccess {
		return "", fmt.Errorf("operation %s: %s %s", op.State, op.Reason, op.Message)
	}
	return op.Reference.ID, nil
}

func (w *world) group(ctx context.Context, name string) (v3.UUID, error) {
	op, err := w.api.CreateSecurityGroup(ctx, v3.CreateSecurityGroupRequest{Name: name})
	return w.done(ctx, op, err)
}

// populate stores instances as the orchestrator would: one of the first group on
// each host, and many of the second on the simulated ones.
func (w *world) populate(ctx context.Context, web, many v3.UUID, members int) error {
	hosts := len(w.agents) + len(w.simulated)
	_, err := w.store.Write(ctx, func(tx *store.Tx) error {
		for n := 1; n <= hosts+members; n++ {
			group, host := web, n
			if n > hosts {
				group, host = many, len(w.agents)+1+n%len(w.simulated)
			}
			if err := w.put(tx, n, uint32(host), cloud.ID(group)); err != nil {
				return fmt.Errorf("instance %d: %w", n, err)
			}
		}
		return nil
	})
	return err
}

func (w *world) put(tx *store.Tx, n int, host uint32, group cloud.ID) error {
	groups := []cloud.Ref{{ID: group}}
	class, err := securitygroup.Enter(tx, groups)
	if err != nil {
		return err
	}
	doc := store.Doc[store.InstanceDoc]{ID: cloud.NewID(), Org: w.org, Generation: 1}
	doc.Body.ID, doc.Body.Name, doc.Body.State = doc.ID, fmt.Sprintf("instance-%d", n), cloud.InstanceRunning
	doc.Body.HostNumber, doc.Body.Port, doc.Body.Class = host, uint32(n), class
	doc.Body.Wanted, doc.Body.Driver, doc.Body.Command = store.WantedRunning, "netns", "echo"
	doc.Body.Address = netip.AddrFrom4([4]byte{100, 64, byte(n >> 8), byte(n)})
	doc.Body.MAC = rig.PortMAC(uint32(n)).String()
	doc.Body.SecurityGroups = groups
	return store.Put(tx, "", doc)
}
