// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"errors"
	"net/http"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"time"

	"cairn/cloud"
)

// errorBody is the contract's answer to what went wrong. Some clients read message
// of an entry, some detail and location: both are there.
type errorBody struct {
	Message string       `json:"message" doc:"what went wrong, every field named"`
	Reason  cloud.Reason `json:"reason,omitempty" doc:"of a conflict: busy, when another operation is in the way"`
	Errors  []errorEntry `json:"errors,omitempty" doc:"every fault of the request"`
}

type errorEntry struct {
	Message  string `json:"message"`
	Detail   string `json:"detail"`
	Location string `json:"location,omitempty" doc:"JSONPath of the field"`
}

var errorType = reflect.TypeFor[errorBody]()

var statuses = map[cloud.Kind]int{
	cloud.NotFound:    http.StatusNotFound,
	cloud.Conflict:    http.StatusConflict,
	cloud.Invalid:     http.StatusBadRequest,
	cloud.Forbidden:   http.StatusForbidden,
	cloud.Unavailable: http.StatusServiceUnavailable,
}

// refusal maps an error to a status and a body. What is not meant for the caller is
// answered without its text.
func (m *mounted) refusal(err error) (int, []byte) {
	var e *cloud.Error
	switch {
	case errors.As(err, &e) && statuses[e.Kind] != 0:
		return statuses[e.Kind], mustMarshal(bodyOf(e))
	case errors.Is(err, errTooLarge):
		return http.StatusRequestEntityTooLarge, mustMarshal(errorBody{Message: "request body: expected at most 1 MiB"})
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return http.StatusServiceUnavailable, mustMarshal(errorBody{Message: "no answer in time, try again"})
	}
	return http.StatusInternalServerError, mustMarshal(errorBody{Message: "internal error"})
}

// refuse is refusal with what belongs beside the body: the header that asks for a
// retry, and the log line of an error that is ours.
func (m *mounted) refuse(h http.Header, c *Call, err error) (int, []byte) {
	status, body := m.refusal(err)
	var e *cloud.Error
	known := errors.As(err, &e)
	if status == http.StatusServiceUnavailable {
		after := time.Second
		if known {
			after = max(after, e.RetryAfter)
		}
		h.Set("Retry-After", strconv.Itoa(int((after+time.Second-1)/time.Second)))
	}
	if status >= http.StatusInternalServerError && !known {
		m.Logger.Error("answer request", "operation", m.op.ID, "request", c.RequestID, "err", err)
	}
	return status, body
}

func bodyOf(e *cloud.Error) errorBody {
	b := errorBody{Message: e.Message}
	if e.Kind == cloud.Conflict && e.Reason == cloud.ReasonBusy {
		b.Reason = e.Reason
	}
	for _, f := range e.Fields {
		b.Errors = append(b.Errors, errorEntry{Message: f.String(), Detail: f.Detail, Location: jsonPath(f.Location)})
	}
	return b
}

var step = regexp.MustCompile(`[^.\[\]]+|\[\d+\]`)

// jsonPath writes a location as JSONPath: "rules[2].network" is
// $['rules'][2]['network'] (RFC 9535 section 2.7).
func jsonPath(location string) string {
	if location == "" {
		return ""
	}
	var b strings.Builder
	b.WriteByte('$')
	for _, s := range step.FindAllString(location, -1) {
		if s[0] == '[' {
			b.WriteString(s)
			continue
		}
		b.WriteString("['" + strings.ReplaceAll(strings.ReplaceAll(s, `\`, `\\`), "'", `\'`) + "']")
	}
	return b.String()
}
