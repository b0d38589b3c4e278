// SPDX-License-Identifier: Apache-2.0

package cloud

import (
	"encoding/json"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestNewIDParses(t *testing.T) {
	seen := map[ID]bool{}
	for range 1000 {
		id := NewID()
		if p, err := ParseID(strings.ToUpper(string(id))); err != nil || p != id || id[14] != '4' || !strings.ContainsRune("89ab", rune(id[19])) {
			t.Fatalf("id %q: %q, %v", id, p, err)
		}
		if seen[id] {
			t.Fatalf("id %q twice", id)
		}
		seen[id] = true
	}
}

func TestParseIDRefuses(t *testing.T) {
	good := "0c0a1ca5-0001-4000-8000-000000000001"
	if _, err := ParseID(good); err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(t *rapid.T) {
		b := []byte(good)
		i := rapid.IntRange(0, len(b)-1).Draw(t, "at")
		b[i] = rapid.SampledFrom([]byte("gz:/@ {}_\x00\xff")).Draw(t, "octet")
		if _, err := ParseID(string(b)); err == nil {
			t.Fatalf("%q passes", b)
		}
	})
	for _, bad := range []string{"", good[1:], good + "0", strings.ReplaceAll(good, "-", ""), "{" + good + "}"} {
		if _, err := ParseID(bad); err == nil {
			t.Errorf("%q passes", bad)
		}
	}
}

func TestIDsAreReadInLowerCase(t *testing.T) {
	var r Ref
	if err := json.Unmarshal([]byte(`{"id":"0C0A1CA5-0001-4000-8000-00000000000A","name":"x"}`), &r); err != nil || r.ID != "0c0a1ca5-0001-4000-8000-00000000000a" {
		t.Error(r, err)
	}
	if b, err := json.Marshal(r); err != nil || string(b) != `{"id":"0c0a1ca5-0001-4000-8000-00000000000a"}` {
		t.Error(string(b), err)
	}
}

func faultsOf(v Validator) string {
	var out []string
	for _, f := range v.Validate() {
		out = append(out, f.Location)
	}
	return strings.Join(out, " ")
}

func TestAddRuleValidate(t *testing.T) {
	group := &SecurityGroupResource{ID: NewID()}
	for _, c := range []struct {
		rule AddRuleRequest
		want string
	}{
		{AddRuleRequest{Protocol: TCP, Network: "0.0.0.0/0", StartPort: 80, EndPort: 80}, ""},
		{AddRuleRequest{Protocol: UDP, SecurityGroup: group, StartPort: 1, EndPort: 65535}, ""},
		{AddRuleRequest{Protocol: ICMP, Network: "10.0.0.1/8", ICMP: &ICMPMatch{8, 0}}, ""},
		{AddRuleRequest{Protocol: All, Network: "::/0"}, ""},
		{AddRuleRequest{Protocol: TCP, SecurityGroup: &SecurityGroupResource{Name: "p", Visibility: "public"}, StartPort: 1, EndPort: 1}, ""},
		{AddRuleRequest{Protocol: TCP}, "network start-port end-port"},
		{AddRuleRequest{Protocol: TCP, Network: "0.0.0.0/0", SecurityGroup: group, StartPort: 1, EndPort: 1}, "network"},
		{AddRuleRequest{Protocol: TCP, Network: "0.0.0.0", StartPort: 2, EndPort: 1}, "network end-port"},
		{AddRuleRequest{Protocol: TCP, SecurityGroup: &SecurityGroupResource{Name: "mine"}, StartPort: 1, EndPort: 1}, "security-group.visibility"},
		{AddRuleRequest{Protocol: TCP, SecurityGroup: &SecurityGroupResource{}, StartPort: 1, EndPort: 1}, "security-group.id"},
		{AddRuleRequest{Protocol: GRE, Network: "0.0.0.0/0", StartPort: 1, EndPort: 1, ICMP: &ICMPMatch{}}, "start-port end-port icmp"},
		{AddRuleRequest{Protocol: ICMPv6, Network: "0.0.0.0/0"}, "network"},
		{AddRuleRequest{Protocol: ICMP, Network: "::/0"}, "network"},
	} {
		if got := faultsOf(&c.rule); got != c.want {
			t.Errorf("%+v: faults %q, want %q", c.rule, got, c.want)
		}
	}
}

func TestICMPMatchTellsZeroFromAbsent(t *testing.T) {
	for in, want := range map[string]ICMPMatch{`{}`: {-1, -1}, `{"type":0}`: {0, -1}, `{"code":0,"type":8}`: {8, 0}} {
		var m ICMPMatch
		if err := json.Unmarshal([]byte(in), &m); err != nil || m != want {
			t.Errorf("%s: %+v, %v", in, m, err)
		}
	}
	if b, _ := json.Marshal(ICMPMatch{}); string(b) != `{"type":0,"code":0}` {
		t.Error(string(b))
	}
}

func TestHealthcheck(t *testing.T) {
	if f := (Healthcheck{Timeout: 11}).Validate(); len(f) != 1 || f[0].Location != "timeout" {
		t.Error("timeout over the default interval:", f)
	}
	if f := (Healthcheck{Interval: 5, Timeout: 5}).Validate(); f != nil {
		t.Error(f)
	}
	r := AddServiceRequest{TargetPort: 8080, Healthcheck: Healthcheck{URI: "/x"}}
	if got, want := r.Service("s").Healthcheck, (Healthcheck{Mode: CheckTCP, Port: 8080, Interval: 10, Timeout: 2, Retries: 1, URI: "/x"}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	r.Healthcheck = Healthcheck{Interval: 5, Timeout: 6}
	if got := faultsOf(&r); got != "healthcheck.timeout" {
		t.Error(got)
	}
}

func TestFingerprint(t *testing.T) {
	const key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f me@here"
	if got, err := Fingerprint(key); err != nil || got != "0f:a2:0a:d7:38:3e:65:45:08:6b:63:84:1c:ff:dc:ba" {
		t.Errorf("%q, %v", got, err)
	}
	for _, bad := range []string{"", "ssh-ed25519", "ssh-ed25519 !", "ssh-rsa " + strings.Fields(key)[1], "ssh-ed25519 AAAA"} {
		if got, err := Fingerprint(bad); err == nil {
			t.Errorf("%q: %q", bad, got)
		}
		if bad != "" && faultsOf(&RegisterSSHKeyRequest{PublicKey: bad}) != "public-key" {
			t.Errorf("%q is a valid request", bad)
		}
	}
}

func TestPoolValidate(t *testing.T) {
	id := NewID()
	r := CreateInstancePoolRequest{Size: 2, MinAvailable: 3, UserData: "%", SecurityGroups: []Ref{{id}, {id}}}
	if got := faultsOf(&r); got != "user-data min-available security-groups[1].id" {
		t.Error(got)
	}
	if got := faultsOf(&EvictInstancePoolMembersRequest{Instances: []ID{id, NewID(), id}}); got != "instances[2]" {
		t.Error(got)
	}
}

func TestErrors(t *testing.T) {
	e := InvalidFields(Under("healthcheck", []FieldError{Fault("port", "expected number <= %d", 65535), Fault("", "odd")}))
	if e.Error() != "healthcheck.port: expected number <= 65535; healthcheck: odd" || e.Kind != Invalid {
		t.Error(e)
	}
	if e := Exists("load balancer", "web"); e.Kind != Conflict || !strings.Contains(e.Message, "already exists") {
		t.Error(e)
	}
	if e := Unavailablef(0, "later"); e.RetryAfter < 1e9 {
		t.Error("retry after", e.RetryAfter)
	}
}

func TestCatalogue(t *testing.T) {
	seen := map[ID]bool{}
	for _, x := range InstanceTypes {
		if _, err := ParseID(string(x.ID)); err != nil || seen[x.ID] {
			t.Error(x.Title(), err)
		}
		seen[x.ID] = true
	}
	for _, x := range Images {
		if _, err := ParseID(string(x.ID)); err != nil || seen[x.ID] || x.Driver == "" || x.Command == "" {
			t.Error(x.Name, err)
		}
		seen[x.ID] = true
		if got, ok := FindImage(x.ID); !ok || got.Name != x.Name {
			t.Error(x.Name)
		}
	}
	if _, ok := FindInstanceType("x"); ok {
		t.Error("found a type that is not there")
	}
}
