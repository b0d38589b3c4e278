// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"cairn/cloud/api"
)

// print writes an answer: as it came, or as a table of its shape.
func (c *cli) print(raw json.RawMessage, shape reflect.Type) error {
	if c.output == "json" {
		var b bytes.Buffer
		if err := json.Indent(&b, raw, "", "  "); err != nil {
			return fmt.Errorf("print answer: %w", err)
		}
		b.WriteByte('\n')
		_, err := c.Out.Write(b.Bytes())
		return err
	}
	answer := reflect.New(shape)
	if err := json.Unmarshal(raw, answer.Interface()); err != nil {
		return fmt.Errorf("print answer: %w", err)
	}
	w := tabwriter.NewWriter(c.Out, 0, 0, 2, ' ', 0)
	if rows, ok := rowsOf(answer.Elem()); ok {
		table(w, rows)
	} else {
		sheet(w, answer.Elem())
	}
	return w.Flush()
}

// rowsOf returns the rows of an answer that is a list: a shape whose only field is
// one of shapes.
func rowsOf(v reflect.Value) (reflect.Value, bool) {
	fields := api.Fields(v.Type())
	if len(fields) != 1 || fields[0].Sort != api.List || fields[0].Elem.Kind() != reflect.Struct {
		return reflect.Value{}, false
	}
	return fields[0].Of(v), true
}

// table prints rows by the columns that their shape marks.
func table(w io.Writer, rows reflect.Value) {
	var columns []api.Field
	var head []string
	for _, f := range api.Fields(rows.Type().Elem()) {
		if f.Table {
			columns, head = append(columns, f), append(head, strings.ToUpper(f.Name))
		}
	}
	fmt.Fprintln(w, strings.Join(head, "\t"))
	for i := range rows.Len() {
		cells := make([]string, len(columns))
		for j, f := range columns {
			cells[j] = cell(f.Of(rows.Index(i)))
		}
		fmt.Fprintln(w, strings.Join(cells, "\t"))
	}
}

// sheet prints one object, a field a line, and its lists of objects as tables below.
func sheet(w io.Writer, v reflect.Value) {
	var below []api.Field
	lines(w, "", v, &below)
	for _, f := range below {
		fmt.Fprintf(w, "\n%s:\n", f.Name)
		table(w, f.Of(v))
	}
}

func lines(w io.Writer, prefix string, v reflect.Value, below *[]api.Field) {
	for _, f := range api.Fields(v.Type()) {
		value := f.Of(v)
		switch {
		case !value.IsValid() || value.IsZero() && (!f.Required || f.Sort != api.Bool && f.Sort != api.Number):
		case f.Sort == api.List && value.Len() == 0:
		case f.Sort == api.List && prefix == "" && hasTable(f.Elem):
			*below = append(*below, f)
		case f.Sort == api.Object && refKey(f.Type) == "" && value.Kind() == reflect.Struct:
			lines(w, prefix+f.Name+"-", value, below)
		default:
			fmt.Fprintf(w, "%s\t%s\n", prefix+f.Name, cell(value))
		}
	}
}

func hasTable(t reflect.Type) bool {
	if t.Kind() != reflect.Struct {
		return false
	}
	for _, f := range api.Fields(t) {
		if f.Table {
			return true
		}
	}
	return false
}

// cell writes a value in one line.
func cell(v reflect.Value) string {
	if !v.IsValid() {
		return ""
	}
	switch x := v.Interface().(type) {
	case time.Time:
		if x.IsZero() {
			return ""
		}
		return x.UTC().Format(time.RFC3339)
	case fmt.Stringer:
		if v.IsZero() {
			return ""
		}
		return x.String()
	}
	switch v.Kind() {
	case reflect.Slice:
		parts := make([]string, v.Len())
		for i := range parts {
			parts[i] = cell(v.Index(i))
		}
		return strings.Join(parts, ", ")
	case reflect.Map:
		var parts []string
		for _, k := range v.MapKeys() {
			parts = append(parts, fmt.Sprintf("%v=%v", k, v.MapIndex(k)))
		}
		slices.Sort(parts)
		return strings.Join(parts, ", ")
	case reflect.Struct:
		var parts []string
		for _, f := range api.Fields(v.Type()) {
			if !f.IsZero(v) {
				parts = append(parts, cell(f.Of(v)))
			}
		}
		return strings.Join(parts, " ")
	}
	if v.IsZero() && v.Kind() == reflect.Int {
		return "0"
	}
	return fmt.Sprint(v)
}
