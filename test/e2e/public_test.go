// SPDX-License-Identifier: Apache-2.0

//go:build lab

package e2e

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	v3 "github.com/exoscale/egoscale/v3"
	"github.com/vishvananda/netlink"

	"cairn/bpf"
	"cairn/cloud/compute"
	"cairn/dataplane/debug"
	"cairn/test/lab"
	"cairn/test/story"
)

const userData = "#cloud-config\nhostname: first\n"

// launch an instance; change says what is other than usual.
func (c *cloudUnderTest) launch(name string, change func(*v3.CreateInstanceRequest)) *v3.Instance {
	c.Helper()
	req := v3.CreateInstanceRequest{Name: name, DiskSize: 10, InstanceType: c.InstanceType, Template: c.Template}
	change(&req)
	id, err := c.Done(c.CreateInstance(c.Context(), req))
	must(c.T, "instance "+name, err)
	i, err := c.GetInstance(c.Context(), id)
	must(c.T, "get instance "+name, err)
	return i
}

// machine of an instance with a public address.
func (c *cloudUnderTest) machine(i *v3.Instance) (at lab.Host, hv int) {
	c.Helper()
	address, _ := netip.AddrFromSlice(i.PublicIP.To4())
	for hv := 1; hv <= c.Hypervisors(); hv++ {
		ports, err := story.AskAgent[[]debug.Port](c.Context(), c.Lab, hv, "ports")
		must(c.T, "ports", err)
		for _, p := range ports {
			if slices.Contains(p.Addresses, address) {
				return c.Instance(hv, p.ID, address), hv
			}
		}
	}
	c.Fatalf("no hypervisor has %s", address)
	return lab.Host{}, 0
}

// metadata that a machine is told.
func metadata(from lab.Host, path string, change func(*http.Request)) (status int, body string, err error) {
	req, err := http.NewRequest(http.MethodGet, "http://169.254.169.254"+path, nil)
	if err != nil {
		return 0, "", err
	}
	if change != nil {
		change(req)
	}
	resp, err := from.HTTP(5 * time.Second).Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

// An instance learns who it is, by a public port or a private one, and not who
// another is that has its address.
func TestInstancesLearnWhoTheyAre(t *testing.T) {
	t.Parallel()
	c := newCloud(t, lab.Config{})
	group, err := c.Group("closed") // it admits nothing
	must(t, "security group", err)
	first := c.launch("first", func(r *v3.CreateInstanceRequest) {
		r.SecurityGroups = []v3.SecurityGroup{{ID: group}}
		r.UserData = base64.StdEncoding.EncodeToString([]byte(userData))
	})
	at, _ := c.machine(first)
	type guest struct {
		lab.Host
		id v3.UUID
	}
	guests := []guest{{at, first.ID}}
	for _, tenant := range []string{"red", "blue"} {
		network := c.network(tenant)
		i := c.launch(tenant, func(r *v3.CreateInstanceRequest) { r.PublicIPAssignment = v3.PublicIPAssignmentNone })
		_, err := c.Done(c.AttachInstanceToPrivateNetwork(c.Context(), network, v3.AttachInstanceToPrivateNetworkRequest{
			IP: net.ParseIP("10.0.0.11"), Instance: &v3.AttachInstanceToPrivateNetworkRequestInstance{ID: i.ID},
		}))
		must(t, "attach", err)
		guests = append(guests, guest{c.member(i.ID, netip.MustParseAddr("10.0.0.11")).Host, i.ID})
	}
	c.inStep()

	told := func(from lab.Host, path string) string {
		t.Helper()
		var got string
		lab.Eventually(t, path, 10*time.Second, func() error {
			status, body, err := metadata(from, path, nil)
			if err == nil && status != http.StatusOK {
				err = fmt.Errorf("status %d", status)
			}
			got = body
			return err
		})
		return got
	}
	for _, g := range guests {
		if got := told(g.Host, "/latest/meta-data/instance-id"); got != string(g.id) {
			t.Errorf("%s in %s is told that it is %s", g.id, g.Namespace, got)
		}
		if got := told(g.Host, "/1.0/meta-data/local-ipv4"); got != g.Address.String() {
			t.Errorf("%s is told that it has %s", g.Address, got)
		}
	}
	if got := told(at, "/latest/user-data"); got != userData {
		t.Errorf("user data %q", got)
	}
	names := strings.Split(told(at, "/latest/meta-data/"), "\n")
	for _, want := range []string{"availability-zone", "cloud-identifier", "instance-id", "local-hostname", "local-ipv4", "public-hostname", "public-ipv4", "service-offering", "vm-id"} {
		if !slices.Contains(names, want) {
			t.Errorf("no %s in %q", want, names)
		}
	}
	if got := told(guests[1].Host, "/latest/user-data"); got != "" {
		t.Errorf("red is told somebody's user data: %q", got)
	}
	c.within(t).refusesForgeries(guests[1].Host)
}

// refusesForgeries: paths that lead elsewhere, requests that are passed on, and an
// identity that a guest gives itself.
func (c *cloudUnderTest) refusesForgeries(from lab.Host) {
	c.Helper()
	for path, want := range map[string]int{
		"/latest/meta-data/../user-data":        http.StatusNotFound,
		"/latest/meta-data/instance-id/x":       http.StatusNotFound,
		"/latest/meta-data/password":            http.StatusNotFound,
		"/2.0/meta-data/instance-id":            http.StatusNotFound,
		"/" + strings.Repeat("latest/", 99):     http.StatusNotFound,
		"/latest/meta-data/instance-id#control": http.StatusOK,
	} {
		if status, _, err := metadata(from, path, nil); err != nil || status != want {
			c.Errorf("%.40s: status %d, %v, want %d", path, status, err, want)
		}
	}
	if status, _, err := metadata(from, "/latest/meta-data/instance-id", func(r *http.Request) {
		r.Header.Set("X-Forwarded-For", "10.0.0.12")
	}); err != nil || status != http.StatusForbidden {
		c.Errorf("passed on: status %d, %v", status, err)
	}
	if status, _, err := metadata(from, "/latest/user-data", func(r *http.Request) { r.Method = http.MethodPut }); err != nil || status != http.StatusMethodNotAllowed {
		c.Errorf("a change: status %d, %v", status, err)
	}
	before := c.counted(bpf.ReasonBadSource)
	liar := lab.Host{Namespace: from.Namespace, Address: netip.MustParseAddr("198.18.0.1")}
	must(c.T, "an identity of its own", from.Do(func() error {
		link, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: liar.Address.AsSlice(), Mask: net.CIDRMask(32, 32)}})
	}))
	conn, err := net.Conn(nil), error(nil)
	_ = liar.Do(func() error {
		d := net.Dialer{Timeout: time.Second, LocalAddr: &net.TCPAddr{IP: liar.Address.AsSlice()}}
		conn, err = d.DialContext(c.Context(), "tcp4", "169.254.169.254:80")
		return err
	})
	if err == nil {
		conn.Close()
		c.Error("an identity that a guest gave itself is answered")
	}
	if c.counted(bpf.ReasonBadSource) == before {
		c.Error("the liar is not counted")
	}
}

// answeredBy one of the instances, asked by a client behind the router.
func (c *cloudUnderTest) answeredBy(from lab.Host, to netip.AddrPort, want string) error {
	ctx, cancel := context.WithTimeout(c.Context(), 2*time.Second) // a frozen one takes connections and says nothing
	defer cancel()
	a, err := story.Ask(ctx, from, 0, to)
	if err == nil && a.Instance != want {
		err = fmt.Errorf("%s answers, want %s", a.Instance, want)
	}
	return err
}

// An elastic IP is announced by the hypervisor of the instance that it is active
// at, and moves when that one's check fails.
func TestAnElasticIPMovesToWhoIsWell(t *testing.T) {
	t.Parallel()
	c := newCloud(t, lab.Config{})
	group, err := c.Group("web", 80)
	must(t, "security group", err)
	apart, err := c.Done(c.CreateAntiAffinityGroup(c.Context(), v3.CreateAntiAffinityGroupRequest{Name: "apart"}))
	must(t, "anti-affinity group", err)
	id, err := c.Done(c.CreateElasticIP(c.Context(), v3.CreateElasticIPRequest{Healthcheck: &v3.ElasticIPHealthcheck{
		Mode: v3.ElasticIPHealthcheckModeHTTP, URI: "/", Port: 80, Interval: 5, Timeout: 2, StrikesFail: 1, StrikesOk: 1,
	}}))
	must(t, "elastic ip", err)
	elastic, err := c.GetElasticIP(c.Context(), id)
	must(t, "get elastic ip", err)
	address := netip.MustParseAddr(elastic.IP)
	byHypervisor := map[netip.Addr]*v3.Instance{} // the router's next hop
	for _, name := range []string{"one", "two"} {
		i := c.launch(name, func(r *v3.CreateInstanceRequest) {
			r.SecurityGroups = []v3.SecurityGroup{{ID: group}}
			r.AntiAffinityGroups = []v3.AntiAffinityGroup{{ID: apart}}
		})
		at, hv := c.machine(i)
		byHypervisor[c.Endpoint(hv)] = i
		must(t, "the guest's own address", at.Do(func() error {
			link, err := netlink.LinkByName("lo")
			if err != nil {
				return err
			}
			return netlink.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: address.AsSlice(), Mask: net.CIDRMask(32, 32)}})
		}))
		_, err := c.Done(c.AttachInstanceToElasticIP(c.Context(), id, v3.AttachInstanceToElasticIPRequest{Instance: &v3.InstanceTarget{ID: i.ID}}))
		must(t, "attach", err)
	}
	client, at := c.Lab.Client(1), netip.AddrPortFrom(address, 80)
	var active *v3.Instance
	lab.Eventually(t, "one hypervisor announces it", 20*time.Second, func() error {
		hops, err := c.RouterRoutes(netip.PrefixFrom(address, 32))
		if err == nil && (len(hops) != 1 || byHypervisor[hops[0]] == nil) {
			err = fmt.Errorf("next hops %v", hops)
		}
		if err == nil {
			active = byHypervisor[hops[0]]
		}
		return err
	})
	lab.Eventually(t, "an answer", 10*time.Second, func() error { return c.answeredBy(client, at, active.Name) })

	var other *v3.Instance
	for _, i := range byHypervisor {
		if i.ID != active.ID {
			other = i
		}
	}
	// A checker that has not heard anybody yet may be the one that is cut off, so it
	// says nothing bad of anybody: at the second check the first one is over.
	for _, i := range byHypervisor {
		_, hv := c.machine(i)
		lab.Eventually(t, "two checks of "+i.Name, 20*time.Second, func() error {
			log, err := os.ReadFile(compute.LogPath(c.AgentState(hv), string(i.ID)))
			if n := strings.Count(string(log), `"peer":"169.254.169.253:`); err == nil && n < 2 {
				err = fmt.Errorf("%d checks", n)
			}
			return err
		})
	}
	must(t, "stop workload", c.stopWorkload(active.ID))
	stopped := time.Now()
	lab.Eventually(t, "the other one answers", 30*time.Second, func() error { return c.answeredBy(client, at, other.Name) })
	t.Logf("moved after %s", time.Since(stopped).Round(time.Millisecond))
	hops, err := c.RouterRoutes(netip.PrefixFrom(address, 32))
	if err != nil || len(hops) != 1 || byHypervisor[hops[0]] != other {
		t.Errorf("next hops %v, %v", hops, err)
	}
}

// An instance with both families answers either, and its rules are asked.
func TestDualStack(t *testing.T) {
	t.Parallel()
	c := newCloud(t, lab.Config{})
	group, err := c.Group("web", 80)
	must(t, "security group", err)
	_, err = c.Done(c.AddRuleToSecurityGroup(c.Context(), group, v3.AddRuleToSecurityGroupRequest{
		FlowDirection: v3.AddRuleToSecurityGroupRequestFlowDirectionIngress, Protocol: v3.AddRuleToSecurityGroupRequestProtocolTCP,
		Network: "::/0", StartPort: 80, EndPort: 80,
	}))
	must(t, "rule for IPv6", err)
	i := c.launch("dual", func(r *v3.CreateInstanceRequest) {
		r.SecurityGroups = []v3.SecurityGroup{{ID: group}}
		r.PublicIPAssignment = v3.PublicIPAssignmentDual
	})
	six := netip.MustParseAddr(i.Ipv6Address)
	at, hv := c.machine(i)
	lab.Eventually(t, "a route to "+six.String(), 20*time.Second, func() error {
		hops, err := c.RouterRoutes(netip.PrefixFrom(six, 128))
		if err == nil && len(hops) != 1 {
			err = fmt.Errorf("next hops %v on the way to hv%d", hops, hv)
		}
		return err
	})
	lab.Eventually(t, "an answer by IPv6", 15*time.Second, func() error {
		return c.answeredBy(c.Client6(1), netip.AddrPortFrom(six, 80), i.Name)
	})
	lab.Eventually(t, "an answer by IPv4", 10*time.Second, func() error {
		return c.answeredBy(c.Lab.Client(1), netip.AddrPortFrom(at.Address, 80), i.Name)
	})

	// The control: another port is nobody's to ask.
	denied := c.drops(hv, bpf.ReasonPolicyIn)
	d := net.Dialer{Timeout: time.Second}
	err = c.Client6(1).Do(func() error {
		conn, err := d.DialContext(c.Context(), "tcp6", netip.AddrPortFrom(six, 81).String())
		if err == nil {
			conn.Close()
		}
		return err
	})
	if err == nil || c.drops(hv, bpf.ReasonPolicyIn) == denied {
		t.Errorf("a port without a rule: %v", err)
	}

	// Out, to a client, and back.
	l, err := c.Client6(1).Listen("tcp6", netip.AddrPortFrom(c.Client6(1).Address, 8443).String())
	must(t, "listen", err)
	defer l.Close()
	got := make(chan string, 1)
	go func() {
		defer close(got)
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		got <- conn.RemoteAddr().String()
	}()
	conn, err := lab.Host{Namespace: at.Namespace, Address: six}.DialFrom(c.Context(), "tcp6", 0, l.Addr().String())
	must(t, "dial from the instance", err)
	conn.Close()
	if peer, _ := netip.ParseAddrPort(<-got); peer.Addr() != six {
		t.Errorf("the client sees %s", peer)
	}
}
