// SPDX-License-Identifier: Apache-2.0

package store

import (
	"fmt"
	"slices"
	"strings"

	"cairn/cloud"
)

// KindPublicGroup is that of groups of networks which the rules of every
// organisation may name. They belong to the zone, and operators make them.
const KindPublicGroup Kind = "public-group"

// PublicGroupDoc is a public group: it has no members but its sources. Its
// number is one of those of security groups.
type PublicGroupDoc struct {
	Name        string   `json:"name"`
	Description string   `json:"description,omitempty"`
	Number      uint32   `json:"number"`
	Sources     []string `json:"sources"`
}

// Kind of the document.
func (PublicGroupDoc) Kind() Kind { return KindPublicGroup }

// Index makes the name unique in the zone.
func (d PublicGroupDoc) Index() Index {
	return Index{Name: d.Name, Unique: d.Name, State: "public"}
}

// ClassesWith lists the sets of groups that instances are in and that a group
// is one of.
func (tx *Tx) ClassesWith(group cloud.ID) ([][]cloud.ID, error) {
	owners, err := query(tx, func(scan func(...any) error) (owner string, err error) { return owner, scan(&owner) },
		`SELECT owner FROM allocation WHERE kind = $1 AND freed_at = 0 AND owner LIKE $2 ORDER BY number`,
		NumberClass, "%"+string(group)+"%")
	if err != nil {
		return nil, fmt.Errorf("classes with group %s: %w", group, err)
	}
	var sets [][]cloud.ID
	for _, owner := range owners {
		var set []cloud.ID
		for id := range strings.SplitSeq(owner, ",") {
			set = append(set, cloud.ID(id))
		}
		if slices.Contains(set, group) {
			sets = append(sets, set)
		}
	}
	return sets, nil
}
