// SPDX-License-Identifier: Apache-2.0

package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"

	"cairn/cloud"
)

// Overlay lays a PUT over a stored noun and returns the result; stored is not
// touched. body is the decoded request shape and keys are its top-level fields as
// they were sent: a field that was sent replaces the stored one whole, null removes
// it where the shape says clear:"true", what was not sent stays. The result is
// validated as the noun.
//
// changed is false when the result says what stored says: then there is nothing to
// commit. A refusal is a *cloud.Error of kind Invalid that names every fault.
func Overlay[T any](stored T, body any, keys map[string]json.RawMessage) (result T, changed bool, err error) {
	document, err := documentOf(stored)
	if err != nil {
		return result, false, err
	}
	shape := reflect.Indirect(reflect.ValueOf(body))
	var faults []cloud.FieldError
	for _, f := range Fields(shape.Type()) {
		sent, ok := keys[f.Name]
		switch {
		case !ok:
		case string(sent) == "null" && !f.Clear:
			faults = append(faults, NullFault(f.Name))
		case string(sent) == "null":
			delete(document, f.Name)
		case f.IsZero(shape):
			// An empty text, list or map: said, though the shape would leave it out.
			document[f.Name] = sent
		default:
			// By way of the shape, so that nothing passes that the shape does not know.
			if document[f.Name], err = json.Marshal(f.Of(shape).Interface()); err != nil {
				return result, false, fmt.Errorf("overlay %s: %w", f.Name, err)
			}
		}
	}
	if faults != nil {
		return result, false, cloud.InvalidFields(faults)
	}
	return settle(stored, document)
}

// Clear removes one top-level field of a stored noun: what the reset operations do.
func Clear[T any](stored T, field string) (result T, changed bool, err error) {
	document, err := documentOf(stored)
	if err != nil {
		return result, false, err
	}
	delete(document, field)
	return settle(stored, document)
}

// NullFault is the fault of a null where nothing can be removed.
func NullFault(name string) cloud.FieldError {
	return cloud.Fault(name, "null: this field cannot be removed")
}

func documentOf(noun any) (map[string]json.RawMessage, error) {
	text, err := json.Marshal(noun)
	if err != nil {
		return nil, fmt.Errorf("overlay: %w", err)
	}
	var document map[string]json.RawMessage
	if err := json.Unmarshal(text, &document); err != nil {
		return nil, fmt.Errorf("overlay: %w", err)
	}
	return document, nil
}

// settle decodes a document as the noun, validates it and compares it with stored.
func settle[T any](stored T, document map[string]json.RawMessage) (result T, changed bool, err error) {
	text, err := json.Marshal(document)
	if err != nil {
		return result, false, fmt.Errorf("overlay: %w", err)
	}
	if err := json.Unmarshal(text, &result); err != nil {
		return result, false, fmt.Errorf("overlay: %w", err)
	}
	v, ok := any(result).(cloud.Validator)
	if !ok {
		v, ok = any(&result).(cloud.Validator)
	}
	if ok {
		if faults := v.Validate(); faults != nil {
			return result, false, cloud.InvalidFields(faults)
		}
	}
	before, err := json.Marshal(stored)
	if err != nil {
		return result, false, fmt.Errorf("overlay: %w", err)
	}
	after, err := json.Marshal(result)
	if err != nil {
		return result, false, fmt.Errorf("overlay: %w", err)
	}
	return result, !bytes.Equal(before, after), nil
}
