// SPDX-License-Identifier: Apache-2.0

package exo2

import (
	"errors"
	"maps"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var now = time.Unix(1700000000, 0)

func request(t testing.TB, method, target string) *http.Request {
	t.Helper()
	r, err := http.NewRequest(method, target, nil)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestMessage(t *testing.T) {
	query := url.Values{"b": {"2"}, "a": {"1"}, "m": {"x", "y"}}
	got := string(Message("GET", "/v2/ssh-key/a%2Fb", []byte(`{"x":1}`), query, Args(query), 1700000600))
	if want := "GET /v2/ssh-key/a%2Fb\n{\"x\":1}\n12\n\n1700000600"; got != want {
		t.Errorf("message %q, want %q", got, want)
	}
}

// The value was computed with openssl dgst -sha256 -hmac secret over the message.
func TestKnownSignature(t *testing.T) {
	r := request(t, "GET", "http://h/v2/instance?manager-id=7")
	Sign(r, nil, "EXOkey", "secret", now.Add(Validity))
	want := "EXO2-HMAC-SHA256 credential=EXOkey,signed-query-args=manager-id,expires=1700000600,signature=v6RRZoBxXg2zjr4NZrL02Xg8qFmXGG/6u5zWRD2/rg0="
	if got := r.Header.Get("Authorization"); got != want {
		t.Errorf("header %q, want %q", got, want)
	}
}

func TestCheck(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(r *http.Request, body *[]byte, secret *string, at *time.Time)
		want   error
	}{
		{"as signed", func(*http.Request, *[]byte, *string, *time.Time) {}, nil},
		{"last second", func(_ *http.Request, _ *[]byte, _ *string, at *time.Time) { *at = now.Add(Validity) }, nil},
		{"client a minute ahead", func(_ *http.Request, _ *[]byte, _ *string, at *time.Time) { *at = now.Add(-time.Minute) }, nil},
		{"expired", func(_ *http.Request, _ *[]byte, _ *string, at *time.Time) { *at = now.Add(Validity + time.Second) }, ErrExpired},
		{"expires too late", func(_ *http.Request, _ *[]byte, _ *string, at *time.Time) { *at = now.Add(-61 * time.Second) }, ErrTooLong},
		{"other secret", func(_ *http.Request, _ *[]byte, s *string, _ *time.Time) { *s = "guess" }, ErrSignature},
		{"other method", func(r *http.Request, _ *[]byte, _ *string, _ *time.Time) { r.Method = "DELETE" }, ErrSignature},
		{"other path", func(r *http.Request, _ *[]byte, _ *string, _ *time.Time) { r.URL.Path = "/v2/x" }, ErrSignature},
		{"other body", func(_ *http.Request, b *[]byte, _ *string, _ *time.Time) { *b = []byte("{}") }, ErrSignature},
		{"other argument", func(r *http.Request, _ *[]byte, _ *string, _ *time.Time) { r.URL.RawQuery = "a=2&b=2" }, ErrSignature},
		{"argument added", func(r *http.Request, _ *[]byte, _ *string, _ *time.Time) { r.URL.RawQuery += "&c=1" }, ErrUnsigned},
		{"argument doubled", func(r *http.Request, _ *[]byte, _ *string, _ *time.Time) { r.URL.RawQuery += "&a=2" }, ErrUnsigned},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, body, secret, at := request(t, "PUT", "http://h/v2/a%2Fb?b=2&a=1"), []byte(`{"n":1}`), "secret", now
			Sign(r, body, "key", secret, now.Add(Validity))
			s, err := Parse(r.Header.Get("Authorization"))
			if err != nil || s.Key != "key" {
				t.Fatalf("parse: %+v, %v", s, err)
			}
			c.change(r, &body, &secret, &at)
			if err := s.Check(secret, r, body, at); !errors.Is(err, c.want) {
				t.Errorf("check: %v, want %v", err, c.want)
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	good := "EXO2-HMAC-SHA256 credential=k,expires=1,signature=AAAA"
	if _, err := Parse(good); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{
		"", "Basic x", "EXO2-HMAC-SHA256", strings.Replace(good, "credential=k,", "", 1), strings.Replace(good, "expires=1", "expires=x", 1),
		strings.Replace(good, "AAAA", "A-", 1), good + ",extra=1", strings.Replace(good, "EXO2", "exo2", 1),
	} {
		if s, err := Parse(bad); err == nil {
			t.Errorf("Parse(%q) = %+v", bad, s)
		}
	}
}

// Any request that is signed passes, and one changed octet of the body does not.
func TestSignThenCheck(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		query := url.Values{}
		maps.Copy(query, rapid.MapOf(rapid.StringMatching(`[a-z][a-z0-9-]*`), rapid.SliceOfN(rapid.String(), 1, 3)).Draw(t, "query"))
		r, err := http.NewRequest("POST", "http://h/v2/"+url.PathEscape(rapid.String().Draw(t, "path"))+"?"+query.Encode(), nil)
		if err != nil {
			t.Skip(err)
		}
		body := rapid.SliceOfN(rapid.Byte(), 1, 64).Draw(t, "body")
		Sign(r, body, "key", "secret", now.Add(Validity))
		s, err := Parse(r.Header.Get("Authorization"))
		if err != nil {
			t.Fatal(err)
		}
		// An argument with several values is not signed, and passes as such.
		if err := s.Check("secret", r, body, now); err != nil {
			t.Fatalf("check: %v", err)
		}
		body[rapid.IntRange(0, len(body)-1).Draw(t, "octet")]++
		if err := s.Check("secret", r, body, now); !errors.Is(err, ErrSignature) {
			t.Fatalf("check of a changed body: %v", err)
		}
	})
}
