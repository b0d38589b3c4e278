// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"

	"cairn/cloud"
	"cairn/cloud/api"
	"cairn/cloud/client"
)

// args turns the words of the command line into the parameters of the path: names
// into ids.
func (x *call) args(ctx context.Context, words []string) (map[string]string, error) {
	args := map[string]string{}
	for i, p := range x.op.Params {
		word := words[i]
		var err error
		switch {
		case p.Plain:
		case p.Parent > 0:
			word, err = x.resolveChild(ctx, args[x.op.Params[p.Parent-1].Name], p.Noun, word)
		default:
			word, err = x.resolve(ctx, p.Noun, word)
		}
		if err != nil {
			return nil, err
		}
		args[p.Name] = word
	}
	return args, nil
}

// resolve finds the id of an object by its name, in the list of its noun. An id is
// taken as it is.
func (x *call) resolve(ctx context.Context, noun, word string) (string, error) {
	if id, err := cloud.ParseID(word); err == nil {
		return string(id), nil
	}
	list := api.Find(x.Operations, "list-"+noun+"s")
	if list == nil {
		return "", fmt.Errorf("%s %q: expected an id", noun, word)
	}
	answer := reflect.New(list.Response)
	if err := x.client.Do(ctx, list.ID, client.In{}, answer.Interface()); err != nil {
		return "", err
	}
	rows, _ := rowsOf(answer.Elem())
	return pick(noun, word, rows)
}

// resolveChild finds the id of a child by its name, in the object that holds it.
func (x *call) resolveChild(ctx context.Context, parent, noun, word string) (string, error) {
	if id, err := cloud.ParseID(word); err == nil {
		return string(id), nil
	}
	read := api.Find(x.Operations, "get-"+x.op.Noun)
	if read == nil {
		return "", fmt.Errorf("%s %q: expected an id", noun, word)
	}
	answer := reflect.New(read.Response)
	if err := x.client.Do(ctx, read.ID, client.ByID(cloud.ID(parent)), answer.Interface()); err != nil {
		return "", err
	}
	for _, f := range api.Fields(read.Response) {
		if f.Sort == api.List && strings.TrimSuffix(f.Name, "s") == noun {
			return pick(noun, word, f.Of(answer.Elem()))
		}
	}
	return "", fmt.Errorf("%s %q: expected an id", noun, word)
}

// named is a noun that people call by something else than its name field.
type named interface{ Named(string) bool }

// pick returns the id of the one row that is called word.
func pick(noun, word string, rows reflect.Value) (string, error) {
	var found []string
	for i := range rows.Len() {
		row := rows.Index(i)
		var id, name string
		for _, f := range api.Fields(row.Type()) {
			switch f.Name {
			case "id":
				id = cell(f.Of(row))
			case "name":
				name = cell(f.Of(row))
			}
		}
		if n, ok := row.Interface().(named); ok && n.Named(word) || name == word {
			found = append(found, id)
		}
	}
	switch len(found) {
	case 0:
		return "", fmt.Errorf("%s %q not found", noun, word)
	case 1:
		return found[0], nil
	}
	return "", fmt.Errorf("%s %q: too many found: %s", noun, word, strings.Join(found, ", "))
}

// present reads the object that a PUT is about to change, nil when it cannot be read
// by itself.
func (x *call) present(ctx context.Context, args map[string]string) (map[string]json.RawMessage, error) {
	for i := range x.Operations {
		if op := &x.Operations[i]; op.Method == "GET" && op.Path == x.op.Path {
			return client.Call[map[string]json.RawMessage](ctx, x.client, op.ID, client.In{Args: args})
		}
	}
	return nil, nil
}
