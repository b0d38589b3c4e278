// SPDX-License-Identifier: Apache-2.0

package cloud

// MaxAntiAffinityInstances is the most instances that a group takes.
const MaxAntiAffinityInstances = 8

// AntiAffinityGroup keeps its instances on different hypervisors, or refuses them.
type AntiAffinityGroup struct {
	ID          ID     `json:"id" table:"true"`
	Name        string `json:"name" minLength:"1" maxLength:"255" table:"true"`
	Description string `json:"description,omitempty" maxLength:"255" table:"true"`
	Instances   []Ref  `json:"instances,omitempty" doc:"the instances in the group"`
}

// AntiAffinityGroupList answers list-anti-affinity-groups.
type AntiAffinityGroupList struct {
	AntiAffinityGroups []AntiAffinityGroup `json:"anti-affinity-groups"`
}

// CreateAntiAffinityGroupRequest asks for a group.
type CreateAntiAffinityGroupRequest struct {
	Name        string `json:"name" minLength:"1" maxLength:"255" doc:"name of the group"`
	Description string `json:"description,omitempty" maxLength:"255" doc:"description of the group"`
}
