// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"errors"
	"net/url"
	"strings"
	"testing"

	"cairn/cloud"
	"cairn/cloud/wire"
)

func TestRead(t *testing.T) {
	for query, want := range map[string]string{
		"peer=192.0.2.1&port=80":                       "",
		"peer=192.0.2.1&protocol=icmp&icmp-type=8":     "",
		"peer=192.0.2.1&protocol=gre&direction=egress": "",
		"port=80":                   "peer",
		"peer=192.0.2.1":            "port",
		"peer=192.0.2.1&port=65536": "port",
		"peer=192.0.2.1&protocol=icmp&icmp-type=256":                     "icmp-type",
		"peer=192.0.2.1&protocol=icmpv6":                                 "icmp-type",
		"peer=192.0.2.1&protocol=all":                                    "protocol",
		"peer=192.0.2.1&protocol=tcpx&port=1":                            "protocol",
		"peer=1&port=x":                                                  "peer port",
		"peer=192.0.2.1&protocol=icmp&icmp-type=3&icmp-code=1&port=none": "",
	} {
		values, _ := url.ParseQuery(query)
		q, err := read(values.Get)
		var refused *cloud.Error
		if want == "" && err != nil || want != "" && !errors.As(err, &refused) {
			t.Errorf("%s: %+v, %v", query, q, err)
			continue
		}
		for field := range strings.FieldsSeq(want) {
			if !strings.Contains(err.Error(), field) {
				t.Errorf("%s: %v lacks %s", query, err, field)
			}
		}
	}
	values, _ := url.ParseQuery("peer=192.0.2.1&protocol=icmp&icmp-type=3&icmp-code=1&direction=egress")
	if q, err := read(values.Get); err != nil || q.Match != 3<<8|1 || q.Direction != wire.Egress || q.Protocol != 1 {
		t.Errorf("%+v, %v", q, err)
	}
}
