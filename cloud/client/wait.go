// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"errors"
	"fmt"
	"time"

	"cairn/cloud"
)

// OperationError is an operation that ended otherwise than in success.
type OperationError struct {
	Operation cloud.Operation
}

func (e *OperationError) Error() string {
	text := fmt.Sprintf("operation %s ends in %s", e.Operation.ID, e.Operation.State)
	if e.Operation.Reason != "" {
		text += ", " + string(e.Operation.Reason)
	}
	if e.Operation.Message != "" {
		text += ": " + e.Operation.Message
	}
	return text
}

// Run performs an asynchronous operation and waits for its end. An end that is no
// success is an *OperationError.
func (c *Client) Run(ctx context.Context, id string, in In) (*cloud.Operation, error) {
	op, err := Call[cloud.Operation](ctx, c, id, in)
	if err != nil {
		return nil, err
	}
	end, err := c.Wait(ctx, op)
	if err != nil {
		return end, fmt.Errorf("%s: %w", id, err)
	}
	return end, nil
}

const (
	// firstPoll and lastPoll bound the time between two looks at an operation: soon at
	// first, because most end at once, then ever more rarely.
	firstPoll = 100 * time.Millisecond
	lastPoll  = 2 * time.Second
	// badPolls is how many looks may fail in a row.
	badPolls = 5
)

// Wait polls an operation until it is final. It returns the operation as it saw it
// last, also with an error.
func (c *Client) Wait(ctx context.Context, op cloud.Operation) (*cloud.Operation, error) {
	bad := 0
	for every := firstPoll; !op.State.Final(); every = min(2*every, lastPoll) {
		select {
		case <-time.After(every):
		case <-ctx.Done():
			return &op, ctx.Err()
		}
		now, err := Call[cloud.Operation](ctx, c, "get-operation", ByID(op.ID))
		var refusal *cloud.Error
		switch {
		case err == nil:
			op, bad = now, 0
		case ctx.Err() != nil:
			return &op, ctx.Err()
		case errors.As(err, &refusal) && refusal.Kind != cloud.Unavailable:
			return &op, err
		default:
			if bad++; bad == badPolls {
				return &op, err
			}
		}
	}
	if op.State != cloud.OperationSuccess {
		return &op, &OperationError{Operation: op}
	}
	return &op, nil
}
