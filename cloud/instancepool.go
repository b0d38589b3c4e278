// SPDX-License-Identifier: Apache-2.0

package cloud

import (
	"fmt"
	"slices"
	"time"
)

// DefaultInstancePrefix starts the names of a pool's instances when the pool
// names no other.
const DefaultInstancePrefix = "pool"

// InstancePoolState is where a pool stands.
type InstancePoolState string

const (
	PoolCreating    InstancePoolState = "creating"
	PoolRunning     InstancePoolState = "running"
	PoolUpdating    InstancePoolState = "updating"
	PoolScalingUp   InstancePoolState = "scaling-up"
	PoolScalingDown InstancePoolState = "scaling-down"
	PoolSuspended   InstancePoolState = "suspended"
	PoolDestroying  InstancePoolState = "destroying"
)

// InstancePool is a number of equal instances.
type InstancePool struct {
	ID                 ID                 `json:"id" table:"true"`
	Name               string             `json:"name" table:"true"`
	Description        string             `json:"description,omitempty"`
	State              InstancePoolState  `json:"state" enum:"creating,running,updating,scaling-up,scaling-down,suspended,destroying" table:"true"`
	Size               int                `json:"size" table:"true"`
	MinAvailable       int                `json:"min-available,omitempty"`
	InstancePrefix     string             `json:"instance-prefix,omitempty" table:"true"`
	InstanceType       Ref                `json:"instance-type"`
	Template           Ref                `json:"template"`
	DiskSize           int                `json:"disk-size"`
	SSHKey             *SSHKeyRef         `json:"ssh-key,omitempty"`
	SSHKeys            []SSHKeyRef        `json:"ssh-keys,omitempty"`
	UserData           string             `json:"user-data,omitempty" encoding:"base64" secret:"true"`
	Labels             Labels             `json:"labels,omitempty"`
	SecurityGroups     []Ref              `json:"security-groups,omitempty"`
	AntiAffinityGroups []Ref              `json:"anti-affinity-groups,omitempty"`
	PrivateNetworks    []Ref              `json:"private-networks,omitempty"`
	ElasticIPs         []Ref              `json:"elastic-ips,omitempty"`
	DeployTarget       *Ref               `json:"deploy-target,omitempty"`
	PublicIPAssignment PublicIPAssignment `json:"public-ip-assignment,omitempty" enum:"inet4,dual,none"`
	IPv6Enabled        bool               `json:"ipv6-enabled,omitempty"`
	ConsistentSnapshot bool               `json:"application-consistent-snapshot-enabled,omitempty"`
	Instances          []Ref              `json:"instances,omitempty" doc:"the members"`
	Manager            *Manager           `json:"manager,omitempty"`
	CreatedAt          time.Time          `json:"created-at,omitzero"`
}

// HasIPv6 reports whether instances that are made for the pool have IPv6.
func (p *InstancePool) HasIPv6() bool { return p.PublicIPAssignment == PublicIPDual || p.IPv6Enabled }

// Validate checks the pool as a whole, after a change.
func (p *InstancePool) Validate() []FieldError {
	faults := validUserData(p.UserData)
	if p.MinAvailable > p.Size {
		faults = append(faults, Fault("min-available", "expected at most the size of the pool, %d", p.Size))
	}
	return slices.Concat(faults,
		validRefs("security-groups", p.SecurityGroups),
		validRefs("anti-affinity-groups", p.AntiAffinityGroups),
		validRefs("private-networks", p.PrivateNetworks),
		validRefs("elastic-ips", p.ElasticIPs))
}

// InstancePoolList answers list-instance-pools.
type InstancePoolList struct {
	InstancePools []InstancePool `json:"instance-pools"`
}

// CreateInstancePoolRequest asks for a pool and its instances.
type CreateInstancePoolRequest struct {
	Name               string             `json:"name" minLength:"1" maxLength:"255" doc:"name of the pool"`
	Description        string             `json:"description,omitempty" maxLength:"255" doc:"description of the pool"`
	Size               int                `json:"size" minimum:"1" maximum:"10000" doc:"number of instances"`
	MinAvailable       int                `json:"min-available,omitempty" minimum:"0" doc:"instances that must be running"`
	InstancePrefix     string             `json:"instance-prefix,omitempty" minLength:"1" maxLength:"30" doc:"start of the instances' names (pool when absent)"`
	InstanceType       Ref                `json:"instance-type" ref:"instance-type" doc:"size of an instance"`
	Template           Ref                `json:"template" ref:"template" doc:"what an instance boots"`
	DiskSize           int                `json:"disk-size" minimum:"10" maximum:"51200" doc:"GiB"`
	SSHKey             *SSHKeyRef         `json:"ssh-key,omitempty" ref:"ssh-key" doc:"a key that may log in"`
	SSHKeys            []SSHKeyRef        `json:"ssh-keys,omitempty" ref:"ssh-key" doc:"keys that may log in"`
	UserData           string             `json:"user-data,omitempty" minLength:"1" maxLength:"32768" encoding:"base64" secret:"true" doc:"cloud-init data"`
	Labels             Labels             `json:"labels,omitempty" doc:"labels"`
	SecurityGroups     []Ref              `json:"security-groups,omitempty" ref:"security-group" doc:"security groups (default when none)"`
	AntiAffinityGroups []Ref              `json:"anti-affinity-groups,omitempty" ref:"anti-affinity-group" doc:"groups of instances to keep apart"`
	PrivateNetworks    []Ref              `json:"private-networks,omitempty" ref:"private-network" doc:"private networks"`
	ElasticIPs         []Ref              `json:"elastic-ips,omitempty" ref:"elastic-ip" doc:"elastic addresses"`
	DeployTarget       *Ref               `json:"deploy-target,omitempty" doc:"where to place the instances"`
	PublicIPAssignment PublicIPAssignment `json:"public-ip-assignment,omitempty" enum:"inet4,dual,none" doc:"public addresses (inet4 when absent)"`
	IPv6Enabled        bool               `json:"ipv6-enabled,omitempty" doc:"deprecated: public-ip-assignment says it"`
	ConsistentSnapshot bool               `json:"application-consistent-snapshot-enabled,omitempty" doc:"application-consistent snapshots"`
}

// Validate checks what no single field can say.
func (r *CreateInstancePoolRequest) Validate() []FieldError { return r.Pool("").Validate() }

// Pool returns the pool that the request asks for.
func (r *CreateInstancePoolRequest) Pool(id ID) *InstancePool {
	return &InstancePool{
		ID: id, Name: r.Name, Description: r.Description, State: PoolCreating, Size: r.Size, MinAvailable: r.MinAvailable,
		InstancePrefix: r.InstancePrefix, InstanceType: r.InstanceType, Template: r.Template, DiskSize: r.DiskSize,
		SSHKey: r.SSHKey, SSHKeys: r.SSHKeys, UserData: r.UserData, Labels: r.Labels,
		SecurityGroups: r.SecurityGroups, AntiAffinityGroups: r.AntiAffinityGroups,
		PrivateNetworks: r.PrivateNetworks, ElasticIPs: r.ElasticIPs, DeployTarget: r.DeployTarget,
		PublicIPAssignment: r.PublicIPAssignment, IPv6Enabled: r.IPv6Enabled, ConsistentSnapshot: r.ConsistentSnapshot,
	}
}

// UpdateInstancePoolRequest changes what it names: null clears, absent stays.
// Changes hold for instances made afterwards.
type UpdateInstancePoolRequest struct {
	Name               string             `json:"name,omitempty" minLength:"1" maxLength:"255" doc:"name of the pool"`
	Description        string             `json:"description,omitempty" maxLength:"255" clear:"true" doc:"description of the pool"`
	MinAvailable       int                `json:"min-available,omitempty" minimum:"0" clear:"true" doc:"instances that must be running"`
	InstancePrefix     string             `json:"instance-prefix,omitempty" minLength:"1" maxLength:"30" clear:"true" doc:"start of the instances' names"`
	InstanceType       *Ref               `json:"instance-type,omitempty" ref:"instance-type" doc:"size of an instance"`
	Template           *Ref               `json:"template,omitempty" ref:"template" doc:"what an instance boots"`
	DiskSize           int                `json:"disk-size,omitempty" minimum:"10" maximum:"51200" doc:"GiB"`
	SSHKey             *SSHKeyRef         `json:"ssh-key,omitempty" ref:"ssh-key" clear:"true" doc:"a key that may log in"`
	SSHKeys            []SSHKeyRef        `json:"ssh-keys,omitempty" ref:"ssh-key" clear:"true" doc:"keys that may log in"`
	UserData           string             `json:"user-data,omitempty" minLength:"1" maxLength:"32768" encoding:"base64" secret:"true" clear:"true" doc:"cloud-init data"`
	Labels             Labels             `json:"labels,omitempty" clear:"true" doc:"labels"`
	SecurityGroups     []Ref              `json:"security-groups,omitempty" ref:"security-group" clear:"true" doc:"security groups"`
	AntiAffinityGroups []Ref              `json:"anti-affinity-groups,omitempty" ref:"anti-affinity-group" clear:"true" doc:"groups of instances to keep apart"`
	PrivateNetworks    []Ref              `json:"private-networks,omitempty" ref:"private-network" clear:"true" doc:"private networks"`
	ElasticIPs         []Ref              `json:"elastic-ips,omitempty" ref:"elastic-ip" clear:"true" doc:"elastic addresses"`
	DeployTarget       *Ref               `json:"deploy-target,omitempty" clear:"true" doc:"where to place the instances"`
	PublicIPAssignment PublicIPAssignment `json:"public-ip-assignment,omitempty" enum:"inet4,dual,none" doc:"public addresses"`
	IPv6Enabled        bool               `json:"ipv6-enabled,omitempty" doc:"deprecated: public-ip-assignment says it"`
	ConsistentSnapshot bool               `json:"application-consistent-snapshot-enabled,omitempty" doc:"application-consistent snapshots"`
}

// Validate checks what no single field can say.
func (r *UpdateInstancePoolRequest) Validate() []FieldError { return validUserData(r.UserData) }

// ScaleInstancePoolRequest asks for another size.
type ScaleInstancePoolRequest struct {
	Size int `json:"size" minimum:"0" maximum:"10000" doc:"number of instances"`
}

// EvictInstancePoolMembersRequest names the members to remove; the size follows.
type EvictInstancePoolMembersRequest struct {
	Instances []ID `json:"instances" minItems:"1" ref:"instance" doc:"members to remove"`
}

// Validate refuses a list that names a member twice.
func (r *EvictInstancePoolMembersRequest) Validate() []FieldError {
	var faults []FieldError
	seen := make(map[ID]bool, len(r.Instances))
	for i, id := range r.Instances {
		if seen[id] {
			faults = append(faults, Fault(fmt.Sprintf("instances[%d]", i), "named twice"))
		}
		seen[id] = true
	}
	return faults
}
