// SPDX-License-Identifier: Apache-2.0

// Package metadata owns the service at 169.254.169.254 by which an instance
// learns who it is. Who asks is told by the port that the packet came through:
// the programs translate the source to 198.18.0.0/15 + the port's number. The
// package never looks at an address of the guest's own, never asks the control
// plane, and changes nothing. Start at Handler; tree.go is what is told, serve.go
// the only part that touches the network.
package metadata

import (
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"cairn/cloud/wire"
	"cairn/dataplane/host"
	"cairn/dataplane/table"
)

// A port may ask burst times at once, and perSecond times a second for long: a
// guest that boots asks for some 20 documents, one that spins asks for ever.
const (
	perSecond = 20
	burst     = 100
)

// maxPath bounds what is looked at of a request's path.
const maxPath = 256

// Handler answers what guests ask. It reads the tables as they are at that
// moment.
type Handler struct {
	view  func() table.View
	limit *limit
}

// New makes a handler over the desired tables; now is the clock of its limits.
func New(view func() table.View, now func() time.Time) *Handler {
	return &Handler{view: view, limit: newLimit(perSecond, burst, now)}
}

// Identity is the address that port's requests come from.
func Identity(port uint32) (netip.Addr, bool) {
	base := host.Identities.Addr().As4()
	if port == 0 || port >= 1<<(32-host.Identities.Bits()) {
		return netip.Addr{}, false
	}
	base[1] += byte(port >> 16)
	base[2], base[3] = byte(port>>8), byte(port)
	return netip.AddrFrom4(base), true
}

// PortOf is the reverse of Identity: no address outside the range is anybody.
func PortOf(peer netip.Addr) (uint32, bool) {
	if peer = peer.Unmap(); !host.Identities.Contains(peer) {
		return 0, false
	}
	a, base := peer.As4(), host.Identities.Addr().As4()
	port := uint32(a[1]-base[1])<<16 | uint32(a[2])<<8 | uint32(a[3])
	return port, port != 0
}

// asker is the instance behind a request, with the port it asks through.
func asker(view table.View, remote string) (wire.Instance, wire.Port, bool) {
	peer, err := netip.ParseAddrPort(remote)
	if err != nil {
		return wire.Instance{}, wire.Port{}, false
	}
	number, ok := PortOf(peer.Addr())
	if !ok {
		return wire.Instance{}, wire.Port{}, false
	}
	port, ok := table.Get[wire.Port](view, strconv.FormatUint(uint64(number), 10))
	if !ok {
		return wire.Instance{}, wire.Port{}, false
	}
	instance, ok := table.Get[wire.Instance](view, port.Instance)
	return instance, port, ok
}

// ServeHTTP answers GET and HEAD. A stranger learns nothing, not even what
// exists; a request that was passed on by a proxy inside the guest is refused,
// since then its sender is not the guest.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	instance, port, ok := asker(h.view(), r.RemoteAddr)
	if !ok {
		http.NotFound(w, r)
		return
	}
	if !h.limit.take(port.ID) {
		w.Header().Set("Retry-After", "1")
		http.Error(w, "too many requests", http.StatusTooManyRequests)
		return
	}
	switch {
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
		return
	case r.Header.Get("X-Forwarded-For") != "":
		http.Error(w, "forbidden", http.StatusForbidden)
		return
	case len(r.URL.Path) > maxPath:
		http.NotFound(w, r)
		return
	}
	body, kind, ok := find(instance, port, r.URL.Path)
	if !ok {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.Header().Set("X-Content-Type-Options", "nosniff")
	_, _ = w.Write(body) // the guest is gone
}

// steps of a path; slashes too many do not count.
func steps(path string) []string {
	return strings.FieldsFunc(path, func(r rune) bool { return r == '/' })
}
