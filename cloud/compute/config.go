// SPDX-License-Identifier: Apache-2.0

package compute

import "log/slog"

// Config is where a driver keeps what it makes.
type Config struct {
	State    string              // folder; one folder a machine below it
	Prefix   string              // of the names of its namespaces: PREFIX-i<port>
	Commands map[string][]string // workload name → program and arguments, "echo" → path of cairn-echo
	Log      *slog.Logger        // nil: slog.Default()
}
