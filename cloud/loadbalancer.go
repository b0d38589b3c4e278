// SPDX-License-Identifier: Apache-2.0

package cloud

import (
	"net/netip"
	"time"
)

// MaxServices is the most services that a load balancer takes.
const MaxServices = 10

// LoadBalancerState is where a load balancer stands.
type LoadBalancerState string

const (
	BalancerCreating  LoadBalancerState = "creating"
	BalancerRunning   LoadBalancerState = "running"
	BalancerDeleting  LoadBalancerState = "deleting"
	BalancerMigrating LoadBalancerState = "migrating"
	BalancerMigrated  LoadBalancerState = "migrated"
	BalancerError     LoadBalancerState = "error"
)

// LoadBalancer is one address whose services spread flows over instance pools.
type LoadBalancer struct {
	ID            ID                    `json:"id" table:"true"`
	Name          string                `json:"name" table:"true"`
	Description   string                `json:"description,omitempty"`
	AddressFamily AddressFamily         `json:"addressfamily" enum:"inet4,inet6"`
	IP            netip.Addr            `json:"ip,omitzero" table:"true"`
	State         LoadBalancerState     `json:"state" enum:"creating,running,deleting,migrating,migrated,error" table:"true"`
	CreatedAt     time.Time             `json:"created-at"`
	Labels        Labels                `json:"labels,omitempty"`
	Services      []LoadBalancerService `json:"services"`
}

// Service returns the service with this id, nil when there is none.
func (l *LoadBalancer) Service(id ID) *LoadBalancerService {
	for i := range l.Services {
		if l.Services[i].ID == id {
			return &l.Services[i]
		}
	}
	return nil
}

// LoadBalancerList answers list-load-balancers.
type LoadBalancerList struct {
	LoadBalancers []LoadBalancer `json:"load-balancers"`
}

// CreateLoadBalancerRequest asks for a load balancer without services.
type CreateLoadBalancerRequest struct {
	Name          string        `json:"name" minLength:"1" maxLength:"255" doc:"name of the load balancer"`
	Description   string        `json:"description,omitempty" maxLength:"255" doc:"description of the load balancer"`
	AddressFamily AddressFamily `json:"addressfamily,omitempty" enum:"inet4,inet6" doc:"address family (inet4 when absent)"`
	Labels        Labels        `json:"labels,omitempty" doc:"labels"`
}

// UpdateLoadBalancerRequest changes what it names.
type UpdateLoadBalancerRequest struct {
	Name        string `json:"name,omitempty" minLength:"1" maxLength:"255" doc:"name of the load balancer"`
	Description string `json:"description,omitempty" maxLength:"255" clear:"true" doc:"description of the load balancer"`
	Labels      Labels `json:"labels,omitempty" clear:"true" doc:"labels"`
}

// ServiceState is where a service stands.
type ServiceState string

const (
	ServiceCreating ServiceState = "creating"
	ServiceRunning  ServiceState = "running"
	ServiceUpdating ServiceState = "updating"
	ServiceDeleting ServiceState = "deleting"
	ServiceError    ServiceState = "error"
)

// Strategy is how a service chooses a backend for a flow.
type Strategy string

const (
	RoundRobin Strategy = "round-robin"
	SourceHash Strategy = "source-hash"
	MaglevHash Strategy = "maglev-hash"
)

// LoadBalancerService is a port of a load balancer and the pool behind it. It is
// returned with no fields that were not sent: some clients compare it whole.
// The contract does not have ConnectionLimit, how many live connections each
// backend takes, SourceRate, how many packets a second one source prefix may send,
// and QUIC, which has connection IDs name backends; 0: any.
type LoadBalancerService struct {
	ID                ID                  `json:"id" table:"true"`
	Name              string              `json:"name" table:"true"`
	Description       string              `json:"description,omitempty"`
	Protocol          Protocol            `json:"protocol" enum:"tcp,udp" table:"true"`
	Port              uint16              `json:"port" table:"true"`
	TargetPort        uint16              `json:"target-port" table:"true"`
	Strategy          Strategy            `json:"strategy" enum:"round-robin,source-hash,maglev-hash" table:"true"`
	ConnectionLimit   int                 `json:"connection-limit,omitempty"`
	SourceRate        int                 `json:"source-rate,omitempty"`
	QUIC              bool                `json:"quic,omitempty"`
	InstancePool      Ref                 `json:"instance-pool"`
	Healthcheck       Healthcheck         `json:"healthcheck"`
	State             ServiceState        `json:"state" enum:"creating,running,updating,deleting,error" table:"true"`
	HealthcheckStatus []HealthcheckStatus `json:"healthcheck-status"`
}

// Validate checks the service as a whole, after a change.
func (s *LoadBalancerService) Validate() []FieldError {
	faults := Under("healthcheck", s.Healthcheck.Validate())
	if s.QUIC && s.Protocol != UDP {
		faults = append(faults, Fault("quic", "expected false: the protocol is %s", s.Protocol))
	}
	return faults
}

// HealthcheckMode is how a backend is asked whether it is well.
type HealthcheckMode string

const (
	CheckTCP   HealthcheckMode = "tcp"
	CheckHTTP  HealthcheckMode = "http"
	CheckHTTPS HealthcheckMode = "https"
)

// What a healthcheck means where it says nothing.
const (
	DefaultInterval = 10 // seconds
	DefaultTimeout  = 2  // seconds
	DefaultRetries  = 1
)

// Healthcheck is how the backends of a service are asked whether they are well.
// In a change it is replaced whole.
type Healthcheck struct {
	Mode     HealthcheckMode `json:"mode,omitempty" enum:"tcp,http,https" doc:"how to ask (tcp when absent)"`
	Port     uint16          `json:"port,omitempty" minimum:"1" maximum:"65535" doc:"port to ask (the target port when absent)"`
	Interval int             `json:"interval,omitempty" minimum:"5" maximum:"300" doc:"seconds between checks (10 when absent)"`
	Timeout  int             `json:"timeout,omitempty" minimum:"2" maximum:"60" doc:"seconds to wait for an answer (2 when absent)"`
	Retries  int             `json:"retries,omitempty" minimum:"1" maximum:"20" doc:"failures to bear (1 when absent)"`
	URI      string          `json:"uri,omitempty" minLength:"1" maxLength:"255" doc:"what to ask for by http and https"`
	TLSSNI   string          `json:"tls-sni,omitempty" minLength:"1" maxLength:"255" doc:"server name for https"`
}

// Validate checks that a check ends before the next one starts.
func (h Healthcheck) Validate() []FieldError {
	d := h.WithDefaults(1)
	if d.Timeout > d.Interval {
		return []FieldError{Fault("timeout", "expected at most the interval, %d", d.Interval)}
	}
	return nil
}

// WithDefaults fills in what must be there when a service is read: mode, port,
// interval, timeout and retries. URI and server name stay absent when not sent.
func (h Healthcheck) WithDefaults(targetPort uint16) Healthcheck {
	if h.Mode == "" {
		h.Mode = CheckTCP
	}
	if h.Port == 0 {
		h.Port = targetPort
	}
	if h.Interval == 0 {
		h.Interval = DefaultInterval
	}
	if h.Timeout == 0 {
		h.Timeout = DefaultTimeout
	}
	if h.Retries == 0 {
		h.Retries = DefaultRetries
	}
	return h
}

// HealthStatus is the verdict on a backend. A backend without one is left out.
type HealthStatus string

const (
	HealthSuccess HealthStatus = "success"
	HealthFailure HealthStatus = "failure"
)

// HealthcheckStatus is the verdict on one backend.
type HealthcheckStatus struct {
	PublicIP netip.Addr   `json:"public-ip"`
	Status   HealthStatus `json:"status" enum:"success,failure"`
}

// AddServiceRequest asks for a service of a load balancer.
type AddServiceRequest struct {
	Name         string      `json:"name" minLength:"1" maxLength:"255" doc:"name of the service"`
	Description  string      `json:"description,omitempty" maxLength:"255" doc:"description of the service"`
	InstancePool Ref         `json:"instance-pool" ref:"instance-pool" doc:"the backends"`
	Protocol     Protocol    `json:"protocol" enum:"tcp,udp" doc:"network protocol"`
	Strategy     Strategy    `json:"strategy" enum:"round-robin,source-hash,maglev-hash" doc:"how to choose a backend"`
	Port         uint16      `json:"port" minimum:"1" maximum:"65535" doc:"port of the load balancer"`
	TargetPort   uint16      `json:"target-port" minimum:"1" maximum:"65535" doc:"port of the instances"`
	Healthcheck  Healthcheck `json:"healthcheck" doc:"how to ask a backend whether it is well"`

	ConnectionLimit int  `json:"connection-limit,omitempty" minimum:"0" maximum:"1000000" doc:"connections that a backend takes at once; the next ones go to others, or are refused (any number when absent or 0)"`
	SourceRate      int  `json:"source-rate,omitempty" minimum:"0" maximum:"100000000" doc:"packets a second that each /24 (IPv6: /56) of sources may send through a CPU of a load balancer's node; more are dropped (any number when absent or 0)"`
	QUIC            bool `json:"quic,omitempty" doc:"packets with a QUIC short header go to the backend that their connection ID names, as of QUIC-LB unenciphered, configuration 0 with the backend's IPv4 address as server ID; udp only"`
}

// Validate checks what no single field can say.
func (r *AddServiceRequest) Validate() []FieldError { return r.Service("").Validate() }

// Service returns the service that the request asks for.
func (r *AddServiceRequest) Service(id ID) *LoadBalancerService {
	return &LoadBalancerService{
		ID: id, Name: r.Name, Description: r.Description, Protocol: r.Protocol, Port: r.Port, TargetPort: r.TargetPort,
		Strategy: r.Strategy, ConnectionLimit: r.ConnectionLimit, SourceRate: r.SourceRate, QUIC: r.QUIC, InstancePool: Ref{ID: r.InstancePool.ID},
		Healthcheck: r.Healthcheck.WithDefaults(r.TargetPort), State: ServiceCreating,
	}
}

// UpdateServiceRequest changes what it names; the pool cannot be changed.
type UpdateServiceRequest struct {
	Name        string       `json:"name,omitempty" minLength:"1" maxLength:"255" doc:"name of the service"`
	Description string       `json:"description,omitempty" maxLength:"255" clear:"true" doc:"description of the service"`
	Protocol    Protocol     `json:"protocol,omitempty" enum:"tcp,udp" doc:"network protocol"`
	Strategy    Strategy     `json:"strategy,omitempty" enum:"round-robin,source-hash,maglev-hash" doc:"how to choose a backend"`
	Port        uint16       `json:"port,omitempty" minimum:"1" maximum:"65535" doc:"port of the load balancer"`
	TargetPort  uint16       `json:"target-port,omitempty" minimum:"1" maximum:"65535" doc:"port of the instances"`
	Healthcheck *Healthcheck `json:"healthcheck,omitempty" doc:"how to ask a backend whether it is well; replaced whole"`

	ConnectionLimit int  `json:"connection-limit,omitempty" minimum:"0" maximum:"1000000" clear:"true" doc:"connections that a backend takes at once; the next ones go to others, or are refused (any number when absent or 0)"`
	SourceRate      int  `json:"source-rate,omitempty" minimum:"0" maximum:"100000000" clear:"true" doc:"packets a second that each /24 (IPv6: /56) of sources may send through a CPU of a load balancer's node; more are dropped (any number when absent or 0)"`
	QUIC            bool `json:"quic,omitempty" clear:"true" doc:"packets with a QUIC short header go to the backend that their connection ID names, as of QUIC-LB unenciphered, configuration 0 with the backend's IPv4 address as server ID; udp only"`
}

// Validate checks what no single field can say.
func (r *UpdateServiceRequest) Validate() []FieldError {
	if r.Healthcheck == nil {
		return nil
	}
	return Under("healthcheck", r.Healthcheck.Validate())
}
