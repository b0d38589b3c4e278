// SPDX-License-Identifier: Apache-2.0

package story

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"time"

	v3 "github.com/exoscale/egoscale/v3"

	"cairn/dataplane/debug"
	"cairn/test/lab"
)

// AskAgent puts one question to a hypervisor's agent, over the socket of
// `cairn debug`: "status", "ports", "nlb", "diff", "drops".
func AskAgent[T any](ctx context.Context, l *lab.Lab, hv int, path string) (T, error) {
	var answer T
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", l.AgentSocket(hv))
		},
	}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent/"+path, nil)
	if err != nil {
		return answer, err
	}
	resp, err := client.Do(request)
	if err != nil {
		return answer, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return answer, fmt.Errorf("ask hv%d for %s: %s", hv, path, resp.Status)
	}
	return answer, json.NewDecoder(resp.Body).Decode(&answer)
}

// Hosts tells on which hypervisor each instance is, as the agents say.
func Hosts(ctx context.Context, l *lab.Lab) (map[v3.UUID]int, error) {
	hosts := map[v3.UUID]int{}
	for hv := 1; hv <= l.Hypervisors(); hv++ {
		ports, err := AskAgent[[]debug.Port](ctx, l, hv, "ports")
		if err != nil {
			return nil, err
		}
		for _, p := range ports {
			hosts[v3.UUID(p.Instance)] = hv
		}
	}
	return hosts, nil
}
