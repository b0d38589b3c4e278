// SPDX-License-Identifier: Apache-2.0

package join

import (
	"strings"
	"testing"
)

func TestToken(t *testing.T) {
	pin := strings.Repeat("ab", 32)
	token, err := NewToken("hv1", pin)
	if err != nil {
		t.Fatal(err)
	}
	back, err := Parse(token.String() + "\n")
	if err != nil || back != token {
		t.Errorf("Parse(%s) = %+v, %v", token, back, err)
	}
	other, _ := NewToken("hv1", pin)
	if other.Secret == token.Secret {
		t.Error("two tokens have one secret")
	}
	secret := token.Secret
	for _, bad := range []string{
		"", "hv1", "hv1." + secret, "." + secret + "." + pin, "hv1." + secret + "." + pin + ".x",
		"HV1." + secret + "." + pin, "hv/1." + secret + "." + pin, "hv1.short." + pin, "hv1." + secret + "." + pin[1:],
		"-hv1." + secret + "." + pin,
	} {
		if got, err := Parse(bad); err == nil {
			t.Errorf("Parse(%q) = %+v", bad, got)
		}
	}
	if _, err := NewToken("no name", pin); err == nil {
		t.Error("NewToken accepted a name with a space")
	}
}
