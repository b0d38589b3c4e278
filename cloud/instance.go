// SPDX-License-Identifier: Apache-2.0

package cloud

import (
	"encoding/base64"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// InstanceState is where an instance stands.
type InstanceState string

const (
	InstanceStarting   InstanceState = "starting"
	InstanceRunning    InstanceState = "running"
	InstanceStopping   InstanceState = "stopping"
	InstanceStopped    InstanceState = "stopped"
	InstanceMigrating  InstanceState = "migrating"
	InstanceError      InstanceState = "error"
	InstanceDestroying InstanceState = "destroying"
	InstanceDestroyed  InstanceState = "destroyed"
	InstanceExpunging  InstanceState = "expunging"
)

// PublicIPAssignment says which public addresses an instance gets.
type PublicIPAssignment string

const (
	PublicIPInet4 PublicIPAssignment = "inet4"
	PublicIPDual  PublicIPAssignment = "dual"
	PublicIPNone  PublicIPAssignment = "none"
)

// ManagerInstancePool is the type of a manager that is an instance pool.
const ManagerInstancePool = "instance-pool"

// Manager is the object that keeps an instance alive.
type Manager struct {
	ID   ID     `json:"id"`
	Type string `json:"type" enum:"instance-pool,sks-nodepool"`
}

// Instance is a virtual machine. The arrays are there even when empty.
type Instance struct {
	ID                 ID                 `json:"id" table:"true"`
	Name               string             `json:"name" table:"true"`
	State              InstanceState      `json:"state" enum:"starting,running,stopping,stopped,migrating,error,destroying,destroyed,expunging" table:"true"`
	CreatedAt          time.Time          `json:"created-at"`
	InstanceType       Ref                `json:"instance-type" ref:"instance-type"`
	Template           Ref                `json:"template" ref:"template"`
	DiskSize           int                `json:"disk-size" doc:"GiB"`
	DiskEncrypted      bool               `json:"disk-encrypted"`
	UserData           string             `json:"user-data,omitempty" encoding:"base64" secret:"true"`
	Labels             Labels             `json:"labels"`
	PublicIP           netip.Addr         `json:"public-ip,omitzero" table:"true"`
	IPv6Address        netip.Addr         `json:"ipv6-address,omitzero"`
	PublicIPAssignment PublicIPAssignment `json:"public-ip-assignment" enum:"inet4,dual,none"`
	MACAddress         string             `json:"mac-address,omitempty"`
	SSHKey             *SSHKeyRef         `json:"ssh-key,omitempty"`
	SSHKeys            []SSHKeyRef        `json:"ssh-keys"`
	SecurityGroups     []Ref              `json:"security-groups" ref:"security-group"`
	AntiAffinityGroups []Ref              `json:"anti-affinity-groups" ref:"anti-affinity-group"`
	PrivateNetworks    []InstanceNetwork  `json:"private-networks"`
	ElasticIPs         []Ref              `json:"elastic-ips"`
	Snapshots          []Ref              `json:"snapshots"`
	Manager            *Manager           `json:"manager,omitempty"`
	SecurebootEnabled  bool               `json:"secureboot-enabled"`
	TPMEnabled         bool               `json:"tpm-enabled"`
	ConsistentSnapshot bool               `json:"application-consistent-snapshot-enabled"`

	// Beyond the contract.
	FlowLog bool `json:"flow-log,omitempty" doc:"its flows are logged"`
}

// InstanceNetwork is a private network an instance is attached to.
type InstanceNetwork struct {
	ID         ID     `json:"id"`
	MACAddress string `json:"mac-address"`

	// Beyond the contract.
	AllowedAddresses []string `json:"allowed-addresses,omitempty" doc:"further prefixes that it may use there"`
}

// InstanceRow is an instance as it stands in a list.
type InstanceRow struct {
	ID                 ID                 `json:"id" table:"true"`
	Name               string             `json:"name" table:"true"`
	State              InstanceState      `json:"state" table:"true"`
	CreatedAt          time.Time          `json:"created-at"`
	InstanceType       Ref                `json:"instance-type"`
	Template           Ref                `json:"template"`
	Manager            *Manager           `json:"manager,omitempty"`
	PublicIP           netip.Addr         `json:"public-ip,omitzero" table:"true"`
	IPv6Address        netip.Addr         `json:"ipv6-address,omitzero"`
	PublicIPAssignment PublicIPAssignment `json:"public-ip-assignment"`
	MACAddress         string             `json:"mac-address,omitempty"`
	PrivateNetworks    []InstanceNetwork  `json:"private-networks"`
	SecurityGroups     []Ref              `json:"security-groups"`
	SSHKey             *SSHKeyRef         `json:"ssh-key,omitempty"`
	SSHKeys            []SSHKeyRef        `json:"ssh-keys"`
	Labels             Labels             `json:"labels"`
}

// Row returns the short form.
func (i *Instance) Row() InstanceRow {
	return InstanceRow{
		ID: i.ID, Name: i.Name, State: i.State, CreatedAt: i.CreatedAt,
		InstanceType: i.InstanceType, Template: i.Template, Manager: i.Manager,
		PublicIP: i.PublicIP, IPv6Address: i.IPv6Address, PublicIPAssignment: i.PublicIPAssignment, MACAddress: i.MACAddress,
		PrivateNetworks: i.PrivateNetworks, SecurityGroups: i.SecurityGroups,
		SSHKey: i.SSHKey, SSHKeys: i.SSHKeys, Labels: i.Labels,
	}
}

// InstanceList answers list-instances.
type InstanceList struct {
	Instances []InstanceRow `json:"instances"`
}

// CreateInstanceRequest asks for an instance.
type CreateInstanceRequest struct {
	Name               string             `json:"name,omitempty" minLength:"1" maxLength:"255" doc:"name of the instance"`
	InstanceType       Ref                `json:"instance-type" ref:"instance-type" doc:"its size"`
	Template           Ref                `json:"template" ref:"template" doc:"what it boots"`
	DiskSize           int                `json:"disk-size" minimum:"10" maximum:"51200" doc:"GiB"`
	SSHKey             *SSHKeyRef         `json:"ssh-key,omitempty" ref:"ssh-key" doc:"a key that may log in"`
	SSHKeys            []SSHKeyRef        `json:"ssh-keys,omitempty" ref:"ssh-key" doc:"keys that may log in"`
	UserData           string             `json:"user-data,omitempty" minLength:"1" maxLength:"32768" encoding:"base64" secret:"true" doc:"cloud-init data"`
	SecurityGroups     []Ref              `json:"security-groups,omitempty" ref:"security-group" doc:"its security groups (default when none)"`
	AntiAffinityGroups []Ref              `json:"anti-affinity-groups,omitempty" ref:"anti-affinity-group" doc:"groups of instances to keep apart from"`
	PublicIPAssignment PublicIPAssignment `json:"public-ip-assignment,omitempty" enum:"inet4,dual,none" doc:"public addresses (inet4 when absent)"`
	DeployTarget       *Ref               `json:"deploy-target,omitempty" doc:"where to place it"`
	AutoStart          *bool              `json:"auto-start,omitempty" doc:"start it at once (true when absent)"`
	Labels             Labels             `json:"labels,omitempty" doc:"labels"`
	IPv6Enabled        bool               `json:"ipv6-enabled,omitempty" doc:"deprecated: public-ip-assignment says it"`
	SecurebootEnabled  bool               `json:"secureboot-enabled,omitempty" doc:"secure boot"`
	TPMEnabled         bool               `json:"tpm-enabled,omitempty" doc:"a TPM"`
	ConsistentSnapshot bool               `json:"application-consistent-snapshot-enabled,omitempty" doc:"application-consistent snapshots"`
}

// Validate checks what no single field can say.
func (r *CreateInstanceRequest) Validate() []FieldError {
	return slices.Concat(validUserData(r.UserData),
		validRefs("security-groups", r.SecurityGroups),
		validRefs("anti-affinity-groups", r.AntiAffinityGroups))
}

// StartInstanceRequest is the body of start-instance, which may be absent.
type StartInstanceRequest struct {
	RescueProfile string `json:"rescue-profile,omitempty" enum:"netboot,netboot-efi" doc:"boot a rescue system"`
}

// UpdateInstanceRequest changes what it names. User data is read when the
// instance starts.
type UpdateInstanceRequest struct {
	Name               string             `json:"name,omitempty" minLength:"1" maxLength:"255" doc:"name of the instance"`
	UserData           string             `json:"user-data,omitempty" minLength:"1" maxLength:"32768" encoding:"base64" secret:"true" clear:"true" doc:"cloud-init data"`
	Labels             Labels             `json:"labels,omitempty" clear:"true" doc:"labels"`
	PublicIPAssignment PublicIPAssignment `json:"public-ip-assignment,omitempty" enum:"inet4,dual,none" doc:"public addresses: from inet4 to dual"`
	ConsistentSnapshot bool               `json:"application-consistent-snapshot-enabled,omitempty" doc:"application-consistent snapshots"`

	// Beyond the contract.
	FlowLog bool `json:"flow-log,omitempty" doc:"log its flows: what opened, closed and was denied"`
}

// Validate checks what no single field can say.
func (r *UpdateInstanceRequest) Validate() []FieldError { return validUserData(r.UserData) }

// ScaleInstanceRequest asks for another size of a stopped instance.
type ScaleInstanceRequest struct {
	InstanceType Ref `json:"instance-type" ref:"instance-type" doc:"its new size, of the same family"`
}

// InstancePassword is what logs in to an instance.
type InstancePassword struct {
	Password string `json:"password" table:"true" secret:"true"`
}

func validUserData(s string) []FieldError {
	if _, err := base64.StdEncoding.DecodeString(s); err != nil {
		return []FieldError{Fault("user-data", "expected base64: %v", err)}
	}
	return nil
}

// validRefs refuses a list that names one object twice.
func validRefs(name string, refs []Ref) []FieldError {
	var faults []FieldError
	seen := make(map[ID]bool, len(refs))
	for i, r := range refs {
		if seen[r.ID] {
			faults = append(faults, Fault(fmt.Sprintf("%s[%d].id", name, i), "named twice"))
		}
		seen[r.ID] = true
	}
	return faults
}
