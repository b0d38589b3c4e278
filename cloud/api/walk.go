// SPDX-License-Identifier: Apache-2.0

package api

import (
	"encoding"
	"reflect"
	"strings"
	"sync"
)

// Sort is what a field holds, as a form or a flag sees it.
type Sort int

const (
	Text    Sort = iota // string, id, address, time
	Number              // integer
	Bool                // true or false
	Object              // a nested shape
	List                // of Elem
	Mapping             // strings by string
)

// Field is a field of a shape, as its tags describe it.
type Field struct {
	Name     string       // json name
	Type     reflect.Type // without pointer
	Sort     Sort
	Elem     reflect.Type // of a List, without pointer
	Required bool
	Clear    bool     // null removes it in a PUT
	Ref      string   // noun of the object that it names, "" when it names none
	Enum     []string // the values it may take
	Doc      string
	Table    bool // a column of the noun's table
	File     bool // the value is usually the content of a file
	Base64   bool // the value travels in base64
	Secret   bool // the value is written to no log and no audit

	index int
}

// Of returns the field of the shape v, following a pointer; the zero Value when
// the pointer is nil.
func (f Field) Of(v reflect.Value) reflect.Value {
	v = v.Field(f.index)
	if v.Kind() == reflect.Pointer {
		return v.Elem()
	}
	return v
}

// IsZero says that the field of the shape v is absent.
func (f Field) IsZero(v reflect.Value) bool { return v.Field(f.index).IsZero() }

var (
	walked        sync.Map // reflect.Type → []Field
	textMarshaler = reflect.TypeFor[encoding.TextMarshaler]()
)

// Fields walks over the fields of a shape in their order.
func Fields(shape reflect.Type) []Field {
	shape = direct(shape)
	if f, ok := walked.Load(shape); ok {
		return f.([]Field)
	}
	var fields []Field
	for i := range shape.NumField() {
		s := shape.Field(i)
		name, options, _ := strings.Cut(s.Tag.Get("json"), ",")
		if !s.IsExported() || name == "-" || name == "" {
			continue
		}
		f := Field{
			Name: name, Type: direct(s.Type), index: i,
			Required: !strings.Contains(options, "omit") && s.Tag.Get("required") != "false",
			Clear:    s.Tag.Get("clear") == "true", Table: s.Tag.Get("table") == "true", File: s.Tag.Get("file") == "true",
			Base64: s.Tag.Get("encoding") == "base64", Secret: s.Tag.Get("secret") == "true", Ref: s.Tag.Get("ref"), Doc: s.Tag.Get("doc"),
		}
		if e := s.Tag.Get("enum"); e != "" {
			f.Enum = strings.Split(e, ",")
		}
		f.Sort = SortOf(f.Type)
		if f.Sort == List {
			f.Elem = direct(f.Type.Elem())
		}
		fields = append(fields, f)
	}
	walked.Store(shape, fields)
	return fields
}

// SortOf says what a type holds.
func SortOf(t reflect.Type) Sort {
	if t.Implements(textMarshaler) {
		return Text
	}
	switch t.Kind() {
	case reflect.Bool:
		return Bool
	case reflect.Int, reflect.Int64, reflect.Int32, reflect.Int16, reflect.Int8,
		reflect.Uint, reflect.Uint64, reflect.Uint32, reflect.Uint16, reflect.Uint8:
		return Number
	case reflect.Struct:
		return Object
	case reflect.Slice:
		return List
	case reflect.Map:
		return Mapping
	}
	return Text
}

func direct(t reflect.Type) reflect.Type {
	if t.Kind() == reflect.Pointer {
		return t.Elem()
	}
	return t
}
