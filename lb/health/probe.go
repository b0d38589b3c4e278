// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
)

// Dialer opens a connection from where the probe is to come from.
type Dialer func(ctx context.Context, network, address string) (net.Conn, error)

// Probe does one probe and returns nil for a success. It takes no longer than
// ctx allows; Timeout is the caller's to put into it.
func Probe(ctx context.Context, dial Dialer, c Check) error {
	switch c.Mode {
	case TCP:
		return probeTCP(ctx, dial, c)
	case HTTP, HTTPS:
		return probeHTTP(ctx, dial, c)
	}
	return fmt.Errorf("unknown mode %q", c.Mode)
}

func (c Check) addr() string { return netip.AddrPortFrom(c.Address, c.Port).String() }

func probeTCP(ctx context.Context, dial Dialer, c Check) error {
	conn, err := dial(ctx, "tcp", c.addr())
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	reset(conn)
	return conn.Close()
}

// reset makes the close of a connection leave nothing behind: thousands of
// checks would hold thousands of ports in TIME_WAIT.
func reset(conn net.Conn) {
	if c, ok := conn.(interface{ SetLinger(int) error }); ok {
		_ = c.SetLinger(0) // refused: the connection closes the usual way
	}
}

func probeHTTP(ctx context.Context, dial Dialer, c Check) error {
	uri := "/" + strings.TrimPrefix(c.URI, "/")
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, string(c.Mode)+"://"+c.addr()+uri, nil)
	if err != nil {
		return fmt.Errorf("make request: %w", err)
	}
	request.Header.Set("User-Agent", "cairn-health-check")
	if c.SNI != "" {
		request.Host = c.SNI
	}
	transport := &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := dial(ctx, network, address)
			if err != nil {
				return nil, fmt.Errorf("connect: %w", err)
			}
			reset(conn)
			return conn, nil
		},
		// Asked whether it serves; who it is, only where the check wants to know.
		TLSClientConfig:        &tls.Config{ServerName: c.SNI, InsecureSkipVerify: !c.Verify},
		DisableKeepAlives:      true,
		MaxResponseHeaderBytes: 64 << 10,
	}
	defer transport.CloseIdleConnections()
	// RoundTrip and not a Client: redirects are an answer, and not 2xx.
	response, err := transport.RoundTrip(request)
	if err != nil {
		return err
	}
	response.Body.Close()
	if response.StatusCode/100 != 2 {
		return fmt.Errorf("status %d", response.StatusCode)
	}
	return nil
}
