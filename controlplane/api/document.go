// SPDX-License-Identifier: Apache-2.0

package api

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/go-chi/chi/v5"

	"cairn/cloud/api"
	"cairn/cloud/api/exo2"
)

// documentConfig is what the document says about the API as a whole. The server uses
// neither huma's formats nor its own routes.
func documentConfig(cfg Config, registry huma.Registry) huma.Config {
	c := huma.Config{OpenAPI: &huma.OpenAPI{
		OpenAPI: "3.1.0",
		Info:    &huma.Info{Title: "Cairn", Version: "2.0.0", Description: "The public API of a Cairn zone."},
		Servers: []*huma.Server{{URL: api.Endpoint(cfg.PublicURL), Description: cfg.Zone}},
		Components: &huma.Components{
			Schemas: registry,
			SecuritySchemes: map[string]*huma.SecurityScheme{
				exo2.Scheme: {Type: "apiKey", In: "header", Name: "Authorization",
					Description: "HMAC-SHA256 over method, path, body, query arguments and expiry"},
			},
		},
	}}
	c.AllowAdditionalPropertiesByDefault = true
	for _, noun := range api.Nouns(cfg.Operations) {
		c.Tags = append(c.Tags, &huma.Tag{Name: noun})
	}
	return c
}

// describe gives an operation its place in the document.
func describe(registry huma.Registry, op *api.Operation) *huma.Operation {
	d := &huma.Operation{
		OperationID: op.ID, Method: op.Method, Path: op.Path, Summary: op.Summary, Tags: []string{op.Noun},
		Responses: map[string]*huma.Response{"200": response(registry.Schema(op.Response, true, op.ID), "the answer")},
	}
	for _, p := range op.Params {
		d.Parameters = append(d.Parameters, &huma.Param{Name: p.Name, In: "path", Required: true, Schema: paramSchema(p)})
	}
	for _, p := range op.Query {
		d.Parameters = append(d.Parameters, &huma.Param{Name: p.Name, In: "query", Description: p.Doc, Schema: paramSchema(p)})
	}
	if op.Request != nil {
		if op.Method == http.MethodPut {
			admitNulls(registry.Schema(op.Request, false, op.ID), op)
		}
		d.RequestBody = &huma.RequestBody{Required: !op.BodyFree,
			Content: map[string]*huma.MediaType{"application/json": {Schema: registry.Schema(op.Request, true, op.ID)}}}
	}
	fault := registry.Schema(errorType, true, "Error")
	if !op.Unsigned {
		d.Security = []map[string][]string{{exo2.Scheme: {}}}
		d.Responses["403"] = response(fault, "wrong key or signature, or not allowed")
	}
	if op.Request != nil || op.Query != nil {
		d.Responses["400"] = response(fault, "a rule is broken: every field is named")
	}
	if op.Params != nil {
		d.Responses["404"] = response(fault, "no such object")
	}
	if op.Mutates() {
		d.Responses["409"] = response(fault, "exists already, in use, or busy")
	}
	d.Responses["default"] = response(fault, "any other error")
	return d
}

// admitNulls says in the schema of a PUT which fields null removes. The validator never
// sees these nulls.
func admitNulls(s *huma.Schema, op *api.Operation) {
	for _, f := range api.Fields(op.Request) {
		p := s.Properties[f.Name]
		switch {
		case !f.Clear || p == nil:
		case p.Ref == "":
			p.Nullable = true
		default: // beside a reference nothing else may stand in OpenAPI 3.0
			s.Description = strings.TrimSpace(s.Description + " null removes " + f.Name + ".")
		}
	}
}

func response(s *huma.Schema, description string) *huma.Response {
	return &huma.Response{Description: description, Content: map[string]*huma.MediaType{"application/json": {Schema: s}}}
}

func paramSchema(p api.Param) *huma.Schema {
	s := &huma.Schema{Type: huma.TypeString}
	if !p.Plain {
		s.Format = "uuid"
	}
	for _, e := range p.Enum {
		s.Enum = append(s.Enum, e)
	}
	return s
}

// serveDocument serves the document, which is as public as the source.
func serveDocument(router chi.Router, doc *huma.OpenAPI) error {
	text, err := json.MarshalIndent(doc, "", " ")
	if err != nil {
		return fmt.Errorf("write OpenAPI document: %w", err)
	}
	text30, err := doc.Downgrade()
	if err != nil {
		return fmt.Errorf("write OpenAPI 3.0 document: %w", err)
	}
	for path, body := range map[string][]byte{api.DocumentPath: text, api.DocumentPath30: text30} {
		router.Get(path, func(w http.ResponseWriter, _ *http.Request) { write(w, http.StatusOK, body) })
	}
	return nil
}
