// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	v3 "github.com/exoscale/egoscale/v3"
	"github.com/exoscale/egoscale/v3/credentials"

	capi "cairn/cloud/api"
	"cairn/controlplane/antiaffinity"
	"cairn/controlplane/api"
	"cairn/controlplane/operation"
	"cairn/controlplane/securitygroup"
	"cairn/controlplane/sshkey"
	"cairn/controlplane/store"
	"cairn/controlplane/tenant"
)

// real is the control plane on a store of its own, as far as it needs no host.
type real struct {
	t        *testing.T
	store    *store.Store
	root     *store.RootKey
	endpoint string
}

func newReal(t *testing.T) *real {
	t.Helper()
	dir := t.TempDir()
	s, err := store.Open(t.Context(), filepath.Join(dir, "cairn.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	root, err := store.CreateRootKey(filepath.Join(dir, "root.key"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Init(t.Context(), zone, nil); err != nil {
		t.Fatal(err)
	}
	r := &real{t: t, store: s, root: root}
	server := httptest.NewServer(r.edge())
	t.Cleanup(server.Close)
	r.endpoint = capi.Endpoint(server.URL)
	return r
}

// edge is a process on the store: the API with a gate of its own.
func (r *real) edge() http.Handler {
	r.t.Helper()
	quiet := slog.New(slog.DiscardHandler)
	gate := operation.New(r.store, quiet, securitygroup.Noun)
	handlers := api.Merge(api.Catalogue(zone, "http://127.0.0.1"), gate.Handlers(),
		sshkey.Handlers(r.store, gate), antiaffinity.Handlers(r.store, gate), securitygroup.Handlers(r.store, gate))
	var operations []capi.Operation
	for _, o := range capi.Operations {
		if handlers[o.ID] != nil {
			operations = append(operations, o)
		}
	}
	edge, err := api.New(api.Config{
		Operations: operations, Handlers: handlers, Keys: tenant.Keys{Store: r.store, Root: r.root},
		Answers: gate, Waiter: gate, Audit: gate.Audit, Zone: zone, PublicURL: "http://127.0.0.1", Logger: quiet,
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return edge
}

// tenant founds an organisation and gives its client at an endpoint.
func (r *real) tenant(name, endpoint string, options ...v3.ClientOpt) *story {
	r.t.Helper()
	var k store.APIKey
	_, err := r.store.Write(r.t.Context(), func(tx *store.Tx) (err error) {
		k, err = tenant.Found(tx, r.root, name)
		return err
	})
	if err != nil {
		r.t.Fatal(err)
	}
	c, err := v3.NewClient(credentials.NewStaticCredentials(k.Key, k.Secret),
		append(options, v3.ClientOptWithEndpoint(v3.Endpoint(endpoint)))...)
	if err != nil {
		r.t.Fatal(err)
	}
	return &story{t: r.t, Client: c, ctx: r.t.Context()}
}

// once is a client that does not retry.
var once = v3.ClientOptWithHTTPClient(http.DefaultClient)

// refused checks what a client is told: the class of the error and its words.
func refused(t *testing.T, err, class error, words string) {
	t.Helper()
	var e *v3.APIError
	if !errors.Is(err, class) || !errors.As(err, &e) || !strings.Contains(e.Message, words) {
		t.Errorf("got %v (%+v), want %v with %q", err, e, class, words)
	}
}

func TestNounsWithoutHosts(t *testing.T) {
	r := newReal(t)
	s := r.tenant("acme", r.endpoint, once)

	s.done(s.RegisterSSHKey(s.ctx, v3.RegisterSSHKeyRequest{Name: "me", PublicKey: publicKey}))
	_, err := s.RegisterSSHKey(s.ctx, v3.RegisterSSHKeyRequest{Name: "me", PublicKey: publicKey})
	refused(t, err, v3.ErrConflict, "already exists")
	if keys := must(s.ListSSHKeys(s.ctx))(t); len(keys.SSHKeys) != 1 || keys.SSHKeys[0].Name != "me" {
		t.Errorf("keys %+v", keys)
	}

	group := s.done(s.CreateAntiAffinityGroup(s.ctx, v3.CreateAntiAffinityGroupRequest{Name: "apart", Description: "d"}))
	_, err = s.CreateAntiAffinityGroup(s.ctx, v3.CreateAntiAffinityGroupRequest{Name: "apart"})
	refused(t, err, v3.ErrConflict, "already exists")
	if g := must(s.GetAntiAffinityGroup(s.ctx, group))(t); g.Name != "apart" || g.Description != "d" || len(g.Instances) != 0 {
		t.Errorf("group %+v", g)
	}

	sg := s.securityGroup()
	groups := must(s.ListSecurityGroups(s.ctx))(t)
	if len(groups.SecurityGroups) != 2 || groups.SecurityGroups[0].Name != "default" {
		t.Errorf("groups %+v", groups)
	}
	if public := must(s.ListSecurityGroups(s.ctx, v3.ListSecurityGroupsWithVisibility("public")))(t); len(public.SecurityGroups) != 1 ||
		public.SecurityGroups[0].Name != "public-nlb-healthcheck-sources" {
		t.Errorf("public groups %+v", public)
	}
	s.done(s.AddRuleToSecurityGroup(s.ctx, sg, v3.AddRuleToSecurityGroupRequest{Protocol: "tcp", FlowDirection: "ingress", StartPort: 80, EndPort: 80,
		SecurityGroup: &v3.SecurityGroupResource{Name: "public-nlb-healthcheck-sources", Visibility: "public"}}))
	_, err = s.AddRuleToSecurityGroup(s.ctx, sg, v3.AddRuleToSecurityGroupRequest{Protocol: "tcp", FlowDirection: "ingress", StartPort: 9, EndPort: 8, Network: "300.0.0.0/8"})
	refused(t, err, v3.ErrBadRequest, "network: ")
	_, err = s.DeleteSecurityGroup(s.ctx, groups.SecurityGroups[0].ID)
	refused(t, err, v3.ErrConflict, "stays")

	op := must(s.DeleteSecurityGroup(s.ctx, sg))(t)
	if op.State != v3.OperationStateSuccess || op.Reference.ID != sg {
		t.Errorf("first answer %+v", op)
	}
	if again := must(s.GetOperation(s.ctx, op.ID))(t); again.State != v3.OperationStateSuccess || again.Reference.Link != op.Reference.Link {
		t.Errorf("read again %+v", again)
	}
	_, err = s.GetSecurityGroup(s.ctx, sg)
	refused(t, err, v3.ErrNotFound, string(sg))
	s.done(s.DeleteAntiAffinityGroup(s.ctx, group))
	s.done(s.DeleteSSHKey(s.ctx, "me"))
	_, err = s.GetSSHKey(s.ctx, "me")
	refused(t, err, v3.ErrNotFound, `"me"`)

	// Nothing is left but the group that every organisation has.
	err = r.store.Read(s.ctx, func(tx *store.Tx) error {
		held, err := tx.Allocations()
		if len(held) != 1 || held[0].Kind != store.NumberGroup {
			t.Errorf("held: %v", held)
		}
		pending, err2 := tx.Pending(store.Ref{})
		if len(pending) != 0 {
			t.Errorf("pending: %v", pending)
		}
		return errors.Join(err, err2)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestOrganisationsDoNotSeeEachOther: what belongs to one is not there for the
// other, and names do not meet.
func TestOrganisationsDoNotSeeEachOther(t *testing.T) {
	r := newReal(t)
	acme, evil := r.tenant("acme", r.endpoint, once), r.tenant("evil", r.endpoint, once)
	acme.done(acme.RegisterSSHKey(acme.ctx, v3.RegisterSSHKeyRequest{Name: "me", PublicKey: publicKey}))
	group := acme.done(acme.CreateAntiAffinityGroup(acme.ctx, v3.CreateAntiAffinityGroupRequest{Name: "apart"}))
	op := must(acme.CreateSecurityGroup(acme.ctx, v3.CreateSecurityGroupRequest{Name: "web"}))(t)
	sg := op.Reference.ID
	own := evil.done(evil.CreateSecurityGroup(evil.ctx, v3.CreateSecurityGroupRequest{Name: "web"}))
	rule := v3.AddRuleToSecurityGroupRequest{Protocol: "tcp", FlowDirection: "ingress", StartPort: 1, EndPort: 1, Network: "0.0.0.0/0"}
	for name, try := range map[string]func() error{
		"get group":     func() error { _, err := evil.GetSecurityGroup(evil.ctx, sg); return err },
		"delete group":  func() error { _, err := evil.DeleteSecurityGroup(evil.ctx, sg); return err },
		"add rule":      func() error { _, err := evil.AddRuleToSecurityGroup(evil.ctx, sg, rule); return err },
		"get aag":       func() error { _, err := evil.GetAntiAffinityGroup(evil.ctx, group); return err },
		"delete aag":    func() error { _, err := evil.DeleteAntiAffinityGroup(evil.ctx, group); return err },
		"get key":       func() error { _, err := evil.GetSSHKey(evil.ctx, "me"); return err },
		"delete key":    func() error { _, err := evil.DeleteSSHKey(evil.ctx, "me"); return err },
		"get operation": func() error { _, err := evil.GetOperation(evil.ctx, op.ID); return err },
	} {
		if err := try(); !errors.Is(err, v3.ErrNotFound) {
			t.Errorf("%s: %v, want 404", name, err)
		}
	}
	rule.Network, rule.SecurityGroup = "", &v3.SecurityGroupResource{ID: sg}
	_, err := evil.AddRuleToSecurityGroup(evil.ctx, own, rule)
	refused(t, err, v3.ErrBadRequest, "security-group.id")
	if groups := must(evil.ListSecurityGroups(evil.ctx))(t); len(groups.SecurityGroups) != 2 {
		t.Errorf("groups of the other: %+v", groups)
	}
	acme.done(acme.DeleteSecurityGroup(acme.ctx, sg))
}

// TestCutConnectionAcrossARestart: the answer to a create is cut off after the
// commit, the control plane starts anew, and the client's retry finds the first
// answer.
func TestCutConnectionAcrossARestart(t *testing.T) {
	r := newReal(t)
	cut := true
	var second http.Handler
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if !cut {
			second.ServeHTTP(w, q)
			return
		}
		cut = false
		r.edge().ServeHTTP(httptest.NewRecorder(), q)
		second = r.edge() // as after a restart: the store is all that is left
		conn, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		conn.Close()
	}))
	defer proxy.Close()
	s := r.tenant("acme", capi.Endpoint(proxy.URL))
	op := must(s.CreateAntiAffinityGroup(s.ctx, v3.CreateAntiAffinityGroupRequest{Name: "once"}))(t)
	groups := must(s.ListAntiAffinityGroups(s.ctx))(t)
	if len(groups.AntiAffinityGroups) != 1 || groups.AntiAffinityGroups[0].ID != op.Reference.ID {
		t.Errorf("%d groups, answer %+v", len(groups.AntiAffinityGroups), op.Reference)
	}
}
