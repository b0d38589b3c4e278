// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"time"
)

// ContentType is that of the text format.
const ContentType = "text/plain; version=0.0.4; charset=utf-8"

// Check tells whether an address is one that metrics may be served at: unix:PATH, or
// a loopback address with a port. What is counted is the operator's alone.
func Check(address string) error {
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		if path == "" {
			return errors.New("unix: without a path")
		}
		return nil
	}
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("neither unix:PATH nor ADDRESS:PORT: %w", err)
	}
	if !at.Addr().IsLoopback() {
		return fmt.Errorf("%s is no loopback address", at.Addr())
	}
	return nil
}

// Serve GET /metrics at an address that Check has passed, until ctx ends. A socket
// that is left from an earlier life is replaced.
func Serve(ctx context.Context, address string, source Source) error {
	listener, err := listen(address)
	if err != nil {
		return fmt.Errorf("serve metrics at %s: %w", address, err)
	}
	server := &http.Server{Handler: Handler(source), ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 30 * time.Second}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve metrics at %s: %w", address, err)
	}
	return nil
}

func listen(address string) (net.Listener, error) {
	path, unix := strings.CutPrefix(address, "unix:")
	if !unix {
		return net.Listen("tcp", address)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	return listener, nil
}

// Handler answers GET /metrics. What cannot be read is an error, not half a page.
func Handler(source Source) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		var b bytes.Buffer
		if err := Write(&b, source); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", ContentType)
		_, _ = w.Write(b.Bytes()) // the client went away
	})
	return mux
}
