// SPDX-License-Identifier: Apache-2.0

package bgp

import (
	"context"
	"log/slog"
)

// quiet passes on what GoBGP says from warning upwards: what a session does is
// logged by this package, in its own words.
type quiet struct{ slog.Handler }

func (q quiet) Enabled(ctx context.Context, l slog.Level) bool {
	return l >= slog.LevelWarn && q.Handler.Enabled(ctx, l)
}

func (q quiet) WithAttrs(a []slog.Attr) slog.Handler { return quiet{q.Handler.WithAttrs(a)} }

func (q quiet) WithGroup(name string) slog.Handler { return quiet{q.Handler.WithGroup(name)} }
