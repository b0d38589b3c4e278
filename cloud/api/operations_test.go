// SPDX-License-Identifier: Apache-2.0

package api

import (
	"net/http"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"cairn/cloud"
)

// golden is the API as promised: id, method, path, and how the command line calls it.
const golden = `
list-zones                          GET    /zone                                              zone list
get-operation                       GET    /operation/{id}                                    operation get
list-ssh-keys                       GET    /ssh-key                                           ssh-key list
register-ssh-key                    POST   /ssh-key                                           ssh-key register
get-ssh-key                         GET    /ssh-key/{name}                                    ssh-key get
delete-ssh-key                      DELETE /ssh-key/{name}                                    ssh-key delete
list-instance-types                 GET    /instance-type                                     instance-type list
get-instance-type                   GET    /instance-type/{id}                                instance-type get
list-templates                      GET    /template                                          template list
get-template                        GET    /template/{id}                                     template get
list-instances                      GET    /instance                                          instance list
create-instance                     POST   /instance                                          instance create
get-instance                        GET    /instance/{id}                                     instance get
delete-instance                     DELETE /instance/{id}                                     instance delete
start-instance                      PUT    /instance/{id}:start                               instance start
stop-instance                       PUT    /instance/{id}:stop                                instance stop
reboot-instance                     PUT    /instance/{id}:reboot                              instance reboot
update-instance                     PUT    /instance/{id}                                     instance update
reset-instance-field                DELETE /instance/{id}/{field}                             instance reset-field
scale-instance                      PUT    /instance/{id}:scale                               instance scale
add-instance-protection             PUT    /instance/{id}:add-protection                      instance add-protection
remove-instance-protection          PUT    /instance/{id}:remove-protection                   instance remove-protection
reveal-instance-password            GET    /instance/{id}:password                            instance reveal-password
explain-instance                    GET    /instance/{id}:explain                             instance explain
get-instance-flows                  GET    /instance/{id}:flows                               instance get-flows
reset-instance-password             PUT    /instance/{id}:reset-password                      instance reset-password
list-anti-affinity-groups           GET    /anti-affinity-group                               anti-affinity-group list
create-anti-affinity-group          POST   /anti-affinity-group                               anti-affinity-group create
get-anti-affinity-group             GET    /anti-affinity-group/{id}                          anti-affinity-group get
delete-anti-affinity-group          DELETE /anti-affinity-group/{id}                          anti-affinity-group delete
list-security-groups                GET    /security-group                                    security-group list
create-security-group               POST   /security-group                                    security-group create
get-security-group                  GET    /security-group/{id}                               security-group get
delete-security-group               DELETE /security-group/{id}                               security-group delete
add-rule-to-security-group          POST   /security-group/{id}/rules                         security-group add-rule
delete-rule-from-security-group     DELETE /security-group/{id}/rules/{rule-id}               security-group delete-rule
add-external-source-to-security-group PUT   /security-group/{id}:add-source                    security-group add-external-source
remove-external-source-from-security-group PUT /security-group/{id}:remove-source              security-group remove-external-source
attach-instance-to-security-group   PUT    /security-group/{id}:attach                        security-group attach-instance
detach-instance-from-security-group PUT    /security-group/{id}:detach                        security-group detach-instance
list-private-networks               GET    /private-network                                   private-network list
create-private-network              POST   /private-network                                   private-network create
get-private-network                 GET    /private-network/{id}                              private-network get
update-private-network              PUT    /private-network/{id}                              private-network update
delete-private-network              DELETE /private-network/{id}                              private-network delete
reset-private-network-field         DELETE /private-network/{id}/{field}                      private-network reset-field
attach-instance-to-private-network  PUT    /private-network/{id}:attach                       private-network attach-instance
detach-instance-from-private-network PUT   /private-network/{id}:detach                       private-network detach-instance
update-private-network-instance-ip  PUT    /private-network/{id}:update-ip                    private-network update-instance-ip
list-elastic-ips                    GET    /elastic-ip                                        elastic-ip list
create-elastic-ip                   POST   /elastic-ip                                        elastic-ip create
get-elastic-ip                      GET    /elastic-ip/{id}                                   elastic-ip get
update-elastic-ip                   PUT    /elastic-ip/{id}                                   elastic-ip update
delete-elastic-ip                   DELETE /elastic-ip/{id}                                   elastic-ip delete
reset-elastic-ip-field              DELETE /elastic-ip/{id}/{field}                           elastic-ip reset-field
attach-instance-to-elastic-ip       PUT    /elastic-ip/{id}:attach                            elastic-ip attach-instance
detach-instance-from-elastic-ip     PUT    /elastic-ip/{id}:detach                            elastic-ip detach-instance
get-reverse-dns-instance            GET    /reverse-dns/instance/{id}                         reverse-dns get-instance
update-reverse-dns-instance         POST   /reverse-dns/instance/{id}                         reverse-dns update-instance
delete-reverse-dns-instance         DELETE /reverse-dns/instance/{id}                         reverse-dns delete-instance
get-reverse-dns-elastic-ip          GET    /reverse-dns/elastic-ip/{id}                       reverse-dns get-elastic-ip
update-reverse-dns-elastic-ip       POST   /reverse-dns/elastic-ip/{id}                       reverse-dns update-elastic-ip
delete-reverse-dns-elastic-ip       DELETE /reverse-dns/elastic-ip/{id}                       reverse-dns delete-elastic-ip
list-instance-pools                 GET    /instance-pool                                     instance-pool list
create-instance-pool                POST   /instance-pool                                     instance-pool create
get-instance-pool                   GET    /instance-pool/{id}                                instance-pool get
update-instance-pool                PUT    /instance-pool/{id}                                instance-pool update
delete-instance-pool                DELETE /instance-pool/{id}                                instance-pool delete
scale-instance-pool                 PUT    /instance-pool/{id}:scale                          instance-pool scale
evict-instance-pool-members         PUT    /instance-pool/{id}:evict                          instance-pool evict-members
list-load-balancers                 GET    /load-balancer                                     load-balancer list
create-load-balancer                POST   /load-balancer                                     load-balancer create
get-load-balancer                   GET    /load-balancer/{id}                                load-balancer get
update-load-balancer                PUT    /load-balancer/{id}                                load-balancer update
delete-load-balancer                DELETE /load-balancer/{id}                                load-balancer delete
reset-load-balancer-field           DELETE /load-balancer/{id}/{field}                        load-balancer reset-field
add-service-to-load-balancer        POST   /load-balancer/{id}/service                        load-balancer add-service
get-load-balancer-service           GET    /load-balancer/{id}/service/{service-id}           load-balancer get-service
update-load-balancer-service        PUT    /load-balancer/{id}/service/{service-id}           load-balancer update-service
delete-load-balancer-service        DELETE /load-balancer/{id}/service/{service-id}           load-balancer delete-service
reset-load-balancer-service-field   DELETE /load-balancer/{id}/service/{service-id}/{field}   load-balancer reset-service-field
`

func TestGoldenList(t *testing.T) {
	var got strings.Builder
	for _, o := range Operations {
		got.WriteString(strings.Join([]string{o.ID, o.Method, o.Path, o.Noun, o.Verb}, " ") + "\n")
	}
	want := regexp.MustCompile(` +`).ReplaceAllString(strings.TrimPrefix(golden, "\n"), " ")
	if got.String() != want {
		t.Errorf("operations:\n%s\nwant:\n%s", got.String(), want)
	}
}

func TestEveryOperationIsWhole(t *testing.T) {
	seen := map[string]bool{}
	for _, o := range Operations {
		if seen[o.ID] || seen[o.Method+o.Path] {
			t.Errorf("%s: id or route is there twice", o.ID)
		}
		seen[o.ID], seen[o.Method+o.Path] = true, true
		if o.Response == nil {
			t.Errorf("%s: no response shape", o.ID)
		}
		if o.Summary == "" || o.Verb == "" || o.Noun == "" {
			t.Errorf("%s: no summary, verb or noun", o.ID)
		}
		if o.Async != (o.Method != http.MethodGet) {
			t.Errorf("%s: %s and asynchronous %v", o.ID, o.Method, o.Async)
		}
		if o.Async && o.Response != reflect.TypeFor[cloud.Operation]() {
			t.Errorf("%s: asynchronous, and answers %v", o.ID, o.Response)
		}
		if o.Reference != "" && Find(Operations, "get-"+o.Reference) == nil {
			t.Errorf("%s: reference %q cannot be read", o.ID, o.Reference)
		}
		if o.Unsigned != (o.ID == "list-zones") {
			t.Errorf("%s: unsigned %v", o.ID, o.Unsigned)
		}
		if n := strings.Count(o.Path, "{"); n != len(o.Params) {
			t.Errorf("%s: %d parameters in the path, %d described", o.ID, n, len(o.Params))
		}
	}
}

func TestRouteEscapesArguments(t *testing.T) {
	o := Find(Operations, "update-load-balancer-service")
	if got := o.Route(map[string]string{"id": "a", "service-id": "b/c"}); got != "/v2/load-balancer/a/service/b%2Fc" {
		t.Error(got)
	}
}

func TestRefer(t *testing.T) {
	r := Find(Operations, "add-service-to-load-balancer").Refer("x")
	if r == nil || r.ID != "x" || r.Link != "/v2/load-balancer/x" || r.Command != "get-load-balancer" {
		t.Errorf("reference %+v", r)
	}
	if r := Find(Operations, "register-ssh-key").Refer("x"); r != nil {
		t.Errorf("reference of a key: %+v", r)
	}
}

func TestEndpoint(t *testing.T) {
	for in, want := range map[string]string{
		"http://h:1":     "http://h:1/v2",
		"http://h:1/":    "http://h:1/v2",
		"http://h:1/v2":  "http://h:1/v2",
		"http://h:1/v2/": "http://h:1/v2",
	} {
		if got := Endpoint(in); got != want {
			t.Errorf("Endpoint(%q) = %q, want %q", in, got, want)
		}
	}
}
