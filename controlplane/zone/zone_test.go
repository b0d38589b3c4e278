// SPDX-License-Identifier: Apache-2.0

package zone

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"testing"
	"time"

	"cairn/controlplane/store"
)

func found(t *testing.T) Folder {
	t.Helper()
	f := Folder{State: t.TempDir()}
	wanted := Founding{Zone: "ch-gva-2", Organisation: "default", Pools: map[string]*[]string{store.AddressVIP: {"203.0.113.0/24"}}}
	key, err := f.Found(t.Context(), wanted)
	if err != nil || key.Key == "" || key.Secret == "" {
		t.Fatalf("found: %+v, %v", key, err)
	}
	if _, err := f.Found(t.Context(), wanted); !errors.Is(err, store.ErrExists) {
		t.Errorf("founded again: %v", err)
	}
	return f
}

// A zone that was founded serves its API until it is told to stop, and its folder
// has room for one daemon.
func TestAFoundedZoneServes(t *testing.T) {
	f := found(t)
	unlock, err := f.Lock(0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Lock(0); err == nil {
		t.Error("two daemons on a folder")
	}
	time.AfterFunc(50*time.Millisecond, unlock) // a daemon that is about to end
	if unlock, err = f.Lock(10 * time.Second); err != nil {
		t.Error(err)
	} else {
		unlock()
	}
	s, err := f.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	z, err := New(t.Context(), f, s, Config{PublicURL: "http://api.example", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- z.Run(ctx, l, nil) }()
	answer, err := http.Get("http://" + l.Addr().String() + "/v2/instance")
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	if answer.StatusCode != http.StatusForbidden && answer.StatusCode != http.StatusUnauthorized {
		t.Errorf("without a signature: %s", answer.Status)
	}
	stop()
	if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("stopped: %v", err)
	}
}

func TestPoolsAndHypervisorsAreAdded(t *testing.T) {
	f := found(t)
	if err := f.AddPools(t.Context(), store.AddressInstance, []string{"198.51.100.0/24"}); err != nil {
		t.Error(err)
	}
	if err := f.AddPools(t.Context(), "nothing", []string{"198.51.100.0/24"}); err == nil {
		t.Error("a pool of no kind")
	}
	if err := f.AddPools(t.Context(), store.AddressInstance, []string{"198.51.100.0"}); err == nil {
		t.Error("a pool that is no prefix")
	}
	token, err := f.Admit(t.Context(), "hv1", "rack1")
	if err != nil || token.String() == "" {
		t.Errorf("token %q, %v", token, err)
	}
	if _, err := (Folder{State: t.TempDir()}).Admit(t.Context(), "hv1", ""); err == nil {
		t.Error("a hypervisor of a zone that nobody founded")
	}
}
