// SPDX-License-Identifier: Apache-2.0

package debug

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Streams are one document a line, from the moment on at which the agent
// listens, until either side goes.

// patience with a client that reads nothing: who has stopped must not keep others
// from the one capture there is.
var patience = 10 * time.Second

// stream answers with what follow gives.
func stream(w http.ResponseWriter, r *http.Request, follow func(ctx context.Context, line func(any) error) error) {
	flusher, _ := w.(http.Flusher)
	control := http.NewResponseController(w)
	encoder := json.NewEncoder(w)
	begun := false
	err := follow(r.Context(), func(document any) error {
		if !begun {
			w.Header().Set("Content-Type", "application/x-ndjson")
			begun = true
		}
		_ = control.SetWriteDeadline(time.Now().Add(patience)) // not with every writer
		err := encoder.Encode(document)
		if flusher != nil {
			flusher.Flush()
		}
		return err
	})
	if err != nil && !begun {
		http.Error(w, err.Error(), http.StatusUnprocessableEntity)
	}
}

func portOf(v url.Values) (uint32, error) {
	if v.Get("port") == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(v.Get("port"), 10, 32)
	if err != nil {
		return 0, fmt.Errorf("--port %q is no number of a port", v.Get("port"))
	}
	return uint32(n), nil
}

// follow reads a stream until it ends, ctx does, or each fails; io.EOF of each
// only ends it.
func follow[T any](ctx context.Context, c *client, path string, each func(T) error) error {
	response, done, err := c.open(ctx, http.MethodGet, path)
	if err != nil {
		return err
	}
	defer done()
	d := json.NewDecoder(response.Body)
	for {
		var document T
		err := d.Decode(&document)
		switch {
		case ctx.Err() != nil:
			return nil // whoever asked has enough
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return errors.New("the agent has ended the stream")
		case err != nil:
			return fmt.Errorf("ask agent: read answer: %w", err)
		}
		if err := each(document); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
	}
}

// failed is the error that an answer is.
func failed(response *http.Response) error {
	text, _ := io.ReadAll(io.LimitReader(response.Body, 4096))
	return fmt.Errorf("ask agent: %s", strings.TrimSpace(string(text)))
}
