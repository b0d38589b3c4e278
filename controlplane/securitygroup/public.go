// SPDX-License-Identifier: Apache-2.0

package securitygroup

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"

	"cairn/cloud"
	"cairn/controlplane/store"
)

const public = "public"

// BuiltIn is the public group of every zone. What it stands for comes through
// the host's own door and needs no rule: rules that name it are kept, and
// change nothing for ingress.
var BuiltIn = cloud.SecurityGroup{
	Name: "public-nlb-healthcheck-sources", Visibility: public,
	Description:     "where the health checks of load balancers come from",
	ExternalSources: []string{"169.254.169.253/32", "fe80::a9fe:a9fd/128"},
}

// Public lists the groups that rules may name without having made them.
func Public(tx *store.Tx) ([]cloud.SecurityGroup, error) {
	docs, err := store.List[store.PublicGroupDoc](tx, "")
	all := []cloud.SecurityGroup{BuiltIn}
	for _, d := range docs {
		all = append(all, cloud.SecurityGroup{
			Name: d.Body.Name, Visibility: public, Description: d.Body.Description, ExternalSources: d.Body.Sources,
		})
	}
	return all, err
}

var publicName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._-]{0,254}$`)

// SetPublic gives the zone a public group, or other networks to one that it has.
func SetPublic(ctx context.Context, s *store.Store, name, description string, sources []string) error {
	if !publicName.MatchString(name) {
		return fmt.Errorf("public group %q: expected letters, digits, dots, dashes and underscores", name)
	}
	if name == BuiltIn.Name {
		return fmt.Errorf("public group %q is built in", name)
	}
	if len(sources) == 0 || len(sources) > MaxSources {
		return fmt.Errorf("public group %q: expected 1 to %d networks", name, MaxSources)
	}
	for _, source := range sources {
		p, err := netip.ParsePrefix(source)
		if err != nil {
			return fmt.Errorf("public group %q: %w", name, err)
		}
		if p.Addr().Is4In6() {
			return fmt.Errorf("public group %q: %s: expected an IPv4 network in its own notation", name, source)
		}
	}
	_, err := s.Write(ctx, func(tx *store.Tx) error {
		d, err := store.Named[store.PublicGroupDoc](tx, "", name)
		if errors.Is(err, store.ErrNotFound) {
			d = store.Doc[store.PublicGroupDoc]{ID: cloud.NewID()}
			d.Body.Name = name
			d.Body.Number, err = tx.Allocate(store.NumberGroup, string(d.ID))
		}
		if err != nil {
			return err
		}
		if slices.Equal(d.Body.Sources, sources) && d.Body.Description == description {
			return nil
		}
		d.Generation++
		d.Body.Description, d.Body.Sources = description, sources
		return store.Put(tx, "", d)
	})
	return err
}

// RemovePublic takes a public group away. Rules that name it stay, and admit
// nobody.
func RemovePublic(ctx context.Context, s *store.Store, name string) error {
	_, err := s.Write(ctx, func(tx *store.Tx) error {
		d, err := store.Named[store.PublicGroupDoc](tx, "", name)
		if err != nil {
			return err
		}
		return errors.Join(tx.Delete("", d.Ref()), tx.Free(store.NumberGroup, string(d.ID)))
	})
	return err
}
