// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"net"
	"testing"

	v3 "github.com/exoscale/egoscale/v3"

	"cairn/cloud"
	"cairn/cloud/wire"
)

func ip(s string) net.IP { return net.ParseIP(s) }

// attaches, detaches and changes the address of an instance in a network.
func (s *story) attaches(network, instance v3.UUID, address net.IP) {
	s.t.Helper()
	s.gets(s.AttachInstanceToPrivateNetwork(s.ctx, network, v3.AttachInstanceToPrivateNetworkRequest{
		Instance: &v3.AttachInstanceToPrivateNetworkRequestInstance{ID: instance}, IP: address}))
}

func TestPrivateNetworks(t *testing.T) {
	z := newInhabited(t, 3, "198.51.100.0/24")
	s, other := z.tenant("acme", z.endpoint, once), z.tenant("other", z.endpoint, once)
	_, err := s.CreatePrivateNetwork(s.ctx, v3.CreatePrivateNetworkRequest{Name: "net", Netmask: ip("255.255.255.0"), StartIP: ip("10.0.0.50"), EndIP: ip("10.0.0.20")})
	refused(t, err, v3.ErrBadRequest, "end-ip")
	_, err = s.CreatePrivateNetwork(s.ctx, v3.CreatePrivateNetworkRequest{Name: "net", Netmask: ip("255.255.255.0"), StartIP: ip("10.0.0.50")})
	refused(t, err, v3.ErrBadRequest, "end-ip: required")

	// As Terraform does: the reference of the first answer, then a read.
	bare := s.gets(s.CreatePrivateNetwork(s.ctx, v3.CreatePrivateNetworkRequest{Name: "bare", Description: "no DHCP"}))
	n := must(s.GetPrivateNetwork(s.ctx, bare))(t)
	if n.Name != "bare" || n.Description != "no DHCP" || n.Vni != 1 || n.Options != nil || n.Labels != nil || n.StartIP != nil || n.Leases != nil {
		t.Errorf("network %+v", n)
	}
	id := s.gets(s.CreatePrivateNetwork(s.ctx, v3.CreatePrivateNetworkRequest{
		Name: "net", Netmask: ip("255.255.255.0"), StartIP: ip("10.0.0.50"), EndIP: ip("10.0.0.60"), Labels: v3.Labels{"a": "b"},
		Options: &v3.PrivateNetworkOptions{Routers: []net.IP{ip("10.0.0.1")}, DNSServers: []net.IP{ip("9.9.9.9"), ip("1.1.1.1")},
			NtpServers: []net.IP{ip("10.0.0.2")}, DomainSearch: []string{"example.net"}}}))
	var listed *v3.PrivateNetwork
	for _, one := range must(s.ListPrivateNetworks(s.ctx))(t).PrivateNetworks {
		if one.ID == id {
			listed = &one
		}
	}
	if listed == nil || listed.Options == nil || len(listed.Options.DNSServers) != 2 || listed.Options.DomainSearch[0] != "example.net" || listed.Labels["a"] != "b" {
		t.Errorf("row of the list: %+v", listed)
	}

	one, two := s.gets(s.CreateInstance(s.ctx, s.order("one"))), s.gets(s.CreateInstance(s.ctx, s.order("two")))
	s.attaches(id, one, nil)
	s.attaches(id, two, ip("10.0.0.10"))
	s.gets(s.StopInstance(s.ctx, one))
	s.attaches(bare, one, nil) // while it is stopped
	n = must(s.GetPrivateNetwork(s.ctx, id))(t)
	if len(n.Leases) != 2 || !n.Leases[0].IP.Equal(ip("10.0.0.10")) || n.Leases[0].InstanceID != two || !n.Leases[1].IP.Equal(ip("10.0.0.50")) {
		t.Errorf("leases %+v", n.Leases)
	}
	i := must(s.GetInstance(s.ctx, one))(t)
	if len(i.PrivateNetworks) != 2 || i.PrivateNetworks[0].ID != id || i.PrivateNetworks[0].MACAddress == "" || i.PrivateNetworks[1].ID != bare {
		t.Errorf("networks of the instance %+v", i.PrivateNetworks)
	}
	for _, row := range must(s.ListInstances(s.ctx))(t).Instances {
		if row.ID == one && (len(row.PrivateNetworks) != 2 || row.PrivateNetworks[0].MACAddress != i.PrivateNetworks[0].MACAddress) {
			t.Errorf("row of the instance %+v", row.PrivateNetworks)
		}
	}
	_, err = s.AttachInstanceToPrivateNetwork(s.ctx, id, v3.AttachInstanceToPrivateNetworkRequest{
		Instance: &v3.AttachInstanceToPrivateNetworkRequestInstance{ID: one}, IP: ip("10.0.0.10")})
	refused(t, err, v3.ErrConflict, "already attached")
	_, err = s.DeletePrivateNetwork(s.ctx, id)
	refused(t, err, v3.ErrConflict, "in use")
	_, err = other.GetPrivateNetwork(s.ctx, id)
	refused(t, err, v3.ErrNotFound, string(id))
	_, err = other.AttachInstanceToPrivateNetwork(s.ctx, id, v3.AttachInstanceToPrivateNetworkRequest{Instance: &v3.AttachInstanceToPrivateNetworkRequestInstance{ID: one}})
	refused(t, err, v3.ErrNotFound, string(id))

	s.gets(s.UpdatePrivateNetworkInstanceIP(s.ctx, id, v3.UpdatePrivateNetworkInstanceIPRequest{
		Instance: &v3.UpdatePrivateNetworkInstanceIPRequestInstance{ID: two}, IP: ip("10.0.0.99")}))
	s.gets(s.UpdatePrivateNetwork(s.ctx, id, v3.UpdatePrivateNetworkRequest{Name: "renamed", EndIP: ip("10.0.0.55")}))
	s.gets(s.ResetPrivateNetworkField(s.ctx, id, v3.ResetPrivateNetworkFieldFieldLabels))
	n = must(s.GetPrivateNetwork(s.ctx, id))(t)
	if n.Name != "renamed" || !n.EndIP.Equal(ip("10.0.0.55")) || !n.StartIP.Equal(ip("10.0.0.50")) || n.Labels != nil || n.Options == nil || !n.Leases[1].IP.Equal(ip("10.0.0.99")) {
		t.Errorf("network %+v", n)
	}
	if got := z.onHosts(wire.KindNeighbour); got != 5 { // two of one network on two hosts, one of the other on one
		t.Errorf("hosts know %d neighbours, want 5", got)
	}
	for _, x := range []v3.UUID{one, two} {
		s.gets(s.DetachInstanceFromPrivateNetwork(s.ctx, id, v3.DetachInstanceFromPrivateNetworkRequest{Instance: &v3.Instance{ID: x}}))
	}
	s.gets(s.DeletePrivateNetwork(s.ctx, id))
	// An instance goes without being detached first, and then the network can.
	s.gets(s.DeleteInstance(s.ctx, one))
	s.gets(s.DeletePrivateNetwork(s.ctx, bare))
	s.gets(s.DeleteInstance(s.ctx, two))
	for _, kind := range wire.Kinds() {
		if n := z.onHosts(kind); n > 0 && kind != wire.KindHost {
			t.Errorf("hosts still hold %d of kind %s", n, kind)
		}
	}
}

func TestElasticIPs(t *testing.T) {
	z := newInhabited(t, 3, "198.51.100.0/24")
	s, other := z.tenant("acme", z.endpoint, once), z.tenant("other", z.endpoint, once)
	skip := true
	id := s.gets(s.CreateElasticIP(s.ctx, v3.CreateElasticIPRequest{Description: "front", Labels: v3.Labels{"a": "b"},
		Healthcheck: &v3.ElasticIPHealthcheck{Mode: v3.ElasticIPHealthcheckModeHttps, Port: 443, URI: "/up", TlsSNI: "example.net", TlsSkipVerify: &skip}}))
	e := must(s.GetElasticIP(s.ctx, id))(t)
	h := e.Healthcheck
	if e.IP != "192.0.2.1" || e.Cidr != "192.0.2.1/32" || e.Addressfamily != "inet4" || e.Description != "front" || e.Labels["a"] != "b" || h == nil ||
		h.Interval != 10 || h.Timeout != 2 || h.StrikesOk != 2 || h.StrikesFail != 3 || h.TlsSkipVerify == nil || !*h.TlsSkipVerify || h.TlsSNI != "example.net" {
		t.Errorf("elastic IP %+v, %+v", e, h)
	}
	six := must(s.GetElasticIP(s.ctx, s.gets(s.CreateElasticIP(s.ctx, v3.CreateElasticIPRequest{Addressfamily: v3.CreateElasticIPRequestAddressfamilyInet6}))))(t)
	if six.Cidr != "2001:db8:e::1:0:0/96" || six.IP != "2001:db8:e::1:0:1" || six.Addressfamily != "inet6" || six.Healthcheck != nil || six.Labels != nil {
		t.Errorf("elastic IP %+v", six)
	}
	_, err := s.CreateElasticIP(s.ctx, v3.CreateElasticIPRequest{Healthcheck: &v3.ElasticIPHealthcheck{Mode: "tcp", Port: 80, Interval: 5, Timeout: 6}})
	refused(t, err, v3.ErrBadRequest, "healthcheck.timeout")

	var at []v3.UUID
	for _, name := range []string{"one", "two"} {
		i := s.gets(s.CreateInstance(s.ctx, s.order(name)))
		for _, x := range []v3.UUID{id, six.ID} {
			s.gets(s.AttachInstanceToElasticIP(s.ctx, x, v3.AttachInstanceToElasticIPRequest{Instance: &v3.InstanceTarget{ID: i}}))
		}
		at = append(at, i)
	}
	if i := must(s.GetInstance(s.ctx, at[0]))(t); len(i.ElasticIPS) != 2 || i.ElasticIPS[0].ID != id {
		t.Errorf("elastic IPs of the instance %+v", i.ElasticIPS)
	}
	// Two own addresses, one that comes to one place, and one that comes to both.
	if n, c := z.onHosts(wire.KindAnnouncement), z.onHosts(wire.KindCheck); n != 5 || c != 2 {
		t.Errorf("%d announcements, %d checks", n, c)
	}
	found, err := must(s.ListElasticIPS(s.ctx))(t).FindElasticIP("192.0.2.1")
	if err != nil || found.ID != id {
		t.Errorf("found %+v, %v", found, err)
	}
	_, err = s.DeleteElasticIP(s.ctx, id)
	refused(t, err, v3.ErrConflict, "in use")
	_, err = other.DetachInstanceFromElasticIP(s.ctx, id, v3.DetachInstanceFromElasticIPRequest{Instance: &v3.InstanceTarget{ID: at[0]}})
	refused(t, err, v3.ErrNotFound, string(id))

	s.gets(s.UpdateElasticIP(s.ctx, id, v3.UpdateElasticIPRequest{Healthcheck: &v3.ElasticIPHealthcheck{Mode: "tcp", Port: 80}}))
	s.gets(s.ResetElasticIPField(s.ctx, id, v3.ResetElasticIPFieldFieldDescription))
	e = must(s.GetElasticIP(s.ctx, id))(t)
	if e.Description != "" || e.Healthcheck.Mode != "tcp" || e.Healthcheck.URI != "" || e.Healthcheck.TlsSNI != "" || e.Labels["a"] != "b" {
		t.Errorf("elastic IP %+v, %+v", e, e.Healthcheck)
	}

	// As Terraform deletes one: every instance is detached, then its name, then it.
	_, err = s.GetReverseDNSElasticIP(s.ctx, id)
	refused(t, err, v3.ErrNotFound, "")
	s.gets(s.UpdateReverseDNSElasticIP(s.ctx, id, v3.UpdateReverseDNSElasticIPRequest{DomainName: "www.example.net"}))
	if r := must(s.GetReverseDNSElasticIP(s.ctx, id))(t); r.DomainName != "www.example.net." {
		t.Errorf("name %q", r.DomainName)
	}
	for _, i := range at {
		for _, x := range []v3.UUID{id, six.ID} {
			s.gets(s.DetachInstanceFromElasticIP(s.ctx, x, v3.DetachInstanceFromElasticIPRequest{Instance: &v3.InstanceTarget{ID: i}}))
		}
	}
	s.gets(s.DeleteReverseDNSElasticIP(s.ctx, id))
	_, err = s.DeleteReverseDNSElasticIP(s.ctx, id)
	refused(t, err, v3.ErrNotFound, "")
	s.gets(s.DeleteElasticIP(s.ctx, id))
	if n, c := z.onHosts(wire.KindAnnouncement), z.onHosts(wire.KindCheck); n != 2 || c != 0 {
		t.Errorf("%d announcements, %d checks", n, c)
	}

	s.gets(s.UpdateReverseDNSInstance(s.ctx, at[0], v3.UpdateReverseDNSInstanceRequest{DomainName: "one.example.net."}))
	if r := must(s.GetReverseDNSInstance(s.ctx, at[0]))(t); r.DomainName != "one.example.net." {
		t.Errorf("name %q", r.DomainName)
	}
	_, err = other.GetReverseDNSInstance(s.ctx, at[0])
	refused(t, err, v3.ErrNotFound, "")
	_, err = s.UpdateReverseDNSInstance(s.ctx, at[0], v3.UpdateReverseDNSInstanceRequest{DomainName: "no name"})
	refused(t, err, v3.ErrBadRequest, "domain-name")
	s.gets(s.DeleteReverseDNSInstance(s.ctx, at[0]))
}

// TestPoolsInNetworks: the members of a pool are in its networks and have its
// elastic IPs, from the start.
func TestPoolsInNetworks(t *testing.T) {
	z := newInhabited(t, 3, "198.51.100.0/24")
	s := z.tenant("acme", z.endpoint, once)
	network := s.gets(s.CreatePrivateNetwork(s.ctx, v3.CreatePrivateNetworkRequest{Name: "net", Netmask: ip("255.255.255.0"), StartIP: ip("10.0.0.50"), EndIP: ip("10.0.0.60")}))
	eip := s.gets(s.CreateElasticIP(s.ctx, v3.CreateElasticIPRequest{}))
	o := s.order("")
	ask := v3.CreateInstancePoolRequest{Name: "web", Size: 3, DiskSize: 10, InstanceType: o.InstanceType, Template: o.Template,
		PublicIPAssignment: v3.CreateInstancePoolRequestPublicIPAssignmentDual,
		PrivateNetworks:    []v3.PrivateNetwork{{ID: network}}, ElasticIPS: []v3.ElasticIP{{ID: eip}}}
	id := s.gets(s.CreateInstancePool(s.ctx, ask))
	if n := must(s.GetPrivateNetwork(s.ctx, network))(t); len(n.Leases) != 3 {
		t.Errorf("leases %+v", n.Leases)
	}
	for _, m := range must(s.GetInstancePool(s.ctx, id))(t).Instances {
		i := must(s.GetInstance(s.ctx, m.ID))(t)
		if len(i.PrivateNetworks) != 1 || len(i.ElasticIPS) != 1 || i.Ipv6Address == "" || i.PublicIPAssignment != v3.PublicIPAssignmentDual {
			t.Errorf("member %+v", i)
		}
	}
	// Nobody can take away what the pool's next member is made with.
	s.gets(s.ScaleInstancePool(s.ctx, id, v3.ScaleInstancePoolRequest{Size: 0}))
	_, err := s.DeletePrivateNetwork(s.ctx, network)
	refused(t, err, v3.ErrConflict, "instance-pool")
	_, err = s.DeleteElasticIP(s.ctx, eip)
	refused(t, err, v3.ErrConflict, "instance-pool")
	s.gets(s.ScaleInstancePool(s.ctx, id, v3.ScaleInstancePoolRequest{Size: 2}))
	s.gets(s.DeleteInstancePool(s.ctx, id))
	s.gets(s.DeletePrivateNetwork(s.ctx, network))
	s.gets(s.DeleteElasticIP(s.ctx, eip))
	for _, kind := range wire.Kinds() {
		if n := z.onHosts(kind); n > 0 && kind != wire.KindHost {
			t.Errorf("hosts still hold %d of kind %s", n, kind)
		}
	}
	ask.PrivateNetworks = []v3.PrivateNetwork{{ID: id}}
	_, err = s.CreateInstancePool(s.ctx, ask)
	refused(t, err, v3.ErrBadRequest, "private-networks[0].id")
}

// TestInstancesAreChanged: what clients do to an instance that there is.
func TestInstancesAreChanged(t *testing.T) {
	z := newInhabited(t, 1, "198.51.100.0/24")
	s := z.tenant("acme", z.endpoint, once)
	r := s.order("one")
	r.Labels = v3.Labels{"a": "b"}
	id := s.gets(s.CreateInstance(s.ctx, r))
	s.gets(s.UpdateInstance(s.ctx, id, v3.UpdateInstanceRequest{Name: "two", Labels: v3.Labels{"c": "d"}, PublicIPAssignment: v3.PublicIPAssignmentDual}))
	i := must(s.GetInstance(s.ctx, id))(t)
	if i.Name != "two" || i.Labels["c"] != "d" || i.Ipv6Address != "2001:db8:1::2" || i.PublicIPAssignment != "dual" || i.State != "running" {
		t.Errorf("instance %+v", i)
	}
	s.gets(s.ResetInstanceField(s.ctx, id, v3.ResetInstanceFieldFieldLabels))
	if i := must(s.GetInstance(s.ctx, id))(t); len(i.Labels) != 0 {
		t.Errorf("labels %v", i.Labels)
	}
	s.gets(s.RebootInstance(s.ctx, id))
	s.gets(s.AddInstanceProtection(s.ctx, id))
	_, err := s.DeleteInstance(s.ctx, id)
	refused(t, err, v3.ErrForbidden, "Operation delete-instance on resource "+string(id)+" is forbidden - reason: manual instance protection")
	s.gets(s.RemoveInstanceProtection(s.ctx, id))
	_, err = s.RevealInstancePassword(s.ctx, id)
	refused(t, err, v3.ErrNotFound, "password")
	s.gets(s.ResetInstancePassword(s.ctx, id))
	if p := must(s.RevealInstancePassword(s.ctx, id))(t); p.Password == "" {
		t.Error("no password")
	}
	bigger := v3.ScaleInstanceRequest{InstanceType: &v3.InstanceType{ID: v3.UUID(cloud.InstanceTypes[3].ID)}}
	_, err = s.ScaleInstance(s.ctx, id, bigger)
	refused(t, err, v3.ErrConflict, "must be stopped")
	s.gets(s.StopInstance(s.ctx, id)) // stop, scale, start: as Terraform does
	s.gets(s.ScaleInstance(s.ctx, id, bigger))
	s.gets(s.StartInstance(s.ctx, id, v3.StartInstanceRequest{}))
	if i := must(s.GetInstance(s.ctx, id))(t); i.InstanceType.ID != bigger.InstanceType.ID || i.State != "running" {
		t.Errorf("instance %+v", i)
	}
	hidden := s.order("hidden")
	hidden.PublicIPAssignment = v3.PublicIPAssignmentNone
	none := must(s.GetInstance(s.ctx, s.gets(s.CreateInstance(s.ctx, hidden))))(t)
	if none.PublicIP != nil || none.MACAddress != "" || none.State != "running" {
		t.Errorf("instance %+v", none)
	}
	s.gets(s.DeleteInstance(s.ctx, id))
}
