// SPDX-License-Identifier: Apache-2.0

// Package cli is the customer's command line. Every verb and flag is derived from
// cloud/api: nothing here knows a noun. It calls the API as any customer does, over
// cloud/client, and holds no other door.
//
// Start at New; run.go is the way of one command.
package cli

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"cairn/cloud/api"
	"cairn/cloud/client"
)

// Options are what a command line is made of.
type Options struct {
	Operations []api.Operation                // api.Operations when nil
	Connect    func() (*client.Client, error) // client.FromEnv when nil
	Out, Err   io.Writer                      // os.Stdout and os.Stderr when nil
}

// cli is what all commands share.
type cli struct {
	Options
	output string
}

// New returns the root command with a verb for every operation. Verbs that are no
// customer's may be added to it.
func New(o Options) *cobra.Command {
	if o.Operations == nil {
		o.Operations = api.Operations
	}
	if o.Connect == nil {
		o.Connect = client.FromEnv
	}
	if o.Out == nil {
		o.Out = os.Stdout
	}
	if o.Err == nil {
		o.Err = os.Stderr
	}
	c := &cli{Options: o}
	root := &cobra.Command{
		Use: "cairn", Short: "The command line of Cairn",
		Long: "The command line of Cairn, an API-managed cloud network.\n\n" +
			"The API is found by CAIRN_API_ENDPOINT, CAIRN_API_KEY and CAIRN_API_SECRET, or by the\nsame names with EXOSCALE in front.",
		SilenceUsage: true, SilenceErrors: true,
	}
	root.SetOut(o.Out)
	root.SetErr(o.Err)
	root.PersistentFlags().StringVarP(&c.output, "output", "O", "table", "how to print: table or json")
	root.AddGroup(&cobra.Group{ID: "nouns", Title: "What the API offers:"})
	for _, noun := range api.Nouns(o.Operations) {
		root.AddCommand(c.noun(noun))
	}
	return root
}

// noun makes the command that holds the verbs of a noun.
func (c *cli) noun(noun string) *cobra.Command {
	cmd := &cobra.Command{
		Use: noun, Aliases: api.Aliases[noun], GroupID: "nouns",
		Short: "Work with " + strings.ReplaceAll(noun, "-", " ") + "s", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	if len(cmd.Aliases) > 0 {
		cmd.Short += " (" + strings.Join(cmd.Aliases, ", ") + ")"
	}
	for i := range c.Operations {
		if op := &c.Operations[i]; op.Noun == noun {
			cmd.AddCommand(c.verb(op))
		}
	}
	return cmd
}

// synonyms are other words for verbs.
var synonyms = map[string][]string{"list": {"ls"}, "get": {"show"}, "create": {"add"}, "register": {"add"}, "delete": {"rm"}, "get-service": {"show-service"}}

// verb makes the command of one operation.
func (c *cli) verb(op *api.Operation) *cobra.Command {
	x := &call{cli: c, op: op}
	cmd := &cobra.Command{
		Use: op.Verb, Aliases: synonyms[op.Verb], Short: sentence(op.Summary),
		RunE: x.run, Args: x.checkArgs, ValidArgsFunction: x.complete,
	}
	for _, p := range op.Params {
		cmd.Use += " " + title(p)
	}
	if x.nameIsArg() {
		cmd.Use += " [NAME]"
	}
	cmd.Long = cmd.Short + ".\n\nOperation: " + op.ID
	x.addFlags(cmd)
	return cmd
}

// title is how a positional argument is called in the help.
func title(p api.Param) string {
	if p.Enum != nil {
		return strings.Join(p.Enum, "|")
	}
	if p.Noun != "" && !(p.Plain && p.Name != "name") {
		return strings.ToUpper(p.Noun)
	}
	return strings.ToUpper(p.Name)
}

func sentence(s string) string {
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:]
}

// nameIsArg says that the name of a new object may stand without its flag.
func (x *call) nameIsArg() bool {
	if len(x.op.Params) > 0 || x.op.Request == nil {
		return false
	}
	return slices.ContainsFunc(api.Fields(x.op.Request), func(f api.Field) bool { return f.Name == "name" && f.Sort == api.Text })
}

func (x *call) checkArgs(cmd *cobra.Command, args []string) error {
	least, most := len(x.op.Params), len(x.op.Params)
	if x.nameIsArg() {
		most++
	}
	if len(args) < least || len(args) > most {
		return fmt.Errorf("expected: %s", cmd.UseLine())
	}
	return nil
}

// complete offers the values of an argument that takes only some.
func (x *call) complete(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) < len(x.op.Params) {
		return x.op.Params[len(args)].Enum, cobra.ShellCompDirectiveNoFileComp
	}
	return nil, cobra.ShellCompDirectiveNoFileComp
}
