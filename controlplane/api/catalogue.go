// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"

	"cairn/cloud"
	"cairn/cloud/api"
)

// Catalogue returns the handlers of what is the same for everybody and never
// changes: the zone, the sizes and the templates.
func Catalogue(zone, publicURL string) Handlers {
	here := []string{zone}
	return Handlers{
		"list-zones": func(context.Context, Call) (any, error) {
			return cloud.ZoneList{Zones: []cloud.Zone{{Name: zone, APIEndpoint: api.Endpoint(publicURL)}}}, nil
		},
		"list-instance-types": func(context.Context, Call) (any, error) {
			var l cloud.InstanceTypeList
			for _, t := range cloud.InstanceTypes {
				t.Zones = here
				l.InstanceTypes = append(l.InstanceTypes, t)
			}
			return l, nil
		},
		"get-instance-type": func(_ context.Context, c Call) (any, error) {
			t, ok := cloud.FindInstanceType(c.ID("id"))
			if !ok {
				return nil, cloud.Missing("instance-type", c.ID("id"))
			}
			t.Zones = here
			return t, nil
		},
		"list-templates": func(_ context.Context, c Call) (any, error) {
			visibility, family := c.Query.Get("visibility"), c.Query.Get("family")
			var l cloud.TemplateList
			for _, i := range cloud.Images {
				if visibility != "" && visibility != i.Visibility || family != "" && family != i.Family {
					continue
				}
				i.Zones = here
				l.Templates = append(l.Templates, i.Template)
			}
			return l, nil
		},
		"get-template": func(_ context.Context, c Call) (any, error) {
			i, ok := cloud.FindImage(c.ID("id"))
			if !ok {
				return nil, cloud.Missing("template", c.ID("id"))
			}
			i.Zones = here
			return i.Template, nil
		},
	}
}
