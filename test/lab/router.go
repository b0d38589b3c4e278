// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// The routers that a lab can have.
const (
	BIRD = "bird"
	FRR  = "frr"
)

// Both routers detect a dead link by BFD in 300 ms and a dead speaker by hold
// time in 3 s, and try again at once.
const (
	bfdInterval   = 100 // milliseconds
	bfdMultiplier = 3
	holdTime      = 3 // seconds
	maxPaths      = 64
)

// birdConfig writes the router's side of every hypervisor's session. BIRD waits
// 60 s after a session's error unless told otherwise.
func birdConfig(hypervisors int) string {
	var b strings.Builder
	fmt.Fprintf(&b, `log stderr { info, remote, warning, error, auth, fatal, bug };
timeformat log iso long ms;
router id %s;
protocol device { scan time 10; }
protocol kernel {
	merge paths yes limit %d;
	ipv4 { import none; export where source = RTS_BGP; };
}
protocol kernel {
	merge paths yes limit %d;
	ipv6 { import none; export where source = RTS_BGP; };
}
protocol bfd {
	interface "hv*" { interval %d ms; multiplier %d; };
}
template bgp hypervisor {
	direct;
	passive on;
	bfd on;
	hold time %d;
	keepalive time 1;
	connect retry time 1;
	error wait time 1, 3;
	graceful restart off;
	ipv4 { import all; export none; };
	ipv6 { import all; export none; };
}
`, routerID, maxPaths, maxPaths, bfdInterval, bfdMultiplier, holdTime)
	for i := 1; i <= hypervisors; i++ {
		own, peer := uplinkAddresses(i)
		fmt.Fprintf(&b, "protocol bgp hv%d from hypervisor { local %s as %d; neighbor %s as %d; }\n", i, own, RouterAS, peer, HypervisorAS)
	}
	return b.String()
}

// frrConfigs gives the three daemons' files by daemon name.
func frrConfigs(hypervisors int) map[string]string {
	var b strings.Builder
	fmt.Fprintf(&b, `router bgp %d
 bgp router-id %s
 no bgp ebgp-requires-policy
 no bgp network import-check
 timers bgp 1 %d
 neighbor hypervisors peer-group
 neighbor hypervisors remote-as %d
 neighbor hypervisors passive
 neighbor hypervisors timers connect 1
 neighbor hypervisors advertisement-interval 0
 neighbor hypervisors bfd profile lab
`, RouterAS, routerID, holdTime, HypervisorAS)
	for i := 1; i <= hypervisors; i++ {
		_, peer := uplinkAddresses(i)
		fmt.Fprintf(&b, " neighbor %s peer-group hypervisors\n", peer)
	}
	fmt.Fprintf(&b, ` address-family ipv4 unicast
  maximum-paths %d
  neighbor hypervisors route-map nothing out
 exit-address-family
 !
 address-family ipv6 unicast
  maximum-paths %d
  neighbor hypervisors activate
  neighbor hypervisors route-map nothing out
 exit-address-family
!
route-map nothing deny 10
!
`, maxPaths, maxPaths)
	return map[string]string{
		// A group of kernel next hops that lost a member with its link is used
		// again without it when the member is back (seen with FRR 8.4).
		"zebra": "hostname lab\nlog stdout informational\nno zebra nexthop kernel enable\n",
		"bgpd":  "hostname lab\nlog stdout informational\n" + b.String(),
		"bfdd": fmt.Sprintf("hostname lab\nlog stdout informational\nbfd\n profile lab\n  detect-multiplier %d\n  receive-interval %d\n  transmit-interval %d\n",
			bfdMultiplier, bfdInterval, bfdInterval),
	}
}

func routerFolder(lab string) string { return filepath.Join(labFolder(lab), "router") }
func birdSocket(lab string) string   { return filepath.Join(routerFolder(lab), "bird.ctl") }

// routerDaemons writes the router's configuration and says which programs run
// it. They stay in the foreground: the lab is their only supervisor.
func routerDaemons(s *state) ([]daemonState, error) {
	dir, ns := routerFolder(s.Name), routerNamespace(s.Name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	switch s.Router {
	case BIRD:
		conf := filepath.Join(dir, "bird.conf")
		if err := os.WriteFile(conf, []byte(birdConfig(s.Hypervisors)), 0o644); err != nil {
			return nil, err
		}
		return []daemonState{{
			Name: "router/bird", Namespace: ns,
			Argv: []string{"/usr/sbin/bird", "-f", "-c", conf, "-s", birdSocket(s.Name), "-P", filepath.Join(dir, "bird.pid")},
		}}, nil
	case FRR:
		return frrDaemons(s, dir, ns)
	}
	return nil, fmt.Errorf("router %q is neither %s nor %s", s.Router, BIRD, FRR)
}

// frrDaemons gives the folder to FRR's own user: its programs drop root before
// they open their sockets.
func frrDaemons(s *state, dir, ns string) ([]daemonState, error) {
	for name, text := range frrConfigs(s.Hypervisors) {
		if err := os.WriteFile(filepath.Join(dir, name+".conf"), []byte(text), 0o644); err != nil {
			return nil, err
		}
	}
	u, err := user.Lookup("frr")
	if err != nil {
		return nil, err
	}
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	if err := os.Chown(dir, uid, gid); err != nil {
		return nil, err
	}
	zserv := filepath.Join(dir, "zserv.api")
	var daemons []daemonState
	for _, name := range []string{"zebra", "bgpd", "bfdd"} {
		argv := []string{
			filepath.Join("/usr/lib/frr", name), "-f", filepath.Join(dir, name+".conf"), "-i", filepath.Join(dir, name+".pid"),
			"-z", zserv, "--vty_socket", dir, "-A", "127.0.0.1", "-P", "0",
		}
		if name == "bfdd" {
			argv = append(argv, "--bfdctl", filepath.Join(dir, "bfdd.sock"))
		}
		d := daemonState{Name: "router/" + name, Namespace: ns, Argv: argv}
		if name != "zebra" {
			d.After = zserv // the others try again after 10 s only
		}
		daemons = append(daemons, d)
	}
	return daemons, nil
}

// Sessions returns the state of the BGP session of each hypervisor as the
// router sees it; "Established" is both routers' word for a working one.
func (l *Lab) Sessions() (map[string]string, error) {
	if l.state.Router == FRR {
		return frrSessions(&l.state)
	}
	return birdSessions(birdSocket(l.state.Name))
}

func birdSessions(socket string) (map[string]string, error) {
	lines, err := askBird(socket, "show protocols")
	if err != nil {
		return nil, err
	}
	sessions := map[string]string{}
	for _, line := range lines {
		f := strings.Fields(line) // name, BGP, table, state, since (one or two words), info
		if len(f) < 5 || f[1] != "BGP" {
			continue
		}
		sessions[f[0]] = "down"
		if last := f[len(f)-1]; !strings.ContainsAny(last, "0123456789") {
			sessions[f[0]] = last
		}
	}
	return sessions, nil
}

// askBird speaks the protocol of BIRD's control socket: replies are lines with
// a four-digit code, a dash after it in all but the last; a line that starts
// with a blank continues the code before it.
func askBird(socket, command string) ([]string, error) {
	conn, err := net.DialTimeout("unix", socket, time.Second)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
		return nil, err
	}
	if _, err := fmt.Fprintf(conn, "%s\n", command); err != nil {
		return nil, err
	}
	var lines []string
	greeted := false
	for scan := bufio.NewScanner(conn); scan.Scan(); {
		line := scan.Text()
		last := len(line) >= 5 && line[0] != ' ' && line[4] == ' '
		text := strings.TrimPrefix(line, " ")
		if len(line) >= 5 && line[0] != ' ' {
			text = line[5:]
		}
		switch {
		case last && !greeted:
			greeted = true // 0001 BIRD ready
		case last && line[0] >= '8':
			return nil, fmt.Errorf("bird: %s: %s", command, text)
		case last:
			return append(lines, text), nil
		default:
			lines = append(lines, text)
		}
	}
	return nil, errors.New("bird: the answer is cut short")
}

func frrSessions(s *state) (map[string]string, error) {
	out, err := exec.Command("vtysh", "--vty_socket", routerFolder(s.Name), "-d", "bgpd", "-c", "show bgp ipv4 unicast summary json").Output()
	if err != nil {
		return nil, fmt.Errorf("vtysh: %w", err)
	}
	var summary struct {
		Peers map[netip.Addr]struct {
			State string `json:"state"`
		} `json:"peers"`
	}
	if err := json.Unmarshal(out, &summary); err != nil {
		return nil, fmt.Errorf("vtysh: %w", err)
	}
	sessions := map[string]string{}
	for i := 1; i <= s.Hypervisors; i++ {
		_, peer := uplinkAddresses(i)
		sessions[fmt.Sprintf("hv%d", i)] = summary.Peers[peer].State
	}
	return sessions, nil
}
