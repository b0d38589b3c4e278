// SPDX-License-Identifier: Apache-2.0

package api

import (
	"bytes"
	"encoding"
	"encoding/json"
	"errors"
	"io"
	"reflect"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/validation"

	"cairn/cloud"
	"cairn/cloud/api"
)

// uuidText is the schema of cloud.ID, which as a standard library type cannot bring
// its own.
type uuidText string

// Schema makes an id a UUID wherever one stands.
func (uuidText) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{
		Type: huma.TypeString, PatternDescription: "a UUID",
		Pattern: "^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$",
	}
}

func newRegistry() huma.Registry {
	r := huma.NewMapRegistry("#/components/schemas/", huma.DefaultSchemaNamer)
	r.RegisterTypeAlias(reflect.TypeFor[cloud.ID](), reflect.TypeFor[uuidText]())
	return r
}

// decode reads a body into a new value of the operation's request shape. Fields that
// the shape does not know are dropped, in any case but their own too, before anything
// else looks at them. keys are the top-level fields as they were sent.
func decode(registry huma.Registry, schema *huma.Schema, op *api.Operation, raw []byte) (body any, keys map[string]json.RawMessage, faults []cloud.FieldError) {
	if len(bytes.TrimSpace(raw)) == 0 {
		if !op.BodyFree {
			return nil, nil, []cloud.FieldError{cloud.Fault("", "request body: expected a JSON object")}
		}
		raw = []byte("{}")
	}
	document, err := parse(raw)
	if err != nil {
		return nil, nil, []cloud.FieldError{cloud.Fault("", "request body: expected a JSON object: %v", err)}
	}
	prune(registry, schema, document)

	checked := document
	if op.Method == "PUT" {
		checked, faults = withoutNulls(op, document)
	}
	faults = append(faults, check(registry, schema, checked)...)

	value := reflect.New(op.Request).Interface()
	if err := json.Unmarshal(mustMarshal(checked), value); err != nil {
		if faults == nil {
			faults = []cloud.FieldError{decodeFault(err)}
		}
		return nil, nil, faults
	}
	if v, ok := value.(cloud.Validator); ok {
		faults = append(faults, unsaid(v.Validate(), faults)...)
	}
	keys = make(map[string]json.RawMessage, len(document))
	for name, v := range document {
		keys[name] = mustMarshal(v)
	}
	return value, keys, faults
}

// parse reads exactly one JSON object.
func parse(raw []byte) (map[string]any, error) {
	d := json.NewDecoder(bytes.NewReader(raw))
	var document map[string]any
	if err := d.Decode(&document); err != nil {
		return nil, err
	}
	if document == nil {
		return nil, errors.New("it is null")
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, errors.New("something follows it")
	}
	return document, nil
}

// prune drops what the schema does not know.
func prune(registry huma.Registry, s *huma.Schema, v any) {
	for s != nil && s.Ref != "" {
		s = registry.SchemaFromRef(s.Ref)
	}
	if s == nil {
		return
	}
	switch v := v.(type) {
	case map[string]any:
		if s.Properties == nil { // a mapping, or not an object at all
			return
		}
		for name, inner := range v {
			if p := s.Properties[name]; p != nil {
				prune(registry, p, inner)
			} else {
				delete(v, name)
			}
		}
	case []any:
		for _, inner := range v {
			prune(registry, s.Items, inner)
		}
	}
}

// withoutNulls takes the nulls that clear a field out of a PUT, and refuses others.
func withoutNulls(op *api.Operation, document map[string]any) (map[string]any, []cloud.FieldError) {
	var faults []cloud.FieldError
	rest := make(map[string]any, len(document))
	for _, f := range api.Fields(op.Request) {
		v, sent := document[f.Name]
		switch {
		case !sent:
		case v == nil && f.Required: // the schema says so
			rest[f.Name] = v
		case v == nil && !f.Clear:
			faults = append(faults, api.NullFault(f.Name))
		case v != nil:
			rest[f.Name] = v
		}
	}
	return rest, faults
}

// check validates a document against its schema.
func check(registry huma.Registry, s *huma.Schema, document map[string]any) []cloud.FieldError {
	var result huma.ValidateResult
	huma.Validate(registry, s, huma.NewPathBuffer(nil, 0), huma.ModeWriteToServer, document, &result)
	before, after, _ := strings.Cut(validation.MsgExpectedRequiredProperty, "%s")
	var faults []cloud.FieldError
	for _, err := range result.Errors {
		var d *huma.ErrorDetail
		if !errors.As(err, &d) {
			faults = append(faults, cloud.Fault("", "%v", err))
			continue
		}
		f := cloud.FieldError{Location: d.Location, Detail: d.Message}
		// A missing field is reported at the object it is missing from.
		if name, ok := strings.CutPrefix(d.Message, before); ok && strings.HasSuffix(name, after) {
			f = cloud.Under(d.Location, []cloud.FieldError{{Location: strings.TrimSuffix(name, after), Detail: "required"}})[0]
			f.Location = strings.TrimPrefix(f.Location, ".")
		}
		faults = append(faults, f)
	}
	return faults
}

// unsaid leaves out the faults of fields that have one already.
func unsaid(faults, said []cloud.FieldError) []cloud.FieldError {
	var out []cloud.FieldError
	for _, f := range faults {
		known := false
		for _, s := range said {
			known = known || s.Location == f.Location || strings.HasPrefix(f.Location, s.Location+".")
		}
		if !known {
			out = append(out, f)
		}
	}
	return out
}

func decodeFault(err error) cloud.FieldError {
	var t *json.UnmarshalTypeError
	if errors.As(err, &t) {
		return cloud.Fault(t.Field, "expected %s", t.Type)
	}
	return cloud.Fault("", "request body: %v", err)
}

var textMarshaler = reflect.TypeFor[encoding.TextMarshaler]()

// whole returns a copy of an answer in which no list is null: a list that is nil is
// empty, unless the shape leaves an empty one out.
func whole(v any) any {
	if v == nil {
		return nil
	}
	return filled(reflect.ValueOf(v)).Interface()
}

func filled(v reflect.Value) reflect.Value {
	switch {
	case v.Type().Implements(textMarshaler):
	case v.Kind() == reflect.Pointer && !v.IsNil() && v.Elem().Kind() == reflect.Struct:
		p := reflect.New(v.Type().Elem())
		p.Elem().Set(filled(v.Elem()))
		return p
	case v.Kind() == reflect.Slice:
		list := reflect.MakeSlice(v.Type(), v.Len(), v.Len())
		for i := range v.Len() {
			list.Index(i).Set(filled(v.Index(i)))
		}
		return list
	case v.Kind() == reflect.Struct:
		s := reflect.New(v.Type()).Elem()
		s.Set(v)
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				s.Field(i).Set(filled(v.Field(i)))
			}
		}
		return s
	}
	return v
}
