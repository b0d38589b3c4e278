// SPDX-License-Identifier: Apache-2.0

package cloud

import (
	"fmt"
	"strings"
	"time"
)

// Kind says what sort of refusal an Error is; package controlplane/api alone maps
// it to an HTTP status.
type Kind int

const (
	// NotFound: there is no such object in the caller's organisation.
	NotFound Kind = iota + 1
	// Conflict: the object exists already, is in use, or is busy.
	Conflict
	// Invalid: the request breaks a rule; Fields names every one.
	Invalid
	// Forbidden: the caller may not do this.
	Forbidden
	// Unavailable: try again after RetryAfter.
	Unavailable
)

func (k Kind) String() string {
	switch k {
	case NotFound:
		return "not found"
	case Conflict:
		return "conflict"
	case Invalid:
		return "invalid"
	case Forbidden:
		return "forbidden"
	case Unavailable:
		return "unavailable"
	}
	return fmt.Sprintf("kind %d", int(k))
}

// Error is a refusal that the caller is told about. Any other error is ours, and
// the caller learns no more than that.
type Error struct {
	Kind       Kind
	Message    string
	Reason     Reason        // of a Conflict: busy when an operation is in the way
	Fields     []FieldError  // of Invalid: all faults at once
	RetryAfter time.Duration // of Unavailable, at least a second
}

func (e *Error) Error() string { return e.Message }

// FieldError is one fault of a request.
type FieldError struct {
	Location string // the field as a path of json names: "healthcheck.port", "rules[2].network"
	Detail   string // what was expected, without the field's name
}

func (f FieldError) String() string {
	if f.Location == "" {
		return f.Detail
	}
	return f.Location + ": " + f.Detail
}

// Fault makes a FieldError.
func Fault(location, format string, args ...any) FieldError {
	return FieldError{Location: location, Detail: fmt.Sprintf(format, args...)}
}

// Under puts prefix before the location of each fault: the faults of a nested
// shape seen from the shape that holds it.
func Under(prefix string, faults []FieldError) []FieldError {
	for i := range faults {
		switch {
		case faults[i].Location == "":
			faults[i].Location = prefix
		case faults[i].Location[0] == '[':
			faults[i].Location = prefix + faults[i].Location
		default:
			faults[i].Location = prefix + "." + faults[i].Location
		}
	}
	return faults
}

// Validator is a shape with rules over several fields.
type Validator interface {
	// Validate returns every fault it finds, nil when there is none.
	Validate() []FieldError
}

// NotFoundf is the refusal for an object that is not there, or not the caller's.
func NotFoundf(format string, args ...any) *Error {
	return &Error{Kind: NotFound, Message: fmt.Sprintf(format, args...)}
}

// Missing is NotFoundf for an object by its noun and id.
func Missing(noun string, id ID) *Error {
	return NotFoundf("%s %s not found", noun, id)
}

// Conflictf is the refusal for what exists already or is in use.
func Conflictf(format string, args ...any) *Error {
	return &Error{Kind: Conflict, Message: fmt.Sprintf(format, args...), Reason: ReasonConflict}
}

// Exists is the refusal for a name that is taken. Clients match "already exists".
func Exists(noun, name string) *Error {
	return Conflictf("%s %q already exists", noun, name)
}

// Busy is the refusal while another operation is in the way.
func Busy(noun string, id, operation ID) *Error {
	return &Error{Kind: Conflict, Reason: ReasonBusy,
		Message: fmt.Sprintf("%s %s is busy: operation %s is in the way", noun, id, operation)}
}

// Invalidf is the refusal for a single fault; location may be empty.
func Invalidf(location, format string, args ...any) *Error {
	return InvalidFields([]FieldError{Fault(location, format, args...)})
}

// InvalidFields is the refusal for faults, whose texts make up the message.
func InvalidFields(faults []FieldError) *Error {
	texts := make([]string, len(faults))
	for i, f := range faults {
		texts[i] = f.String()
	}
	return &Error{Kind: Invalid, Message: strings.Join(texts, "; "), Fields: faults}
}

// Forbiddenf is the refusal for what the caller may not do.
func Forbiddenf(format string, args ...any) *Error {
	return &Error{Kind: Forbidden, Message: fmt.Sprintf(format, args...)}
}

// Unavailablef is the refusal for now; after is rounded up to a second.
func Unavailablef(after time.Duration, format string, args ...any) *Error {
	return &Error{Kind: Unavailable, Message: fmt.Sprintf(format, args...), RetryAfter: max(after, time.Second)}
}
