// SPDX-License-Identifier: Apache-2.0

package metadata

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"cairn/cloud/wire"
	"cairn/dataplane/table"
)

const idA, idB = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"

// tables with instance A on public port 5 and private port 20, and B, which has
// a private port 70000 with the address that A has too, and nothing public.
func tables(t *testing.T) func() table.View {
	t.Helper()
	same := netip.MustParseAddr("10.0.0.20")
	items := []wire.Item{
		wire.Instance{
			ID: idA, Name: "web-1", Driver: "netns", Command: "echo", Port: 5, Networks: []uint32{20}, Zone: "ch-gva-2", Type: "standard.small",
			SSHKeys: []string{"ssh-ed25519 AAAA one", "ssh-rsa BBBB two"}, PublicAddress: netip.MustParseAddr("198.51.100.5"),
			UserData: []byte("#cloud-config\n\x00\xff"),
		},
		wire.Instance{ID: idB, Name: "db-1", Driver: "netns", Command: "echo", Networks: []uint32{70000}, Zone: "ch-gva-2"},
		wire.Port{ID: 5, Instance: idA, Addresses: []netip.Addr{netip.MustParseAddr("198.51.100.5"), netip.MustParseAddr("2001:db8::5")}},
		wire.Port{ID: 20, Instance: idA, Network: 7, Addresses: []netip.Addr{same}},
		wire.Port{ID: 70000, Instance: idB, Network: 8, Addresses: []netip.Addr{netip.MustParseAddr("2001:db8::7"), same}},
		wire.Port{ID: 9, Instance: "33333333-3333-4333-8333-333333333333"}, // its instance has not come yet
	}
	s := table.Snapshot{At: table.Mark{Epoch: 1, Revision: 1}}
	for _, item := range items {
		body, err := wire.Encode(item)
		if err != nil {
			t.Fatal(err)
		}
		s.Upserts = append(s.Upserts, table.Upsert{Key: item.Key(), Body: body})
		s.Digests[item.Key().Kind].Add(item.Key(), body)
	}
	tab, err := table.New(table.Mark{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tab.Close)
	if _, err := tab.Replace(s); err != nil {
		t.Fatal(err)
	}
	return tab.View
}

func request(method, path, remote string) *http.Request {
	r := httptest.NewRequest(method, "http://169.254.169.254/", nil)
	r.URL.Path, r.RemoteAddr = path, remote
	return r
}

func ask(h http.Handler, r *http.Request) *http.Response {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Result()
}

func body(t *testing.T, r *http.Response) string {
	t.Helper()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestTheTree(t *testing.T) {
	h := New(tables(t), time.Now)
	const a, private, b = "198.18.0.5:40000", "198.18.0.20:40000", "198.19.17.112:40000"
	tests := []struct{ path, who, want string }{
		{"/", a, "1.0\nlatest"},
		{"/latest", a, "meta-data/\nuser-data"},
		{"/1.0/", a, "meta-data/\nuser-data"},
		{"/latest/user-data", a, "#cloud-config\n\x00\xff"},
		{"/latest/user-data", b, ""},
		{"/latest/meta-data/", a, "availability-zone\ncloud-identifier\ninstance-id\nlocal-hostname\nlocal-ipv4\npublic-hostname\npublic-ipv4\npublic-keys\nservice-offering\nvm-id"},
		{"/latest/meta-data", b, "availability-zone\ncloud-identifier\ninstance-id\nlocal-hostname\nlocal-ipv4\npublic-hostname\nvm-id"},
		{"/latest/meta-data/availability-zone", a, "ch-gva-2"},
		{"/latest/meta-data/cloud-identifier", a, "cairn-ch-gva-2"},
		{"/latest/meta-data/instance-id", a, idA},
		{"/1.0//meta-data/instance-id/", a, idA},
		{"/latest/meta-data/instance-id", private, idA},
		{"/latest/meta-data/instance-id", b, idB},
		{"/latest/meta-data/vm-id", b, idB},
		{"/latest/meta-data/local-hostname", a, "web-1"},
		{"/latest/meta-data/public-hostname", a, "web-1"},
		{"/latest/meta-data/local-ipv4", a, "198.51.100.5"},
		{"/latest/meta-data/local-ipv4", private, "198.51.100.5"},
		{"/latest/meta-data/local-ipv4", b, "10.0.0.20"},
		{"/latest/meta-data/public-ipv4", a, "198.51.100.5"},
		{"/latest/meta-data/service-offering", a, "standard.small"},
		{"/latest/meta-data/public-keys", a, "ssh-ed25519 AAAA one\nssh-rsa BBBB two"},
	}
	for _, test := range tests {
		r := ask(h, request(http.MethodGet, test.path, test.who))
		if got := body(t, r); r.StatusCode != http.StatusOK || got != test.want || r.ContentLength != int64(len(test.want)) {
			t.Errorf("%s from %s: %d %q of %d, want %q", test.path, test.who, r.StatusCode, got, r.ContentLength, test.want)
		}
	}
}

func TestWhatIsNotAnswered(t *testing.T) {
	h := New(tables(t), time.Now)
	forwarded := request(http.MethodGet, "/latest/meta-data/instance-id", "198.18.0.5:1")
	forwarded.Header.Set("X-Forwarded-For", "192.0.2.1")
	get := func(path, who string) *http.Request { return request(http.MethodGet, path, who) }
	tests := map[string]struct {
		request *http.Request
		status  int
	}{
		"a port of nobody":           {get("/latest/meta-data/instance-id", "198.18.0.6:1"), 404},
		"a port of nobody, index":    {get("/", "198.18.0.6:1"), 404},
		"no port":                    {get("/", "198.18.0.0:1"), 404},
		"no instance yet":            {get("/", "198.18.0.9:1"), 404},
		"an instance's own address":  {get("/", "198.51.100.5:1"), 404},
		"just outside":               {get("/", "198.20.0.5:1"), 404},
		"just before":                {get("/", "198.17.0.5:1"), 404},
		"IPv6":                       {get("/", "[2001:db8::5]:1"), 404},
		"no address":                 {get("/", ""), 404},
		"another version":            {get("/2.0/meta-data/instance-id", "198.18.0.5:1"), 404},
		"another document":           {get("/latest/meta-data/password", "198.18.0.5:1"), 404},
		"below a document":           {get("/latest/meta-data/vm-id/x", "198.18.0.5:1"), 404},
		"below user-data":            {get("/latest/user-data/x", "198.18.0.5:1"), 404},
		"up and away":                {get("/latest/../etc/passwd", "198.18.0.5:1"), 404},
		"a long path":                {get("/"+strings.Repeat("/", maxPath), "198.18.0.5:1"), 404},
		"public-ipv4 of a private":   {get("/latest/meta-data/public-ipv4", "198.19.17.112:1"), 404},
		"a change":                   {request(http.MethodPut, "/latest/user-data", "198.18.0.5:1"), 405},
		"a change by a stranger":     {request(http.MethodPut, "/latest/user-data", "198.18.0.6:1"), 404},
		"passed on by a proxy":       {forwarded, 403},
		"the control: this is asked": {get("/latest/meta-data/instance-id", "198.18.0.5:1"), 200},
	}
	for name, test := range tests {
		r := ask(h, test.request)
		if got := body(t, r); r.StatusCode != test.status || r.StatusCode != 200 && strings.Contains(got, idA) {
			t.Errorf("%s: %d %q, want %d", name, r.StatusCode, got, test.status)
		}
	}
}

func TestIdentityIsThePort(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		port := rapid.Uint32Range(0, 1<<18).Draw(t, "port")
		a, ok := Identity(port)
		if ok != (port > 0 && port < 1<<17) {
			t.Fatalf("port %d: %t", port, ok)
		}
		if back, known := PortOf(a); known != ok || ok && back != port {
			t.Fatalf("port %d is %s, which is port %d", port, a, back)
		}
	})
	if a, _ := Identity(70000); a != netip.MustParseAddr("198.19.17.112") {
		t.Errorf("port 70000 is %s", a)
	}
}

// One port that asks too much is refused; the others are not, and it is heard
// again when it has paused.
func TestAPortAsksOnlySoOften(t *testing.T) {
	now := time.Unix(1000, 0)
	h := New(tables(t), func() time.Time { return now })
	count := func(who string, n int) (served int) {
		for range n {
			if ask(h, request(http.MethodGet, "/latest/meta-data/vm-id", who)).StatusCode == http.StatusOK {
				served++
			}
		}
		return served
	}
	if got := count("198.18.0.5:1", 3*burst); got != burst {
		t.Errorf("%d of %d served at once", got, 3*burst)
	}
	if got := count("198.18.0.20:1", burst); got != burst {
		t.Errorf("another port: %d of %d served", got, burst)
	}
	now = now.Add(time.Second)
	if got := count("198.18.0.5:1", burst); got != perSecond {
		t.Errorf("%d served a second later, want %d", got, perSecond)
	}
}

func TestLimitsAreForgotten(t *testing.T) {
	now := time.Unix(1000, 0)
	l := newLimit(1, 2, func() time.Time { return now })
	for port := range uint32(maxBuckets) {
		l.take(port)
	}
	now = now.Add(time.Second)
	l.take(0)
	l.take(maxBuckets)
	if len(l.buckets) != 2 {
		t.Errorf("%d buckets are kept", len(l.buckets))
	}
}

// A peer with too many connections loses the new ones; when some end, others
// are let in.
func TestConnectionsOfOnePeerAreBounded(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	echo := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "hello") })
	s := newServer(l, New(tables(t), time.Now), slog.New(slog.DiscardHandler))
	s.http.Handler = echo
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	address := l.Addr().String()
	speaks := func(c net.Conn) bool {
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		n, _ := c.Read(make([]byte, 256))
		return n > 0
	}
	var open []net.Conn
	for i := range maxPerPort {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if !speaks(c) {
			t.Fatalf("connection %d is refused", i)
		}
		open = append(open, c)
	}
	more, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer more.Close()
	if speaks(more) {
		t.Error("one connection too many is served")
	}
	open[0].Close()
	deadline := time.Now().Add(10 * time.Second)
	for {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		served := speaks(c)
		c.Close()
		if served {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("no place is given away")
		}
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
