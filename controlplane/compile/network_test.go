// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"cairn/cloud"
	"cairn/controlplane/replica"
	"cairn/controlplane/store"
)

func networkID(n uint32) cloud.ID { return cloud.ID(fmt.Sprintf("n%d", n)) }

func elasticID(n uint32) cloud.ID { return cloud.ID(fmt.Sprintf("e%d", n)) }

func network(n uint32, firewall, managed bool) *replica.Network {
	d := &replica.Network{ID: networkID(n), Body: store.PrivateNetworkDoc{}}
	d.Body.VNI, d.Body.Firewall = n, firewall
	if managed {
		d.Body.Netmask, d.Body.StartIP, d.Body.EndIP = netip.MustParseAddr("255.255.255.0"), netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.9")
	}
	return d
}

// in puts an instance into networks.
func in(i *replica.Instance, networks ...uint32) *replica.Instance {
	for _, n := range networks {
		port := i.Body.Port*10 + n
		i.Body.Networks = append(i.Body.Networks, store.Attachment{Network: networkID(n), Port: port,
			MAC: fmt.Sprintf("02:ca:00:00:00:%02x", port), Address: netip.AddrFrom4([4]byte{10, 0, 0, byte(i.Body.Port)})})
	}
	return i
}

func elastic(n uint32, checked bool, instances ...uint32) *replica.Elastic {
	d := &replica.Elastic{ID: elasticID(n), Body: store.ElasticIPDoc{Number: n, Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(n)}), 32)}}
	if checked {
		d.Body.Healthcheck = &cloud.ElasticHealthcheck{Mode: cloud.CheckTCP, Port: 80}
	}
	for k, i := range instances {
		d.Body.Attached = append(d.Body.Attached, store.ElasticPlace{Instance: instanceID(i), Port: i, Generation: 1, Active: k == 0})
	}
	return d
}

func drawInterfaces(t *rapid.T, i *replica.Instance) {
	for n := range uint32(3) {
		if rapid.Bool().Draw(t, "in the network") {
			in(i, n+1)
		}
	}
	for e := range uint32(2) {
		if rapid.Bool().Draw(t, "elastic") {
			i.Body.ElasticIPs = append(i.Body.ElasticIPs, cloud.Ref{ID: elasticID(e + 1)})
		}
	}
	if rapid.Bool().Draw(t, "dual") {
		i.Body.Address6 = netip.MustParseAddr(fmt.Sprintf("2001:db8::%d", i.Body.Port))
	}
	if rapid.IntRange(0, 3).Draw(t, "hidden") == 0 {
		i.Body.Port, i.Body.Address, i.Body.Address6, i.Body.MAC = 0, netip.Addr{}, netip.Addr{}, ""
	}
}

func drawElastic(t *rapid.T, n uint32) *replica.Elastic {
	var at []uint32
	for i := range uint32(6) {
		if rapid.Bool().Draw(t, "attached") {
			at = append(at, i+1)
		}
	}
	e := elastic(n, rapid.Bool().Draw(t, "checked"), at...)
	for i := range e.Body.Attached {
		e.Body.Attached[i].Active = rapid.Bool().Draw(t, "active")
	}
	return e
}

func TestWhatNetworksTouch(t *testing.T) {
	w := newWorld(t)
	rows := start()
	rows.Instances = []*replica.Instance{in(instance(1, 1, 1, 1), 1), in(instance(2, 2, 1, 1), 1), instance(3, 3, 1, 1)}
	rows.Networks = []*replica.Network{network(1, false, true)}
	w.commit("", rows)
	for _, c := range []struct {
		name string
		rows replica.Rows
		want string
	}{
		{"a host comes into the network, and only it gets what is there", replica.Rows{Instances: []*replica.Instance{in(instance(3, 3, 1, 1), 1)}}, `
set instance/i3 on [3]
set port/31 on [3]
set network/1 on [1 2 3]
set neighbour/11 on [3]
set neighbour/21 on [3]
set neighbour/31 on [1 2 3]
`},
		{"one more on a host that is in it", replica.Rows{Instances: []*replica.Instance{in(instance(4, 1, 1, 1), 1)}}, `
set instance/i4 on [1]
set port/4 on [1]
set port/41 on [1]
set announcement/198.51.100.4/32 on [1]
set neighbour/41 on [1 2 3]
`},
		{"options are the network's alone", replica.Rows{Networks: []*replica.Network{network(1, false, false)}}, `
set network/1 on [1 2 3]
`},
		{"a firewall changes the ports", replica.Rows{Networks: []*replica.Network{network(1, true, false)}}, `
set port/11 on [1]
set port/21 on [2]
set port/31 on [3]
set port/41 on [1]
`},
		{"a host leaves the network", replica.Rows{Instances: []*replica.Instance{instance(3, 3, 1, 1)}}, `
set instance/i3 on [3]
gone port/31 on [3] by op
set network/1 on [1 2]
gone network/1 on [3] by op
gone neighbour/11 on [3] by op
gone neighbour/21 on [3] by op
gone neighbour/31 on [1 2 3] by op
gone neighbour/41 on [3] by op
`},
		{"a name of an instance is known to its neighbours", replica.Rows{Instances: []*replica.Instance{named(in(instance(2, 2, 1, 1), 1), "new")}}, `
set instance/i2 on [2]
set neighbour/21 on [1 2]
`},
	} {
		if got := text(w.commit("op", c.rows)); got != strings.TrimPrefix(c.want, "\n") {
			t.Errorf("%s:\n%s\nwant%s", c.name, got, c.want)
		}
	}
}

func named(i *replica.Instance, name string) *replica.Instance {
	i.Body.Name = name
	return i
}

func TestWhatElasticIPsTouch(t *testing.T) {
	w := newWorld(t)
	rows := start()
	with := func(n, host uint32) *replica.Instance {
		i := instance(n, host, 1, 1)
		i.Body.ElasticIPs = []cloud.Ref{{ID: elasticID(1)}}
		return i
	}
	rows.Instances = []*replica.Instance{instance(1, 1, 1, 1), instance(2, 2, 1, 1)}
	rows.Elastics = []*replica.Elastic{elastic(1, true)}
	w.commit("", rows)
	moved := elastic(1, true, 1, 2)
	moved.Body.Attached[0].Active, moved.Body.Attached[1].Active = false, true
	for _, c := range []struct {
		name string
		rows replica.Rows
		want string
	}{
		{"attached to two it comes to one", replica.Rows{Instances: []*replica.Instance{with(1, 1), with(2, 2)}, Elastics: []*replica.Elastic{elastic(1, true, 1, 2)}}, `
set port/1 on [1]
set port/2 on [2]
set check/elastic/1/1 on [1]
set check/elastic/1/2 on [2]
set announcement/192.0.2.1/32 on [1]
`},
		{"it moves", replica.Rows{Elastics: []*replica.Elastic{moved}}, `
set port/1 on [1]
set port/2 on [2]
set announcement/192.0.2.1/32 on [2]
gone announcement/192.0.2.1/32 on [1] by op
`},
		{"detached", replica.Rows{Instances: []*replica.Instance{with(1, 1), instance(2, 2, 1, 1)}, Elastics: []*replica.Elastic{elastic(1, true, 1)}}, `
set port/1 on [1]
set port/2 on [2]
gone check/elastic/1/2 on [2] by op
set announcement/192.0.2.1/32 on [1]
gone announcement/192.0.2.1/32 on [2] by op
`},
	} {
		if got := text(w.commit("op", c.rows)); got != strings.TrimPrefix(c.want, "\n") {
			t.Errorf("%s:\n%s\nwant%s", c.name, got, c.want)
		}
	}
}
