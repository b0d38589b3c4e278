// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"cairn/cloud"
	"cairn/cloud/api"
	"cairn/cloud/client"
)

// call is one command on its way.
type call struct {
	*cli
	op     *api.Operation
	client *client.Client
}

func (x *call) run(cmd *cobra.Command, words []string) error {
	if x.output != "table" && x.output != "json" {
		return fmt.Errorf("--output %q: expected table or json", x.output)
	}
	var err error
	if x.client, err = x.Connect(); err != nil {
		return err
	}
	x.client.Operations = x.Operations
	ctx := cmd.Context()
	in := client.In{Query: url.Values{}}
	if x.nameIsArg() && len(words) > 0 {
		if err := cmd.Flags().Set("name", words[0]); err != nil {
			return err
		}
	}
	if in.Args, err = x.args(ctx, words); err != nil {
		return err
	}
	for _, p := range x.op.Query {
		if cmd.Flags().Changed(p.Name) {
			value, _ := cmd.Flags().GetString(p.Name)
			in.Query.Set(p.Name, value)
		}
	}
	if x.op.Request != nil {
		body, err := x.body(ctx, cmd)
		if err != nil {
			return err
		}
		if err := lacking(x.op, body); err != nil {
			return err
		}
		if err := x.keepNested(ctx, body, in.Args); err != nil {
			return err
		}
		in.Body = body
	}
	answer, err := client.Call[json.RawMessage](ctx, x.client, x.op.ID, in)
	if err != nil {
		return err
	}
	if !x.op.Async {
		return x.print(answer, x.op.Response)
	}
	noWait, _ := cmd.Flags().GetBool(noWaitFlag)
	return x.finish(ctx, answer, noWait)
}

// lacking names the fields that the request needs and that no flag gave, before
// anything is asked of the server.
func lacking(op *api.Operation, body map[string]any) error {
	var names []string
	for _, f := range api.Fields(op.Request) {
		if _, ok := body[f.Name]; f.Required && !ok {
			names = append(names, "--"+f.Name)
		}
	}
	if names == nil {
		return nil
	}
	return fmt.Errorf("missing: %s", strings.Join(names, ", "))
}

// finish waits for an operation and prints what it concerned.
func (x *call) finish(ctx context.Context, answer json.RawMessage, noWait bool) error {
	var op cloud.Operation
	if err := json.Unmarshal(answer, &op); err != nil {
		return fmt.Errorf("decode operation: %w", err)
	}
	if noWait {
		return x.print(answer, x.op.Response)
	}
	start := time.Now()
	if !op.State.Final() {
		fmt.Fprintf(x.Err, "%s: waiting for operation %s\n", x.op.ID, op.ID)
	}
	end, err := x.client.Wait(ctx, op)
	if errors.Is(err, context.Canceled) {
		return fmt.Errorf("interrupted: operation %s goes on, see cairn operation get %s", op.ID, op.ID)
	}
	if err != nil {
		return err
	}
	if x.removes() || end.Reference == nil || end.Reference.Command == "" {
		if x.output == "json" {
			b, err := json.Marshal(end)
			if err != nil {
				return err
			}
			return x.print(b, x.op.Response)
		}
		fmt.Fprintf(x.Err, "%s: success after %v\n", x.op.ID, time.Since(start).Round(time.Millisecond))
		return nil
	}
	read := api.Find(x.Operations, end.Reference.Command)
	if read == nil {
		return fmt.Errorf("%s: the answer refers to %q, which is no operation", x.op.ID, end.Reference.Command)
	}
	object, err := client.Call[json.RawMessage](ctx, x.client, read.ID, client.ByID(end.Reference.ID))
	if err != nil {
		return err
	}
	return x.print(object, read.Response)
}

// removes says that nothing is left to show after the operation.
func (x *call) removes() bool {
	last := len(x.op.Params) - 1
	return x.op.Method == "DELETE" && last == 0
}
