// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"context"
	"reflect"
	"slices"
	"strings"
	"testing"

	v3 "github.com/exoscale/egoscale/v3"

	capi "cairn/cloud/api"
)

// beyond are the fields that we have and the contract has not: clients ignore them.
var beyond = []string{
	"security-group.visibility",
	"instance-pool.created-at",
	"instance-type.flows",
	"instance-type.rate-from",
	"instance-type.rate-to",
	"instance.flow-log",
	"private-network.firewall",
	"private-network.snooping",
	"private-network.broadcast-rate",
	".allowed-addresses",
	".protocol-number",
	"load-balancer.addressfamily", // in the newer contract
	".connection-limit",
	".source-rate",
	".quic",
	".keep-established",
}

// method finds the client's method for an operation: get-ssh-key is GetSSHKey.
func method(id string) (reflect.Method, bool) {
	c := reflect.TypeFor[*v3.Client]()
	for method := range c.Methods() {
		if strings.EqualFold(method.Name, strings.ReplaceAll(id, "-", "")) {
			return method, true
		}
	}
	return reflect.Method{}, false
}

// Every operation is one that the client has, with the same number of path
// parameters, with or without a body; and every field that the client can send is
// known, and every field that we answer is one that the client reads.
func TestShapesAreTheClients(t *testing.T) {
	for _, op := range capi.Operations {
		m, ok := method(op.ID)
		if op.Extension {
			if ok {
				t.Errorf("%s: the client has it, so it is no extension", op.ID)
			}
			continue
		}
		if !ok {
			t.Errorf("%s: the client has no such operation", op.ID)
			continue
		}
		params := 0
		var request reflect.Type
		for i := 1; i < m.Type.NumIn(); i++ { // the receiver is first
			switch in := m.Type.In(i); {
			case in == reflect.TypeFor[context.Context]() || in.Kind() == reflect.Slice: // options
			case in.Kind() == reflect.Struct:
				request = in
			default:
				params++
			}
		}
		if params != len(op.Params) || (request != nil) != (op.Request != nil) {
			t.Errorf("%s: %d parameters, body %v; the client has %d, %v", op.ID, len(op.Params), op.Request, params, request)
			continue
		}
		if request != nil {
			ours := names(op.Request)
			for name, theirs := range names(request) {
				if _, ok := ours[name]; !ok {
					t.Errorf("%s: the client sends %s, which the request does not know", op.ID, name)
				} else if name == "healthcheck" || name == "icmp" {
					compare(t, op.ID+" "+name, theirs, ours[name])
				}
			}
		}
		compare(t, op.Noun, op.Response, m.Type.Out(0))
	}
}

// compare checks that every field of have is one of want, down to the leaves.
func compare(t *testing.T, at string, have, want reflect.Type) {
	t.Helper()
	have, want = bare(have), bare(want)
	if have.Kind() != reflect.Struct || want.Kind() != reflect.Struct || have.PkgPath() == "time" || have.PkgPath() == "net/netip" {
		return
	}
	known := names(want)
	for name, inner := range names(have) {
		path := at + "." + name
		if theirs, ok := known[name]; ok {
			compare(t, path, inner, theirs)
		} else if !slices.ContainsFunc(beyond, func(b string) bool { return strings.HasSuffix(strings.Replace(path, "s.", ".", 1), b) }) {
			t.Errorf("%s is no field of the client's %s", path, want.Name())
		}
	}
}

// bare takes pointers and lists off a type.
func bare(t reflect.Type) reflect.Type {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice && t.Elem().Kind() != reflect.Uint8 {
		t = t.Elem()
	}
	return t
}

// names returns the json fields of a shape.
func names(t reflect.Type) map[string]reflect.Type {
	out := map[string]reflect.Type{}
	if t = bare(t); t.Kind() != reflect.Struct {
		return out
	}
	for field := range t.Fields() {
		name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		if name != "" && name != "-" {
			out[name] = field.Type
		}
	}
	return out
}
