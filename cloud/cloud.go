// SPDX-License-Identifier: Apache-2.0

// Package cloud is the vocabulary of Cairn: the nouns that a customer sees
// (Instance, SecurityGroup, LoadBalancer, …), the shapes in which they are asked
// for and answered, and the rules that a value must obey.
//
// A shape is a struct whose tags are the contract: json names, required fields
// (no omitempty), bounds (minimum, maximum, minLength, maxLength, pattern, enum),
// and hints for the tools derived from it (doc, ref, clear, table). Rules that span
// several fields are Validate methods. Everything else about the API (routes,
// OpenAPI, the verbs of the command line) is derived from these structs and from
// package cloud/api.
//
// The package imports the standard library only and does no I/O. Start at
// instance.go for a noun, at error.go for what a rule answers.
package cloud

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
)

// ID is the identity of an object: a UUID in its canonical, lower-case text.
type ID string

// NewID draws a random identity (UUID version 4).
func NewID() ID {
	var b [16]byte
	rand.Read(b[:]) // never returns an error
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	var t [36]byte
	for i, at := range [16]int{0, 2, 4, 6, 9, 11, 14, 16, 19, 21, 24, 26, 28, 30, 32, 34} {
		hex.Encode(t[at:at+2], b[i:i+1])
	}
	t[8], t[13], t[18], t[23] = '-', '-', '-', '-'
	return ID(t[:])
}

// ParseID reads a UUID in 8-4-4-4-12 form and returns it in lower case.
func ParseID(s string) (ID, error) {
	if len(s) != 36 {
		return "", fmt.Errorf("parse id %q: no UUID", s)
	}
	for i := range len(s) {
		c := s[i]
		switch {
		case i == 8 || i == 13 || i == 18 || i == 23:
			if c != '-' {
				return "", fmt.Errorf("parse id %q: no UUID", s)
			}
		case c >= '0' && c <= '9', c >= 'a' && c <= 'f', c >= 'A' && c <= 'F':
		default:
			return "", fmt.Errorf("parse id %q: no UUID", s)
		}
	}
	return ID(strings.ToLower(s)), nil
}

func (id ID) String() string { return string(id) }

// UnmarshalText reads a UUID in lower case, whatever its case was. Anything else
// stays as it is: whether an id must be a UUID is for the reader to judge.
func (id *ID) UnmarshalText(b []byte) error {
	p, err := ParseID(string(b))
	if err != nil {
		p = ID(b)
	}
	*id = p
	return nil
}

// Ref points at another object. Clients may send the whole object: all but the id
// is ignored.
type Ref struct {
	ID ID `json:"id"`
}

// RefTo returns a reference to id.
func RefTo(id ID) *Ref { return &Ref{ID: id} }

// Labels are a customer's own marks on an object. They are written as {} when
// empty: clients tell an absent field from an empty one.
type Labels map[string]string

// LabelWeight, on a member of an instance pool, says how many times the flows of
// another member it gets from load balancers: 1 to MaxWeight.
const (
	LabelWeight = "nlb-weight"
	MaxWeight   = 100
)

// Weight that the labels name; 1 where they name none that can be.
func (l Labels) Weight() int {
	if w, err := strconv.Atoi(l[LabelWeight]); err == nil && 1 <= w && w <= MaxWeight {
		return w
	}
	return 1
}

// MarshalJSON writes nil as an empty object.
func (l Labels) MarshalJSON() ([]byte, error) {
	if l == nil {
		return []byte("{}"), nil
	}
	return json.Marshal(map[string]string(l))
}
