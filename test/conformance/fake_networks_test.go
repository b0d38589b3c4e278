// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"strings"

	"cairn/cloud"
	capi "cairn/cloud/api"
	"cairn/controlplane/api"
)

// networks are the handlers of private networks, of elastic IPs, of names of
// addresses, and of what is changed of an instance.
func (f *fake) networks() api.Handlers {
	h := api.Merge(
		noun(f, "private-network", func(l []cloud.PrivateNetwork) any { return cloud.PrivateNetworkList{PrivateNetworks: l} },
			func(r *cloud.CreatePrivateNetworkRequest, id cloud.ID) (*cloud.PrivateNetwork, error) {
				n := r.Network(id)
				n.VNI = 1
				return n, nil
			}),
		noun(f, "elastic-ip", func(l []cloud.ElasticIP) any { return cloud.ElasticIPList{ElasticIPs: l} },
			func(r *cloud.CreateElasticIPRequest, id cloud.ID) (*cloud.ElasticIP, error) {
				return &cloud.ElasticIP{ID: id, IP: "192.0.2.1", CIDR: "192.0.2.1/32", AddressFamily: cloud.Inet4,
					Description: r.Description, Healthcheck: r.Healthcheck, Labels: r.Labels}, nil
			}),
		api.Handlers{
			"update-private-network": changed[cloud.PrivateNetwork](f, "private-network"),
			"update-elastic-ip":      changed[cloud.ElasticIP](f, "elastic-ip"),
			"update-instance":        changed[cloud.Instance](f, "instance"),
			"reset-private-network-field": on(f, "private-network", func(c api.Call, n *cloud.PrivateNetwork) (err error) {
				*n, _, err = capi.Clear(*n, c.Args["field"])
				return err
			}),
			"reset-elastic-ip-field": on(f, "elastic-ip", func(c api.Call, e *cloud.ElasticIP) (err error) {
				*e, _, err = capi.Clear(*e, c.Args["field"])
				return err
			}),
			"explain-instance":         f.locked(func(api.Call) (any, error) { return cloud.Explanation{Admitted: true, Reason: "rule"}, nil }),
			"get-instance-flows":       f.locked(func(api.Call) (any, error) { return cloud.FlowList{Flows: []cloud.Flow{}}, nil }),
			"reveal-instance-password": f.locked(func(api.Call) (any, error) { return cloud.InstancePassword{Password: "a password"}, nil }),
		})
	for _, o := range capi.Operations {
		switch {
		case h[o.ID] != nil:
		case strings.HasPrefix(o.ID, "get-reverse-dns-"):
			h[o.ID] = f.locked(func(c api.Call) (any, error) {
				if name, ok := f.objects["reverse-dns"][c.ID("id")].(*string); ok {
					return cloud.ReverseDNSRecord{DomainName: *name + "."}, nil
				}
				return nil, cloud.Missing("reverse-dns", c.ID("id"))
			})
		case o.Noun == "reverse-dns":
			h[o.ID] = f.locked(func(c api.Call) (any, error) {
				delete(f.objects["reverse-dns"], c.ID("id"))
				if r, ok := c.Body.(*cloud.UpdateReverseDNSRequest); ok {
					f.put("reverse-dns", c.ID("id"), &r.DomainName)
				}
				return f.done(c, c.ID("id")), nil
			})
		case strings.HasPrefix(o.Path, "/private-network/{id}:"):
			h[o.ID] = on(f, "private-network", func(api.Call, *cloud.PrivateNetwork) error { return nil })
		case strings.HasPrefix(o.Path, "/elastic-ip/{id}:"):
			h[o.ID] = on(f, "elastic-ip", func(api.Call, *cloud.ElasticIP) error { return nil })
		case strings.HasPrefix(o.Path, "/instance/{id}") && o.ID != "start-instance" && o.ID != "stop-instance" && o.Mutates() && o.ID != "delete-instance":
			h[o.ID] = on(f, "instance", func(api.Call, *cloud.Instance) error { return nil })
		}
	}
	return h
}

// changed is a handler that lays a body over an object.
func changed[T any](f *fake, noun string) api.Handler {
	return on(f, noun, func(c api.Call, o *T) error {
		next, _, err := capi.Overlay(*o, c.Body, c.Keys)
		if err == nil {
			*o = next
		}
		return err
	})
}
