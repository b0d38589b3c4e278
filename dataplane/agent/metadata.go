// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"time"

	"cairn/dataplane/metadata"
)

// openMetadata needs the door. Without the service all else goes on.
func (a *Agent) openMetadata() {
	server, err := metadata.Open(a.cfg.Door, metadata.New(a.table.View, time.Now), a.log)
	if err != nil {
		a.log.Error("guests get no metadata", "error", err)
		return
	}
	a.metadata = server
}

func (a *Agent) serveMetadata(ctx context.Context) {
	if err := a.metadata.Run(ctx); err != nil {
		a.log.Error("guests get no metadata any more", "error", err)
	}
}
