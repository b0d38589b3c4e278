// SPDX-License-Identifier: Apache-2.0

package cloud

// AddressFamily is that of an elastic IP, or of a load balancer.
type AddressFamily string

const (
	Inet4 AddressFamily = "inet4"
	Inet6 AddressFamily = "inet6"
)

// ElasticIP is an address that outlives the instances it is attached to: one of
// IPv4, or a prefix of 96 bits of IPv6. With a health check it is managed: it goes
// to one of its instances that is well. Without one it goes to all of them.
type ElasticIP struct {
	ID            ID                  `json:"id" table:"true"`
	IP            string              `json:"ip,omitempty" table:"true"`
	CIDR          string              `json:"cidr,omitempty" table:"true"`
	AddressFamily AddressFamily       `json:"addressfamily" enum:"inet4,inet6" table:"true"`
	Description   string              `json:"description,omitempty" table:"true"`
	Healthcheck   *ElasticHealthcheck `json:"healthcheck,omitempty"`
	Labels        Labels              `json:"labels,omitempty"`
}

// Named says that people may call it s: it has no name but its address.
func (e ElasticIP) Named(s string) bool { return s == e.IP || s == e.CIDR }

// ElasticIPList answers list-elastic-ips.
type ElasticIPList struct {
	ElasticIPs []ElasticIP `json:"elastic-ips"`
}

// What a health check of an elastic IP means where it says nothing.
const (
	DefaultStrikesOK   = 2
	DefaultStrikesFail = 3
)

// ElasticHealthcheck is how the instances of a managed elastic IP are asked
// whether they are well. In a change it is replaced whole.
type ElasticHealthcheck struct {
	Mode          HealthcheckMode `json:"mode" enum:"tcp,http,https" doc:"how to ask"`
	Port          uint16          `json:"port" minimum:"1" maximum:"65535" doc:"port to ask"`
	Interval      int             `json:"interval,omitempty" minimum:"5" maximum:"300" doc:"seconds between checks (10 when absent)"`
	Timeout       int             `json:"timeout,omitempty" minimum:"2" maximum:"60" doc:"seconds to wait for an answer (2 when absent)"`
	StrikesOK     int             `json:"strikes-ok,omitempty" minimum:"1" maximum:"20" doc:"successes in a row that make it well (2 when absent)"`
	StrikesFail   int             `json:"strikes-fail,omitempty" minimum:"1" maximum:"20" doc:"failures in a row that make it unwell (3 when absent)"`
	URI           string          `json:"uri,omitempty" minLength:"1" maxLength:"255" doc:"what to ask for by http and https"`
	TLSSNI        string          `json:"tls-sni,omitempty" minLength:"1" maxLength:"255" doc:"server name for https"`
	TLSSkipVerify *bool           `json:"tls-skip-verify,omitempty" doc:"do not check the certificate"`
}

// Validate checks that a check ends before the next one starts.
func (h *ElasticHealthcheck) Validate() []FieldError {
	if h == nil {
		return nil
	}
	if d := h.WithDefaults(); d.Timeout > d.Interval {
		return []FieldError{Fault("timeout", "expected at most the interval, %d", d.Interval)}
	}
	return nil
}

// WithDefaults fills in what was not said; what is asked for and of whom stays
// absent.
func (h ElasticHealthcheck) WithDefaults() ElasticHealthcheck {
	for _, f := range []struct {
		field *int
		value int
	}{{&h.Interval, DefaultInterval}, {&h.Timeout, DefaultTimeout}, {&h.StrikesOK, DefaultStrikesOK}, {&h.StrikesFail, DefaultStrikesFail}} {
		if *f.field == 0 {
			*f.field = f.value
		}
	}
	return h
}

// Validate checks the elastic IP as a whole, after a change.
func (e *ElasticIP) Validate() []FieldError { return Under("healthcheck", e.Healthcheck.Validate()) }

// CreateElasticIPRequest asks for an elastic IP.
type CreateElasticIPRequest struct {
	AddressFamily AddressFamily       `json:"addressfamily,omitempty" enum:"inet4,inet6" doc:"address family (inet4 when absent)"`
	Description   string              `json:"description,omitempty" maxLength:"255" doc:"description of the elastic IP"`
	Healthcheck   *ElasticHealthcheck `json:"healthcheck,omitempty" doc:"how to ask an instance whether it is well"`
	Labels        Labels              `json:"labels,omitempty" doc:"labels"`
}

// Validate checks what no single field can say.
func (r *CreateElasticIPRequest) Validate() []FieldError {
	return Under("healthcheck", r.Healthcheck.Validate())
}

// UpdateElasticIPRequest changes what it names.
type UpdateElasticIPRequest struct {
	Description string              `json:"description,omitempty" maxLength:"255" clear:"true" doc:"description of the elastic IP"`
	Healthcheck *ElasticHealthcheck `json:"healthcheck,omitempty" doc:"how to ask an instance whether it is well; replaced whole"`
	Labels      Labels              `json:"labels,omitempty" clear:"true" doc:"labels"`
}

// Validate checks what no single field can say.
func (r *UpdateElasticIPRequest) Validate() []FieldError {
	return Under("healthcheck", r.Healthcheck.Validate())
}

// ReverseDNSRecord is the name that an address stands for, with the dot at its
// end.
type ReverseDNSRecord struct {
	DomainName string `json:"domain-name,omitempty" table:"true"`
}

// UpdateReverseDNSRequest gives an address its name.
type UpdateReverseDNSRequest struct {
	DomainName string `json:"domain-name,omitempty" minLength:"1" maxLength:"253" doc:"the name, with or without the dot at its end"`
}

// Validate checks that it is a name.
func (r *UpdateReverseDNSRequest) Validate() []FieldError {
	if r.DomainName == "" {
		return []FieldError{Fault("domain-name", "required")}
	}
	if !ValidDomain(r.DomainName) {
		return []FieldError{Fault("domain-name", "expected a domain name")}
	}
	return nil
}
