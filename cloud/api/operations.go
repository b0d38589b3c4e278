// SPDX-License-Identifier: Apache-2.0

package api

import (
	"reflect"
	"strings"

	"cairn/cloud"
)

// Aliases are the short words for nouns on the command line.
var Aliases = map[string][]string{
	"load-balancer":       {"nlb"},
	"security-group":      {"sg"},
	"anti-affinity-group": {"aag"},
	"instance-pool":       {"pool"},
	"private-network":     {"network", "privnet"},
	"elastic-ip":          {"eip"},
}

// Operations is the API. The order is that of documents.
var Operations = []Operation{
	list[cloud.ZoneList]("/zone", "list the zones").unsigned(),
	get[cloud.Operation]("operation", "read an operation"),

	list[cloud.SSHKeyList]("/ssh-key", "list the SSH keys"),
	ask[cloud.RegisterSSHKeyRequest]("register-ssh-key", "POST", "/ssh-key", "keep a public SSH key", ""),
	read[cloud.SSHKey]("get-ssh-key", "/ssh-key/{name}", "read an SSH key"),
	do("delete-ssh-key", "DELETE", "/ssh-key/{name}", "forget an SSH key", ""),

	list[cloud.InstanceTypeList]("/instance-type", "list the sizes of instances"),
	get[cloud.InstanceType]("instance-type", "read a size of instances"),
	list[cloud.TemplateList]("/template", "list the templates",
		Param{Name: "visibility", Enum: []string{"public", "private"}, Doc: "only templates of this visibility", Plain: true},
		Param{Name: "family", Doc: "only templates of this family", Plain: true}),
	get[cloud.Template]("template", "read a template"),

	list[cloud.InstanceList]("/instance", "list the instances",
		Param{Name: "manager-id", Doc: "only instances of this manager"},
		Param{Name: "manager-type", Enum: []string{cloud.ManagerInstancePool}, Doc: "only instances of a manager of this type", Plain: true},
		Param{Name: "ip-address", Doc: "only the instance with this public address", Plain: true},
		Param{Name: "labels", Doc: "only instances with these labels, key=value joined by commas", Plain: true}),
	ask[cloud.CreateInstanceRequest]("create-instance", "POST", "/instance", "create an instance", "instance"),
	get[cloud.Instance]("instance", "read an instance"),
	do("delete-instance", "DELETE", "/instance/{id}", "delete an instance", "instance"),
	ask[cloud.StartInstanceRequest]("start-instance", "PUT", "/instance/{id}:start", "start an instance", "instance").bodyFree(),
	do("stop-instance", "PUT", "/instance/{id}:stop", "stop an instance", "instance"),
	do("reboot-instance", "PUT", "/instance/{id}:reboot", "stop an instance and start it again", "instance"),
	ask[cloud.UpdateInstanceRequest]("update-instance", "PUT", "/instance/{id}", "change an instance", "instance"),
	do("reset-instance-field", "DELETE", "/instance/{id}/{field}", "clear a field of an instance", "instance").fields("labels"),
	ask[cloud.ScaleInstanceRequest]("scale-instance", "PUT", "/instance/{id}:scale", "give a stopped instance another size", "instance"),
	do("add-instance-protection", "PUT", "/instance/{id}:add-protection", "protect an instance from being deleted", "instance"),
	do("remove-instance-protection", "PUT", "/instance/{id}:remove-protection", "let an instance be deleted again", "instance"),
	read[cloud.InstancePassword]("reveal-instance-password", "/instance/{id}:password", "read the password of an instance, for a day after it was set"),
	read[cloud.Explanation]("explain-instance", "/instance/{id}:explain", "say whether the firewall admits a flow at an instance, and why").extension(
		Param{Name: "direction", Enum: []string{"ingress", "egress"}, Doc: "of the first packet (ingress when absent)", Plain: true},
		Param{Name: "protocol", Doc: "tcp, udp, icmp, icmpv6, esp, ah, gre, ipip or a number (tcp when absent)", Plain: true},
		Param{Name: "peer", Doc: "address of the other end (required)", Plain: true},
		Param{Name: "port", Doc: "destination port of tcp and udp", Plain: true},
		Param{Name: "icmp-type", Doc: "type of an ICMP message", Plain: true},
		Param{Name: "icmp-code", Doc: "code of an ICMP message", Plain: true},
		Param{Name: "private-network-id", Doc: "the interface in this private network (the public one when absent)"}),
	read[cloud.FlowList]("get-instance-flows", "/instance/{id}:flows", "read the flow log of an instance: the latest entries, or those from an offset on").extension(
		Param{Name: "from", Doc: "the offset to begin at (the latest entries when absent)", Plain: true},
		Param{Name: "limit", Doc: "how many entries, up to 1000 (100 when absent)", Plain: true}),
	do("reset-instance-password", "PUT", "/instance/{id}:reset-password", "give an instance a new password", "instance"),

	list[cloud.AntiAffinityGroupList]("/anti-affinity-group", "list the anti-affinity groups"),
	ask[cloud.CreateAntiAffinityGroupRequest]("create-anti-affinity-group", "POST", "/anti-affinity-group", "create an anti-affinity group", "anti-affinity-group"),
	get[cloud.AntiAffinityGroup]("anti-affinity-group", "read an anti-affinity group"),
	do("delete-anti-affinity-group", "DELETE", "/anti-affinity-group/{id}", "delete an anti-affinity group", "anti-affinity-group"),

	list[cloud.SecurityGroupList]("/security-group", "list the security groups",
		Param{Name: "visibility", Enum: []string{"private", "public"}, Doc: "only groups of this visibility (private when absent)", Plain: true}),
	ask[cloud.CreateSecurityGroupRequest]("create-security-group", "POST", "/security-group", "create a security group", "security-group"),
	get[cloud.SecurityGroup]("security-group", "read a security group"),
	do("delete-security-group", "DELETE", "/security-group/{id}", "delete a security group", "security-group"),
	ask[cloud.AddRuleRequest]("add-rule-to-security-group", "POST", "/security-group/{id}/rules", "add a rule to a security group", "security-group"),
	do("delete-rule-from-security-group", "DELETE", "/security-group/{id}/rules/{rule-id}", "remove a rule from a security group", "security-group"),
	ask[cloud.ExternalSourceRequest]("add-external-source-to-security-group", "PUT", "/security-group/{id}:add-source", "have a network count as a member of a security group", "security-group"),
	ask[cloud.ExternalSourceRequest]("remove-external-source-from-security-group", "PUT", "/security-group/{id}:remove-source", "have a network no longer count as a member of a security group", "security-group"),
	ask[cloud.InstanceRequest]("attach-instance-to-security-group", "PUT", "/security-group/{id}:attach", "put an instance into a security group", "security-group"),
	ask[cloud.InstanceRequest]("detach-instance-from-security-group", "PUT", "/security-group/{id}:detach", "take an instance out of a security group", "security-group"),

	list[cloud.PrivateNetworkList]("/private-network", "list the private networks"),
	ask[cloud.CreatePrivateNetworkRequest]("create-private-network", "POST", "/private-network", "create a private network", "private-network"),
	get[cloud.PrivateNetwork]("private-network", "read a private network"),
	ask[cloud.UpdatePrivateNetworkRequest]("update-private-network", "PUT", "/private-network/{id}", "change a private network", "private-network"),
	do("delete-private-network", "DELETE", "/private-network/{id}", "delete a private network", "private-network"),
	do("reset-private-network-field", "DELETE", "/private-network/{id}/{field}", "clear a field of a private network", "private-network").fields("labels"),
	ask[cloud.AttachToNetworkRequest]("attach-instance-to-private-network", "PUT", "/private-network/{id}:attach", "put an instance into a private network", "private-network"),
	ask[cloud.InstanceRequest]("detach-instance-from-private-network", "PUT", "/private-network/{id}:detach", "take an instance out of a private network", "private-network"),
	ask[cloud.UpdateNetworkIPRequest]("update-private-network-instance-ip", "PUT", "/private-network/{id}:update-ip", "change the address of an instance in a private network", "private-network"),

	list[cloud.ElasticIPList]("/elastic-ip", "list the elastic IPs"),
	ask[cloud.CreateElasticIPRequest]("create-elastic-ip", "POST", "/elastic-ip", "create an elastic IP", "elastic-ip"),
	get[cloud.ElasticIP]("elastic-ip", "read an elastic IP"),
	ask[cloud.UpdateElasticIPRequest]("update-elastic-ip", "PUT", "/elastic-ip/{id}", "change an elastic IP", "elastic-ip"),
	do("delete-elastic-ip", "DELETE", "/elastic-ip/{id}", "give an elastic IP back", "elastic-ip"),
	do("reset-elastic-ip-field", "DELETE", "/elastic-ip/{id}/{field}", "clear a field of an elastic IP", "elastic-ip").fields("description"),
	ask[cloud.InstanceRequest]("attach-instance-to-elastic-ip", "PUT", "/elastic-ip/{id}:attach", "attach an elastic IP to an instance", "elastic-ip"),
	ask[cloud.InstanceRequest]("detach-instance-from-elastic-ip", "PUT", "/elastic-ip/{id}:detach", "detach an elastic IP from an instance", "elastic-ip"),

	read[cloud.ReverseDNSRecord]("get-reverse-dns-instance", "/reverse-dns/instance/{id}", "read the name of an instance's address").of("instance"),
	ask[cloud.UpdateReverseDNSRequest]("update-reverse-dns-instance", "POST", "/reverse-dns/instance/{id}", "give an instance's address a name", "instance").of("instance"),
	do("delete-reverse-dns-instance", "DELETE", "/reverse-dns/instance/{id}", "take the name of an instance's address away", "instance").of("instance"),
	read[cloud.ReverseDNSRecord]("get-reverse-dns-elastic-ip", "/reverse-dns/elastic-ip/{id}", "read the name of an elastic IP").of("elastic-ip"),
	ask[cloud.UpdateReverseDNSRequest]("update-reverse-dns-elastic-ip", "POST", "/reverse-dns/elastic-ip/{id}", "give an elastic IP a name", "elastic-ip").of("elastic-ip"),
	do("delete-reverse-dns-elastic-ip", "DELETE", "/reverse-dns/elastic-ip/{id}", "take the name of an elastic IP away", "elastic-ip").of("elastic-ip"),

	list[cloud.InstancePoolList]("/instance-pool", "list the instance pools"),
	ask[cloud.CreateInstancePoolRequest]("create-instance-pool", "POST", "/instance-pool", "create an instance pool", "instance-pool"),
	get[cloud.InstancePool]("instance-pool", "read an instance pool"),
	ask[cloud.UpdateInstancePoolRequest]("update-instance-pool", "PUT", "/instance-pool/{id}", "change an instance pool", "instance-pool"),
	do("delete-instance-pool", "DELETE", "/instance-pool/{id}", "delete an instance pool and its instances", "instance-pool"),
	ask[cloud.ScaleInstancePoolRequest]("scale-instance-pool", "PUT", "/instance-pool/{id}:scale", "give an instance pool another size", "instance-pool"),
	ask[cloud.EvictInstancePoolMembersRequest]("evict-instance-pool-members", "PUT", "/instance-pool/{id}:evict", "remove chosen members from an instance pool", "instance-pool"),

	list[cloud.LoadBalancerList]("/load-balancer", "list the load balancers"),
	ask[cloud.CreateLoadBalancerRequest]("create-load-balancer", "POST", "/load-balancer", "create a load balancer", "load-balancer"),
	get[cloud.LoadBalancer]("load-balancer", "read a load balancer"),
	ask[cloud.UpdateLoadBalancerRequest]("update-load-balancer", "PUT", "/load-balancer/{id}", "change a load balancer", "load-balancer"),
	do("delete-load-balancer", "DELETE", "/load-balancer/{id}", "delete a load balancer", "load-balancer"),
	do("reset-load-balancer-field", "DELETE", "/load-balancer/{id}/{field}", "clear a field of a load balancer", "load-balancer").fields("description", "labels"),
	ask[cloud.AddServiceRequest]("add-service-to-load-balancer", "POST", "/load-balancer/{id}/service", "add a service to a load balancer", "load-balancer"),
	read[cloud.LoadBalancerService]("get-load-balancer-service", "/load-balancer/{id}/service/{service-id}", "read a service of a load balancer"),
	ask[cloud.UpdateServiceRequest]("update-load-balancer-service", "PUT", "/load-balancer/{id}/service/{service-id}", "change a service of a load balancer", "load-balancer"),
	do("delete-load-balancer-service", "DELETE", "/load-balancer/{id}/service/{service-id}", "remove a service from a load balancer", "load-balancer"),
	do("reset-load-balancer-service-field", "DELETE", "/load-balancer/{id}/service/{service-id}/{field}", "clear a field of a service", "load-balancer").fields("description", "connection-limit"),
}

// Make completes an operation: parameters from its path, noun and verb from path
// and id.
func Make(o Operation) Operation {
	o.Noun, _, _ = strings.Cut(strings.TrimPrefix(o.Path, "/"), "/")
	o.Verb = verb(o.ID, o.Noun)
	if o.Params == nil {
		o.Params = params(o.Path, o.Noun)
	}
	if o.Async && o.Response == nil {
		o.Response = reflect.TypeFor[cloud.Operation]()
	}
	return o
}

// verb is what remains of an operation id without its noun, and without the
// preposition that joined them: "add-service-to-load-balancer" adds a service.
func verb(id, noun string) string {
	before, after, found := strings.Cut(id, noun)
	if !found {
		return id
	}
	v := strings.Trim(before, "-")
	v = strings.TrimSuffix(strings.TrimSuffix(v, "-to"), "-from")
	if after = strings.Trim(strings.TrimPrefix(after, "s"), "-"); after != "" && !strings.HasPrefix(id, "list-") {
		v += "-" + after
	}
	return v
}

// params reads the parameters of a path: {id} identifies the noun, {x-id} a child
// of it, every other name is a plain value.
func params(path, noun string) []Param {
	var out []Param
	for rest := path; ; {
		_, after, found := strings.Cut(rest, "{")
		if !found {
			return out
		}
		name, after, _ := strings.Cut(after, "}")
		rest = after
		p := Param{Name: name}
		switch child, isChild := strings.CutSuffix(name, "-id"); {
		case name == "id":
			p.Noun = noun
		case isChild:
			p.Noun, p.Parent = child, 1
		default:
			p.Plain = true
			if name == "name" {
				p.Noun = noun
			}
		}
		out = append(out, p)
	}
}

func list[T any](path, summary string, query ...Param) Operation {
	return Make(Operation{ID: "list-" + path[1:] + "s", Method: "GET", Path: path, Summary: summary, Query: query,
		Response: reflect.TypeFor[T]()})
}

func get[T any](noun, summary string) Operation {
	return read[T]("get-"+noun, "/"+noun+"/{id}", summary)
}

func read[T any](id, path, summary string) Operation {
	return Make(Operation{ID: id, Method: "GET", Path: path, Summary: summary, Response: reflect.TypeFor[T]()})
}

func do(id, method, path, summary, reference string) Operation {
	return Make(Operation{ID: id, Method: method, Path: path, Summary: summary, Async: true, Reference: reference})
}

func ask[T any](id, method, path, summary, reference string) Operation {
	o := do(id, method, path, summary, reference)
	o.Request = reflect.TypeFor[T]()
	return o
}

func (o Operation) extension(query ...Param) Operation {
	o.Extension, o.Query = true, query
	return o
}

func (o Operation) unsigned() Operation { o.Unsigned = true; return o }

func (o Operation) bodyFree() Operation { o.BodyFree = true; return o }

// of says which noun the id in the path is of, where it is not the path's own.
func (o Operation) of(noun string) Operation {
	o.Params[0].Noun = noun
	return o
}

// fields says which fields a reset operation takes.
func (o Operation) fields(names ...string) Operation {
	o.Params[len(o.Params)-1].Enum = names
	return o
}
