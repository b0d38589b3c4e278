// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"cairn/cloud/compute"
	"cairn/dataplane/debug"
	"cairn/test/story"
)

const (
	requests  = 1024
	firstPort = 20000
	// tolerance of a backend's share, in points: 4.4 standard deviations of
	// 1,024 draws with a chance of one in four.
	tolerance = 6
	// heldPort is the first that is tried for the connection that is followed.
	heldPort = 33333
)

func (d *demo) traffic() error {
	before, err := d.counters()
	if err != nil {
		return err
	}
	client := d.lab.Client(1)
	begin := time.Now()
	s := story.AskMany(d.ctx, client, d.vip, story.Ports(firstPort, requests), 1)
	d.did(begin, "%d requests from %s, ports %d to %d", requests, client.Address, firstPort, firstPort+requests-1)
	if err := d.ctx.Err(); err != nil {
		return err
	}
	after, err := d.counters()
	if err != nil {
		return err
	}
	rows := [][]string{{"BACKEND", "HYPERVISOR", "ADDRESS", "ANSWERED", "SHARE"}}
	widest := 0.0
	for _, n := range d.names() {
		share := 100 * float64(s.Answered[n]) / requests
		widest = max(widest, math.Abs(share-100/float64(len(d.hosts))))
		rows = append(rows, []string{n, fmt.Sprintf("hv%d", d.hosts[n].hv), d.hosts[n].address.String(),
			fmt.Sprint(s.Answered[n]), fmt.Sprintf("%.1f %%", share)})
	}
	d.table(rows)
	rows = [][]string{{"HYPERVISOR", "PACKETS SENT ON TO OTHERS", "PACKETS DELIVERED TO ITS OWN"}}
	for hv := 1; hv <= d.lab.Hypervisors(); hv++ {
		grown := func(reason string) string { return fmt.Sprint(after[hv-1][reason] - before[hv-1][reason]) }
		rows = append(rows, []string{fmt.Sprintf("hv%d", hv), grown("sent"), grown("delivered")})
	}
	d.table(rows)
	if len(s.Errors) > 0 {
		d.say("the first that failed: %v", s.Errors[0])
	}
	d.check(s.Total() == requests, "%d of %d requests answered", s.Total(), requests)
	d.check(len(s.Answered) == len(d.hosts) && widest <= tolerance,
		"each of %d backends answered its share, at most %.1f points off (%d allowed)", len(s.Answered), widest, tolerance)
	logged, err := d.logged()
	if err != nil {
		return err
	}
	d.check(s.Total() > 0 && s.Foreign == 0 && logged == len(d.hosts),
		"the backends saw the client's own address and port, and %d of %d have it in their logs", logged, len(d.hosts))
	return nil
}

// counters reads what each hypervisor counts by reason.
func (d *demo) counters() ([]map[string]uint64, error) {
	var out []map[string]uint64
	for hv := 1; hv <= d.lab.Hypervisors(); hv++ {
		all, err := story.AskAgent[[]debug.Drop](d.ctx, d.lab, hv, "drops")
		if err != nil {
			return nil, err
		}
		counts := map[string]uint64{}
		for _, r := range all {
			counts[r.Reason] = r.Count
		}
		out = append(out, counts)
	}
	return out, nil
}

// logged counts the members whose own log names the client.
func (d *demo) logged() (int, error) {
	n := 0
	for _, p := range d.hosts {
		log, err := os.ReadFile(compute.LogPath(d.lab.AgentState(p.hv), string(p.id)))
		if err != nil {
			return 0, err
		}
		if strings.Contains(string(log), `"peer":"`+d.lab.Client(1).Address.String()+":") {
			n++
		}
	}
	return n, nil
}

// follow holds one connection open and asks everybody on its way about it.
func (d *demo) follow() error {
	client, entry, err := d.detour()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(d.ctx, 5*time.Second)
	defer cancel()
	conn, err := d.lab.Client(1).DialFrom(ctx, "tcp4", int(client.Port()), d.vip.String())
	if err != nil {
		return fmt.Errorf("dial %s: %w", d.vip, err)
	}
	defer conn.Close()
	held := held{conn, bufio.NewReader(conn), d.vip}
	answer, err := held.ask()
	if err != nil {
		return fmt.Errorf("ask over the held connection: %w", err)
	}
	d.say("%s → %s, answered by %s, which sees %s", client, d.vip, answer.Instance, answer.Peer)
	d.say("the router's hash of it takes the next hop %s: it enters at hv%d", d.lab.Endpoint(entry), entry)
	command := []string{"debug", "nlb", client.String(), d.vip.String() + "/tcp"}
	d.say("$ cairn %s --socket %s", strings.Join(command, " "), d.lab.AgentSocket(entry))
	text, err := d.lab.Hypervisor(entry).Run(ctx, append(append([]string{filepath.Join(d.cfg.Bin, "cairn")}, command...), "--socket", d.lab.AgentSocket(entry))...)
	if err != nil {
		return err
	}
	for line := range strings.Lines(text) {
		d.say("    %s", strings.TrimRight(line, "\n"))
	}
	return d.agree(client, entry, answer, held)
}

// detour finds a source port of the client whose connection enters at another
// hypervisor than the one that hosts its backend.
func (d *demo) detour() (client netip.AddrPort, entry int, err error) {
	for port := uint16(heldPort); port < heldPort+64; port++ {
		client = netip.AddrPortFrom(d.lab.Client(1).Address, port)
		if entry, err = d.entry(client); err != nil {
			return client, 0, err
		}
		p, err := d.ask(entry, client)
		if err != nil {
			return client, 0, err
		}
		if p.Endpoint != "local" {
			return client, entry, nil
		}
	}
	return client, entry, nil
}

// ask a hypervisor where it sends a connection.
func (d *demo) ask(hv int, client netip.AddrPort) (debug.Path, error) {
	query := url.Values{"client": {client.String()}, "vip": {d.vip.String() + "/tcp"}}.Encode()
	return story.AskAgent[debug.Path](d.ctx, d.lab, hv, "flow?"+query)
}

// agree compares what the hypervisors say about a connection with who answered,
// and with the packets that they count of one more request.
func (d *demo) agree(client netip.AddrPort, entry int, answer story.Answer, held held) error {
	before, err := d.counters()
	if err != nil {
		return err
	}
	if _, err := held.ask(); err != nil {
		return fmt.Errorf("ask again over the held connection: %w", err)
	}
	after, err := d.counters()
	if err != nil {
		return err
	}
	home := d.hosts[answer.Instance]
	rows := [][]string{{"ASKED", "SLOT", "BACKEND", "AT", "ADDRESS", "KNOWS THE CONNECTION", "OF ONE MORE REQUEST: SENT ON", "DELIVERED"}}
	same, knows, way := true, []int(nil), true
	for hv := 1; hv <= d.lab.Hypervisors(); hv++ {
		p, err := d.ask(hv, client)
		if err != nil {
			return err
		}
		if p.Known {
			knows = append(knows, hv)
		}
		same = same && p.Address == netip.AddrPortFrom(home.address, 80).String()
		sent, delivered := after[hv-1]["sent"]-before[hv-1]["sent"], after[hv-1]["delivered"]-before[hv-1]["delivered"]
		way = way && (sent > 0) == (hv == entry && entry != home.hv) && (delivered > 0) == (hv == home.hv)
		rows = append(rows, []string{fmt.Sprintf("hv%d", hv), fmt.Sprint(p.Slot), fmt.Sprint(p.Cur), p.Endpoint, p.Address,
			map[bool]string{true: "yes", false: "no"}[p.Known], fmt.Sprintf("%d packets", sent), fmt.Sprintf("%d packets", delivered)})
	}
	d.table(rows)
	d.check(same, "every hypervisor sends this connection to the backend that answered, %s on hv%d", answer.Instance, home.hv)
	d.check(way, "the packets enter at hv%d, which encapsulates them to hv%d, which delivers them: no other counter moves", entry, home.hv)
	d.check(len(knows) == 1 && knows[0] == home.hv, "only hv%d, which hosts that backend, keeps state for it", home.hv)
	d.check(answer.Peer == client, "the backend sees the client's own %s; its answer goes straight to the router", answer.Peer)
	return nil
}

// held is a connection that stays open.
type held struct {
	net.Conn
	reader *bufio.Reader
	to     netip.AddrPort
}

func (h held) ask() (story.Answer, error) {
	var a story.Answer
	if err := h.SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
		return a, err
	}
	if _, err := fmt.Fprintf(h, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", h.to); err != nil {
		return a, err
	}
	resp, err := http.ReadResponse(h.reader, nil)
	if err != nil {
		return a, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return a, err
	}
	return a, json.Unmarshal(body, &a)
}

// entry is the hypervisor that the router gives a connection to: it asks the
// router's kernel, which computes its hash.
func (d *demo) entry(client netip.AddrPort) (int, error) {
	out, err := d.lab.Router().Run(d.ctx, "ip", "route", "get", d.vip.Addr().String(), "from", client.Addr().String(), "iif", "cli1",
		"ipproto", "tcp", "sport", fmt.Sprint(client.Port()), "dport", fmt.Sprint(d.vip.Port()))
	if err != nil {
		return 0, err
	}
	words := strings.Fields(out)
	for i, w := range words[:max(len(words)-1, 0)] {
		if w != "via" {
			continue
		}
		hop, err := netip.ParseAddr(words[i+1])
		if err != nil {
			return 0, err
		}
		if hv := d.at(hop); hv != 0 {
			return hv, nil
		}
	}
	return 0, fmt.Errorf("the router's answer names no hypervisor: %s", out)
}
