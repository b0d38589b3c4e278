// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"strings"
	"testing"

	"cairn/controlplane/store"
	"cairn/controlplane/tenant"
)

// TestNetworksOnTheCommandLine: the verbs of networks, elastic IPs and names of
// addresses are there without being written, and find objects by what people call
// them.
func TestNetworksOnTheCommandLine(t *testing.T) {
	z := newInhabited(t, 2, "198.51.100.0/24")
	x := &terminal{t: t, endpoint: z.endpoint}
	_, err := z.store.Write(t.Context(), func(tx *store.Tx) error {
		k, err := tenant.Found(tx, z.root, "acme")
		x.key, x.secret = k.Key, k.Secret
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	x.must("instance create one --instance-type tiny --template echo --disk-size 10", "198.51.100.2")
	x.must("instance create two --instance-type shared.tiny --template echo --disk-size 10 --public-ip-assignment dual", "2001:db8:1::2")

	x.must("private-network create net --netmask 255.255.255.0 --start-ip 10.0.0.10 --end-ip 10.0.0.20 --options-routers 10.0.0.1 --firewall", "10.0.0.10", "10.0.0.20")
	x.must("private-network list", "NAME", "VNI", "net", "255.255.255.0")
	x.must("private-network attach-instance net --instance one")
	x.must("network attach-instance net --instance two --ip 10.0.0.77 --allowed-addresses 10.0.0.200")
	x.must("privnet get net", "leases", "10.0.0.10", "10.0.0.77")
	x.must("private-network update-instance-ip net --instance one --ip 10.0.0.50", "10.0.0.50")
	x.must("private-network update net --description changed --end-ip 10.0.0.60", "changed", "10.0.0.60")
	x.must("private-network reset-field net labels")

	x.must("elastic-ip create --description front --healthcheck-mode tcp --healthcheck-port 80", "192.0.2.1", "front")
	x.must("eip list", "192.0.2.1", "inet4")
	x.must("elastic-ip attach-instance 192.0.2.1 --instance one")
	x.must("elastic-ip update 192.0.2.1 --healthcheck-interval 5", "5")
	x.must("instance get one", "elastic-ips", "private-networks")
	x.must("reverse-dns update-elastic-ip 192.0.2.1 --domain-name www.example.net")
	x.must("reverse-dns get-elastic-ip 192.0.2.1", "www.example.net.")
	x.must("reverse-dns update-instance one --domain-name one.example.net")
	x.must("reverse-dns get-instance one", "one.example.net.")

	x.must("instance update one --name first", "first")
	x.must("instance reboot first", "running")
	x.must("instance add-protection first")
	x.must("instance reset-password first")
	x.must("instance reveal-password first", "password")
	for line, want := range map[string]string{
		"instance delete first":        "manual instance protection",
		"private-network delete net":   "in use",
		"elastic-ip delete 192.0.2.1":  "in use",
		"elastic-ip delete 192.0.2.99": `elastic-ip "192.0.2.99" not found`,
		"private-network create bad --netmask 255.255.255.0 --start-ip 10.0.0.20 --end-ip 10.0.0.10": "end-ip: expected",
	} {
		if out, err := x.run(strings.Fields(line)...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v\n%s, want %q", line, err, out, want)
		}
	}
	x.must("instance remove-protection first")
	x.must("elastic-ip detach-instance 192.0.2.1 --instance first")
	x.must("elastic-ip delete 192.0.2.1", "success")
	x.must("instance delete first", "success")
	x.must("private-network detach-instance net --instance two")
	x.must("private-network delete net", "success")
	x.must("instance delete two", "success")
}
