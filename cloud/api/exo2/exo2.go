// SPDX-License-Identifier: Apache-2.0

// Package exo2 builds and checks the signature EXO2-HMAC-SHA256 of a request. Client
// and server use the same code for the message that is signed.
//
// It reads no clock and no key store: the caller says what time it is and which
// secret belongs to the key. Start at Message.
package exo2

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	// Scheme is the first word of the Authorization header.
	Scheme = "EXO2-HMAC-SHA256"
	// Validity is how long a client's signature holds.
	Validity = 10 * time.Minute
	// MaxValidity is how far in the future a server lets a signature expire: the
	// clients' ten minutes and a minute for their clocks.
	MaxValidity = 11 * time.Minute
)

// Signature is a parsed Authorization header.
type Signature struct {
	Key     string
	Args    []string // names of the signed query arguments, sorted
	Expires int64    // seconds since 1970
	MAC     []byte
}

// String returns the canonical text of the signature proper; two requests with
// equal text are byte for byte the same request.
func (s Signature) String() string { return base64.StdEncoding.EncodeToString(s.MAC) }

// Message returns what is signed. path is escaped, as on the wire and without
// query; of query only the arguments named in args count.
func Message(method, path string, body []byte, query url.Values, args []string, expires int64) []byte {
	var b strings.Builder
	b.WriteString(method + " " + path + "\n")
	b.Write(body)
	b.WriteByte('\n')
	for _, name := range args {
		b.WriteString(query.Get(name))
	}
	b.WriteString("\n\n") // no header is ever signed
	b.WriteString(strconv.FormatInt(expires, 10))
	return []byte(b.String())
}

// Args returns the names of the query arguments that are signed: those with exactly
// one value, sorted.
func Args(query url.Values) []string {
	var names []string
	for name, values := range query {
		if len(values) == 1 {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

func sum(secret string, message []byte) []byte {
	h := hmac.New(sha256.New, []byte(secret))
	h.Write(message)
	return h.Sum(nil)
}

// Sign sets the Authorization header of r, whose body is body.
func Sign(r *http.Request, body []byte, key, secret string, expires time.Time) {
	query := r.URL.Query()
	s := Signature{Key: key, Args: Args(query), Expires: expires.Unix()}
	s.MAC = sum(secret, Message(r.Method, r.URL.EscapedPath(), body, query, s.Args, s.Expires))
	parts := []string{Scheme + " credential=" + s.Key}
	if len(s.Args) > 0 {
		parts = append(parts, "signed-query-args="+strings.Join(s.Args, ";"))
	}
	parts = append(parts, "expires="+strconv.FormatInt(s.Expires, 10), "signature="+s.String())
	r.Header.Set("Authorization", strings.Join(parts, ","))
}

// Parse reads an Authorization header.
func Parse(header string) (Signature, error) {
	var s Signature
	scheme, rest, found := strings.Cut(header, " ")
	if !found || scheme != Scheme {
		return s, fmt.Errorf("parse authorization: expected scheme %s", Scheme)
	}
	for part := range strings.SplitSeq(rest, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(part), "=")
		var err error
		switch name {
		case "credential":
			s.Key = value
		case "signed-query-args":
			s.Args = strings.Split(value, ";")
			slices.Sort(s.Args)
		case "expires":
			s.Expires, err = strconv.ParseInt(value, 10, 64)
		case "signature":
			s.MAC, err = base64.StdEncoding.DecodeString(value)
		default:
			err = errors.New("unknown field")
		}
		if err != nil {
			return s, fmt.Errorf("parse authorization: %s: %w", name, err)
		}
	}
	if s.Key == "" || s.Expires == 0 || len(s.MAC) == 0 {
		return s, errors.New("parse authorization: expected credential, expires and signature")
	}
	return s, nil
}

// Errors that Check tells apart.
var (
	ErrSignature = errors.New("signature does not match")
	ErrExpired   = errors.New("signature has expired")
	ErrTooLong   = errors.New("signature expires too late")
	ErrUnsigned  = errors.New("query argument is not signed")
)

// Check verifies s against the request it came with, in time that does not depend
// on how wrong it is. The clock is asked only of a signature that matches.
func (s Signature) Check(secret string, r *http.Request, body []byte, now time.Time) error {
	query := r.URL.Query()
	want := sum(secret, Message(r.Method, r.URL.EscapedPath(), body, query, s.Args, s.Expires))
	if !hmac.Equal(want, s.MAC) {
		return ErrSignature
	}
	if now.Unix() > s.Expires {
		return ErrExpired
	}
	if s.Expires-now.Unix() > int64(MaxValidity/time.Second) {
		return ErrTooLong
	}
	// What is not signed could have been added or doubled on the way.
	for name, values := range query {
		if signed := slices.Contains(s.Args, name); signed != (len(values) == 1) {
			return fmt.Errorf("%w: %s", ErrUnsigned, name)
		}
	}
	return nil
}
