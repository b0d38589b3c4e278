// SPDX-License-Identifier: Apache-2.0

package zone

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"
)

// goodbye is how long requests have to end.
const goodbye = 5 * time.Second

// Listen is the API's socket: the one that was handed over (LISTEN_FDS=1), so
// that a restart refuses no connection, or a new one.
func Listen(address string) (net.Listener, error) {
	n, _ := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	if pid := os.Getenv("LISTEN_PID"); n == 0 || pid != "" && pid != strconv.Itoa(os.Getpid()) {
		return net.Listen("tcp", address)
	}
	const first = 3 // as the convention has it
	l, err := net.FileListener(os.NewFile(first, "api"))
	if err != nil {
		return nil, fmt.Errorf("take over the socket: %w", err)
	}
	return l, nil
}

// serve answers until ctx ends, then lets requests in work finish.
func serve(ctx context.Context, l net.Listener, h http.Handler) error {
	server := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute}
	stopped := make(chan error, 1)
	go func() {
		<-ctx.Done()
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), goodbye)
		defer cancel()
		stopped <- server.Shutdown(last)
	}()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return <-stopped
}
