// SPDX-License-Identifier: Apache-2.0

package health_test

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"cairn/lb/health"
)

func dial(ctx context.Context, network, address string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, network, address)
}

func at(t *testing.T, address string) health.Check {
	t.Helper()
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		t.Fatal(err)
	}
	return health.Check{Address: ap.Addr(), Port: ap.Port(), Timeout: time.Second}
}

func TestProbeHTTP(t *testing.T) {
	var followed atomic.Bool
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/", "/204":
			w.WriteHeader(http.StatusNoContent)
		case "/302":
			http.Redirect(w, r, "/followed", http.StatusFound)
		case "/followed":
			followed.Store(true)
		case "/host":
			if r.Host != "www.example.net" {
				w.WriteHeader(http.StatusBadRequest)
			}
		case "/hangs":
			<-r.Context().Done()
		default:
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	plain, secret := httptest.NewServer(handler), httptest.NewTLSServer(handler)
	defer plain.Close()
	defer secret.Close()
	for _, c := range []struct {
		mode     health.Mode
		uri, sni string
		says     string
	}{
		{health.HTTP, "", "", ""},
		{health.HTTP, "/204", "", ""},
		{health.HTTP, "204", "", ""},
		{health.HTTP, "/503", "", "status 503"},
		{health.HTTP, "/302", "", "status 302"},
		{health.HTTP, "/hangs", "", "deadline exceeded"},
		{health.HTTP, "/%zz", "", "make request"},
		{health.HTTPS, "/204", "", ""},
		{health.HTTPS, "/host", "www.example.net", ""},
		{health.HTTPS, "/host", "", "status 400"},
		{"ftp", "/", "", `unknown mode "ftp"`},
	} {
		server := plain
		if c.mode == health.HTTPS {
			server = secret
		}
		check := at(t, server.Listener.Addr().String())
		check.Mode, check.URI, check.SNI = c.mode, c.uri, c.sni
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		err := health.Probe(ctx, dial, check)
		cancel()
		if (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s %s: %v, want %q", c.mode, c.uri, err, c.says)
		}
	}
	if followed.Load() {
		t.Error("a redirect was followed")
	}
}

func TestProbeTCP(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	check := at(t, listener.Addr().String())
	check.Mode = health.TCP
	if err := health.Probe(t.Context(), dial, check); err != nil {
		t.Errorf("open: %v", err)
	}
	listener.Close()
	if err := health.Probe(t.Context(), dial, check); err == nil || !strings.HasPrefix(err.Error(), "connect: ") {
		t.Errorf("closed: %v", err)
	}
}

// An https probe asks for the name it was told, in TLS too, and none if it was
// told none; whose certificate it gets is judged only where the check says so.
func TestProbeAsksForAName(t *testing.T) {
	var asked atomic.Value
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {}))
	server.TLS = &tls.Config{GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		asked.Store(hello.ServerName)
		return nil, nil
	}}
	server.StartTLS()
	defer server.Close()
	for _, c := range []struct {
		sni    string
		verify bool
		says   string
	}{
		{"www.example.net", false, ""},
		{"", false, ""},
		{"www.example.net", true, "certificate"},
	} {
		check := at(t, server.Listener.Addr().String())
		check.Mode, check.SNI, check.Verify = health.HTTPS, c.sni, c.verify
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		err := health.Probe(ctx, dial, check)
		cancel()
		if (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) || asked.Load() != c.sni {
			t.Errorf("%+v: %v, asked for %q", c, err, asked.Load())
		}
	}
	// Over TCP alone no TLS is spoken: the server would have been asked.
	asked.Store("nothing")
	check := at(t, server.Listener.Addr().String())
	check.Mode, check.SNI = health.TCP, "www.example.net"
	if err := health.Probe(t.Context(), dial, check); err != nil || asked.Load() != "nothing" {
		t.Errorf("tcp: %v, asked for %v", err, asked.Load())
	}
}

// A server that speaks no HTTP, or too much of it, is a failure and nothing worse.
func TestProbeHostileServer(t *testing.T) {
	for name, answer := range map[string]string{
		"silence":     "",
		"garbage":     "\x00\xff\x00\xff\r\n\r\n",
		"endless":     "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 1<<20),
		"no status":   "HTTP/1.1 \r\n\r\n",
		"interim":     strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", 100),
		"status 1000": "HTTP/1.1 1000 OK\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			pipe := func(context.Context, string, string) (net.Conn, error) {
				near, far := net.Pipe()
				go func() {
					go far.Write([]byte(answer))
					buf := make([]byte, 4096)
					for {
						if _, err := far.Read(buf); err != nil {
							far.Close()
							return
						}
					}
				}()
				return near, nil
			}
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			if err := health.Probe(ctx, pipe, health.Check{Mode: health.HTTP, Address: netip.MustParseAddr("192.0.2.1"), Port: 80}); err == nil {
				t.Error("was taken for a success")
			}
		})
	}
}
