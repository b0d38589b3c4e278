// SPDX-License-Identifier: Apache-2.0

// Package api is Cairn's public API as data: every operation with its id, method,
// path and shapes. The server's routes, validation and OpenAPI document, the client
// and the verbs of the command line are derived from Operations; a path of the API
// is written here and nowhere else.
//
// The package performs nothing. Start at operations.go for the list; walk.go is the
// one walk over a shape's tags, overlay.go the meaning of a PUT.
package api

import (
	"net/url"
	"reflect"
	"slices"
	"strings"

	"cairn/cloud"
)

const (
	// Prefix stands before the path of every operation.
	Prefix = "/v2"
	// DocumentPath and DocumentPath30 serve the OpenAPI document, 3.1 and 3.0.
	DocumentPath   = "/openapi.json"
	DocumentPath30 = "/openapi-3.0.json"
)

// Operation is one thing a customer can ask for.
type Operation struct {
	ID      string // unique, kebab-case: "add-service-to-load-balancer"
	Method  string
	Path    string // below Prefix, with {parameters}
	Summary string

	Params []Param // of the path, in its order
	Query  []Param // all optional

	Request  reflect.Type // shape of the body, nil when there is none
	Response reflect.Type // shape of the answer: cloud.Operation when Async
	BodyFree bool         // the body may be absent

	Async     bool   // answers an operation that a client polls
	Reference string // noun of the object that the operation refers to, "" for none
	Unsigned  bool   // served without a signature
	Extension bool   // beyond the contract: its clients do not know it

	Noun string // what it is filed under: the first word of its path
	Verb string // what it does to the noun: "list", "create", "add-service"
}

// Param is a parameter of a path or of a query.
type Param struct {
	Name   string
	Noun   string   // what its value identifies, "" for a plain value
	Enum   []string // the values it may take, nil for any
	Doc    string
	Plain  bool // the value is not an id: a name, a field, an address
	Parent int  // of a child's id: 1 + the index of the path parameter that identifies its parent
}

// Find returns the operation with this id, nil when there is none.
func Find(operations []Operation, id string) *Operation {
	for i := range operations {
		if operations[i].ID == id {
			return &operations[i]
		}
	}
	return nil
}

// Route returns the path as a client requests it, Prefix included, with args in
// the place of its parameters.
func (o *Operation) Route(args map[string]string) string {
	path := o.Path
	for _, p := range o.Params {
		path = strings.ReplaceAll(path, "{"+p.Name+"}", url.PathEscape(args[p.Name]))
	}
	return Prefix + path
}

// Refer returns the reference that an answer of o carries for the object id, nil
// when its answers carry none.
func (o *Operation) Refer(id cloud.ID) *cloud.Reference {
	if o.Reference == "" || id == "" {
		return nil
	}
	return &cloud.Reference{ID: id, Link: Prefix + "/" + o.Reference + "/" + string(id), Command: "get-" + o.Reference}
}

// Mutates says that the operation changes something.
func (o *Operation) Mutates() bool { return o.Method != "GET" }

// Endpoint returns the base URL that clients use, given the public URL of a server.
func Endpoint(publicURL string) string {
	u := strings.TrimRight(publicURL, "/")
	if strings.HasSuffix(u, Prefix) {
		return u
	}
	return u + Prefix
}

// Nouns returns the nouns of operations in order of appearance.
func Nouns(operations []Operation) []string {
	var nouns []string
	for _, o := range operations {
		if !slices.Contains(nouns, o.Noun) {
			nouns = append(nouns, o.Noun)
		}
	}
	return nouns
}
