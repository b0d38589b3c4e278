// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"reflect"
	"strings"

	"github.com/spf13/cobra"

	"cairn/cloud"
	"cairn/cloud/api"
)

const (
	clearFlag  = "clear"
	noWaitFlag = "no-wait"
)

// addFlags gives the command a flag for every field of the request and every
// argument of the query.
func (x *call) addFlags(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.SortFlags = false
	if x.op.Request != nil {
		addShape(cmd, "", x.op.Request, true)
	}
	for _, p := range x.op.Query {
		flags.String(p.Name, "", p.Doc+oneOf(p.Enum))
	}
	if names := x.clearable(); len(names) > 0 {
		flags.StringSlice(clearFlag, nil, "fields to clear"+oneOf(names))
	}
	if x.op.Async {
		flags.Bool(noWaitFlag, false, "do not wait for the end of the operation")
	}
}

// addShape adds the flags of a shape; those of a nested shape carry its name in
// front: --healthcheck-port.
func addShape(cmd *cobra.Command, prefix string, shape reflect.Type, required bool) {
	flags := cmd.Flags()
	for _, f := range api.Fields(shape) {
		name, doc := prefix+f.Name, f.Doc+oneOf(f.Enum)
		if f.Required && required {
			doc += " (required)"
		}
		switch f.Sort {
		case api.Number:
			flags.Int64(name, 0, doc)
		case api.Bool:
			flags.Bool(name, false, doc)
		case api.Mapping:
			flags.StringToString(name, nil, doc+", key=value")
		case api.List:
			flags.StringSlice(name, nil, doc+byName(f)+", several by commas")
		case api.Object:
			if key := refKey(f.Type); key == "" {
				addShape(cmd, name+"-", f.Type, f.Required && required)
				continue
			}
			flags.String(name, "", doc+byName(f))
		default:
			if f.Base64 || f.File {
				doc += ", or @FILE"
			}
			flags.String(name, "", doc)
		}
		if f.Enum != nil {
			cmd.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(f.Enum, cobra.ShellCompDirectiveNoFileComp))
		}
	}
}

func oneOf(values []string) string {
	if len(values) == 0 {
		return ""
	}
	return ": " + strings.Join(values, ", ")
}

func byName(f api.Field) string {
	if f.Ref == "" {
		return ", by id"
	}
	return ", by name or id"
}

// refKey says by which field a shape points at another object: id or name; "" when
// it is no pointer but a shape of its own.
func refKey(t reflect.Type) string {
	if t.Kind() != reflect.Struct {
		return ""
	}
	switch t {
	case reflect.TypeFor[cloud.Ref](), reflect.TypeFor[cloud.SecurityGroupResource]():
		return "id"
	case reflect.TypeFor[cloud.SSHKeyRef]():
		return "name"
	}
	return ""
}

// clearable lists the fields of the request that null removes.
func (x *call) clearable() []string {
	var names []string
	if x.op.Request != nil && x.op.Method == "PUT" {
		for _, f := range api.Fields(x.op.Request) {
			if f.Clear {
				names = append(names, f.Name)
			}
		}
	}
	return names
}

// body makes the request from the flags that were given.
func (x *call) body(ctx context.Context, cmd *cobra.Command) (map[string]any, error) {
	body, err := x.shape(ctx, cmd, "", x.op.Request)
	if err != nil {
		return nil, err
	}
	if len(x.clearable()) > 0 {
		names, _ := cmd.Flags().GetStringSlice(clearFlag)
		for _, name := range names {
			body[name] = nil
		}
	}
	return body, nil
}

func (x *call) shape(ctx context.Context, cmd *cobra.Command, prefix string, shape reflect.Type) (map[string]any, error) {
	body := map[string]any{}
	for _, f := range api.Fields(shape) {
		name := prefix + f.Name
		if f.Sort == api.Object && refKey(f.Type) == "" {
			inner, err := x.shape(ctx, cmd, name+"-", f.Type)
			if err != nil {
				return nil, err
			}
			if len(inner) > 0 || f.Required {
				body[f.Name] = inner
			}
			continue
		}
		if !cmd.Flags().Changed(name) {
			continue
		}
		v, err := x.value(ctx, cmd, name, f)
		if err != nil {
			return nil, fmt.Errorf("--%s: %w", name, err)
		}
		body[f.Name] = v
	}
	return body, nil
}

// value reads one flag as the field wants it.
func (x *call) value(ctx context.Context, cmd *cobra.Command, name string, f api.Field) (any, error) {
	flags := cmd.Flags()
	switch f.Sort {
	case api.Number:
		return flags.GetInt64(name)
	case api.Bool:
		return flags.GetBool(name)
	case api.Mapping:
		return flags.GetStringToString(name)
	case api.List:
		words, err := flags.GetStringSlice(name)
		list := make([]any, 0, len(words))
		for _, word := range words {
			v, err := x.reference(ctx, f.Ref, f.Elem, word)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
		return list, err
	}
	word, err := flags.GetString(name)
	if err != nil {
		return nil, err
	}
	if f.Sort == api.Object {
		return x.reference(ctx, f.Ref, f.Type, word)
	}
	if path, isFile := strings.CutPrefix(word, "@"); isFile && (f.File || f.Base64) {
		content, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		word = string(content)
	}
	if f.Base64 {
		word = base64.StdEncoding.EncodeToString([]byte(word))
	}
	return word, nil
}

// reference makes what points at the object that word names: {id}, {name} or the
// bare id, as the shape t has it.
func (x *call) reference(ctx context.Context, noun string, t reflect.Type, word string) (any, error) {
	key := refKey(t)
	if key == "name" || noun == "" && key == "" {
		if key == "" {
			return word, nil
		}
		return map[string]any{key: word}, nil
	}
	id := word
	if noun != "" {
		var err error
		if id, err = x.resolve(ctx, noun, word); err != nil {
			return nil, err
		}
	}
	if key == "" {
		return id, nil
	}
	return map[string]any{key: id}, nil
}

// keepNested completes nested objects: the API replaces them whole, so what the flags do not say
// is taken from the object as it stands.
func (x *call) keepNested(ctx context.Context, body map[string]any, args map[string]string) error {
	if x.op.Method != "PUT" {
		return nil
	}
	var now map[string]json.RawMessage
	for _, f := range api.Fields(x.op.Request) {
		said, nested := body[f.Name].(map[string]any)
		if !nested || f.Sort != api.Object || refKey(f.Type) != "" {
			continue
		}
		if now == nil {
			var err error
			if now, err = x.present(ctx, args); err != nil || now == nil {
				return err
			}
		}
		var kept map[string]any
		if json.Unmarshal(now[f.Name], &kept) != nil || kept == nil {
			continue
		}
		maps.Copy(kept, said)
		body[f.Name] = kept
	}
	return nil
}
