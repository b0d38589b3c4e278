// SPDX-License-Identifier: Apache-2.0

package debug

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"
)

// Serve answers on a unix socket until ctx ends. A socket that is left from an
// earlier life is replaced.
func Serve(ctx context.Context, socket string, source Source) error {
	if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("serve %s: %w", socket, err)
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return fmt.Errorf("serve %s: %w", socket, err)
	}
	if err := os.Chmod(socket, 0o600); err != nil {
		return errors.Join(fmt.Errorf("serve %s: %w", socket, err), listener.Close())
	}
	server := &http.Server{Handler: Handler(source), ReadHeaderTimeout: 5 * time.Second}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve %s: %w", socket, err)
	}
	return nil
}

// Handler of the service: one path a question, each answered by one document.
func Handler(source Source) http.Handler {
	mux := http.NewServeMux()
	ask := func(path string, f func(*http.Request) (any, error)) {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) {
			answer, err := f(r)
			if err != nil {
				http.Error(w, err.Error(), http.StatusUnprocessableEntity)
				return
			}
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(answer) // the client went away
		})
	}
	ask("/status", func(*http.Request) (any, error) { return source.Status(), nil })
	ask("/ports", func(*http.Request) (any, error) { return source.Ports(), nil })
	ask("/nlb", func(*http.Request) (any, error) { return source.Services(), nil })
	ask("/flow", func(r *http.Request) (any, error) {
		flow, err := ParseFlow(r.URL.Query().Get("client"), r.URL.Query().Get("vip"))
		if err != nil {
			return nil, err
		}
		return source.Flow(flow)
	})
	ask("/diff", func(*http.Request) (any, error) { return source.Diff() })
	ask("/drops", func(*http.Request) (any, error) { return source.Drops() })
	ask("/trace", func(r *http.Request) (any, error) {
		request, err := traceOf(r.URL.Query())
		if err != nil {
			return nil, err
		}
		return source.Trace(request)
	})
	ask("/why", func(r *http.Request) (any, error) {
		tuple, err := tupleOf(r.URL.Query())
		if err != nil {
			return nil, err
		}
		port, err := portOf(r.URL.Query())
		if err != nil {
			return nil, err
		}
		return source.Why(WhyRequest{Port: port, Tuple: tuple})
	})
	mux.HandleFunc("POST /repair", func(w http.ResponseWriter, r *http.Request) {
		done, err := source.Repair(r.Context())
		if err != nil {
			http.Error(w, err.Error(), http.StatusUnprocessableEntity)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(done) // the client went away
	})
	streams(mux, source)
	return mux
}

func streams(mux *http.ServeMux, source Source) {
	mux.HandleFunc("GET /drops/watch", func(w http.ResponseWriter, r *http.Request) {
		stream(w, r, func(ctx context.Context, line func(any) error) error {
			port, err := portOf(r.URL.Query())
			if err != nil {
				return err
			}
			f := DropFilter{Port: port, Reason: r.URL.Query().Get("reason")}
			return source.WatchDrops(ctx, f, func(e DropEvent) error { return line(e) })
		})
	})
	mux.HandleFunc("GET /samples/watch", samples(source))
	mux.HandleFunc("GET /capture", func(w http.ResponseWriter, r *http.Request) {
		stream(w, r, func(ctx context.Context, line func(any) error) error {
			port, err := portOf(r.URL.Query())
			if err != nil {
				return err
			}
			bytes, err := strconv.Atoi(r.URL.Query().Get("bytes"))
			if err != nil {
				return fmt.Errorf("--bytes: %w", err)
			}
			return source.Capture(ctx, CaptureRequest{Port: port, Bytes: bytes}, func(e CaptureEvent) error { return line(e) })
		})
	})
}

func traceOf(q url.Values) (r TraceRequest, err error) {
	if r.Tuple, err = tupleOf(q); err != nil {
		return r, err
	}
	if r.Port, err = portOf(q); err != nil {
		return r, err
	}
	r.Out = q.Get("out") != ""
	r.Flags, err = ParseFlags(q.Get("flags"))
	return r, err
}

// ParseFlow reads "192.0.2.1:40000" and "203.0.113.1:80/tcp". Without a protocol
// it is TCP.
func ParseFlow(client, vip string) (Flow, error) {
	f := Flow{Protocol: 6}
	var err error
	if f.Client, err = netip.ParseAddrPort(client); err != nil {
		return f, fmt.Errorf("read client: %w", err)
	}
	address, protocol, ok := strings.Cut(vip, "/")
	switch {
	case ok && protocol == "udp":
		f.Protocol = 17
	case ok && protocol != "tcp":
		return f, fmt.Errorf("read VIP: protocol %q is neither tcp nor udp", protocol)
	}
	if f.VIP, err = netip.ParseAddrPort(address); err != nil {
		return f, fmt.Errorf("read VIP: %w", err)
	}
	return f, nil
}
