// SPDX-License-Identifier: Apache-2.0

package cloud

import "time"

// InstanceType is a size of instances.
type InstanceType struct {
	ID         ID       `json:"id" table:"true"`
	Family     string   `json:"family" table:"true"`
	Size       string   `json:"size" table:"true"`
	CPUs       int      `json:"cpus" table:"true"`
	GPUs       int      `json:"gpus,omitempty"`
	Memory     int64    `json:"memory" doc:"octets" table:"true"`
	Authorized bool     `json:"authorized" doc:"the organisation may use it"`
	Zones      []string `json:"zones,omitempty"`

	// Beyond the contract.
	RateFrom uint64 `json:"rate-from,omitempty" doc:"octets a second from an interface of the instance; any when absent"`
	RateTo   uint64 `json:"rate-to,omitempty" doc:"octets a second towards an interface of the instance; any when absent"`
	Flows    uint32 `json:"flows,omitempty" doc:"flows that an interface of the instance may have confirmed at a time; 8192 when absent"`
}

// Title is the name by which people call a type: standard.small.
func (t InstanceType) Title() string { return t.Family + "." + t.Size }

// Named says that people may call the type s: standard.small, or small.
func (t InstanceType) Named(s string) bool {
	return s == t.Title() || t.Family == "standard" && s == t.Size
}

// InstanceTypeList answers list-instance-types.
type InstanceTypeList struct {
	InstanceTypes []InstanceType `json:"instance-types"`
}

// Template is what an instance boots.
type Template struct {
	ID                 ID        `json:"id" table:"true"`
	Name               string    `json:"name" table:"true"`
	Description        string    `json:"description,omitempty"`
	Family             string    `json:"family,omitempty" table:"true"`
	Version            string    `json:"version,omitempty"`
	Build              string    `json:"build,omitempty"`
	Maintainer         string    `json:"maintainer,omitempty"`
	Visibility         string    `json:"visibility" enum:"public,private" table:"true"`
	BootMode           string    `json:"boot-mode,omitempty" enum:"legacy,uefi"`
	Size               int64     `json:"size,omitempty" doc:"octets"`
	DefaultUser        string    `json:"default-user,omitempty"`
	SSHKeyEnabled      bool      `json:"ssh-key-enabled"`
	PasswordEnabled    bool      `json:"password-enabled"`
	ConsistentSnapshot bool      `json:"application-consistent-snapshot-enabled"`
	CreatedAt          time.Time `json:"created-at"`
	Zones              []string  `json:"zones,omitempty"`
}

// Named says that people may call the template s: by its name or its family.
func (t Template) Named(s string) bool { return s == t.Name || s == t.Family }

// TemplateList answers list-templates.
type TemplateList struct {
	Templates []Template `json:"templates"`
}

// Image is a template of the catalogue, and how a hypervisor makes it run.
type Image struct {
	Template
	Driver  string // of cloud/compute: which hypervisors can run it
	Command string // what the driver starts
}

const (
	mib = 1 << 20
	gib = 1 << 30
)

// InstanceTypes is the static catalogue of sizes.
var InstanceTypes = []InstanceType{
	{ID: "0c0a1ca5-0001-4000-8000-000000000001", Family: "standard", Size: "micro", CPUs: 1, Memory: 512 * mib, Authorized: true},
	{ID: "0c0a1ca5-0001-4000-8000-000000000002", Family: "standard", Size: "tiny", CPUs: 1, Memory: 1 * gib, Authorized: true},
	{ID: "0c0a1ca5-0001-4000-8000-000000000003", Family: "standard", Size: "small", CPUs: 2, Memory: 2 * gib, Authorized: true},
	{ID: "0c0a1ca5-0001-4000-8000-000000000004", Family: "standard", Size: "medium", CPUs: 2, Memory: 4 * gib, Authorized: true},
	{ID: "0c0a1ca5-0001-4000-8000-000000000005", Family: "standard", Size: "large", CPUs: 4, Memory: 8 * gib, Authorized: true, Flows: 16_384},
	{ID: "0c0a1ca5-0001-4000-8000-000000000006", Family: "standard", Size: "extra-large", CPUs: 4, Memory: 16 * gib, Authorized: true, Flows: 32_768},
	{ID: "0c0a1ca5-0001-4000-8000-000000000007", Family: "standard", Size: "huge", CPUs: 8, Memory: 32 * gib, Authorized: true, Flows: 65_536},
	// Small ones that share their hypervisor's uplink with many others: 100 and 200 Mbit/s.
	{ID: "0c0a1ca5-0001-4000-8000-000000000008", Family: "shared", Size: "micro", CPUs: 1, Memory: 512 * mib, Authorized: true, RateFrom: 12_500_000, RateTo: 12_500_000},
	{ID: "0c0a1ca5-0001-4000-8000-000000000009", Family: "shared", Size: "tiny", CPUs: 1, Memory: 1 * gib, Authorized: true, RateFrom: 25_000_000, RateTo: 25_000_000},
}

// Images is the static catalogue of templates.
var Images = []Image{
	{
		Template: Template{
			ID: "0c0a1ca5-0002-4000-8000-000000000001", Name: "Cairn Echo 1",
			Description: "answers HTTP on 80 and UDP on 7 with the instance's name and the peer's address",
			Family:      "echo", Version: "1", Build: "1", Maintainer: "Cairn", Visibility: "public", BootMode: "legacy", Size: 10 * gib,
			DefaultUser: "cairn", SSHKeyEnabled: true, CreatedAt: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC),
		},
		Driver: "netns", Command: "echo",
	},
	{
		Template: Template{
			ID: "0c0a1ca5-0002-4000-8000-000000000002", Name: "Cairn Idle 1",
			Description: "does nothing but run its user-data",
			Family:      "idle", Version: "1", Build: "1", Maintainer: "Cairn", Visibility: "public", BootMode: "legacy", Size: 10 * gib,
			DefaultUser: "cairn", SSHKeyEnabled: true, CreatedAt: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC),
		},
		Driver: "netns", Command: "idle",
	},
}

// FindInstanceType returns the type with this id.
func FindInstanceType(id ID) (InstanceType, bool) {
	for _, t := range InstanceTypes {
		if t.ID == id {
			return t, true
		}
	}
	return InstanceType{}, false
}

// FindImage returns the template with this id and how to run it.
func FindImage(id ID) (Image, bool) {
	for _, i := range Images {
		if i.ID == id {
			return i, true
		}
	}
	return Image{}, false
}
