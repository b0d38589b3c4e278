// SPDX-License-Identifier: Apache-2.0

package metadata

import (
	"net/netip"
	"slices"
	"strings"

	"cairn/cloud/wire"
)

const (
	kindText  = "text/plain; charset=utf-8"
	kindBytes = "application/octet-stream"
)

// versions of the tree: they are the same.
var versions = []string{"1.0", "latest"}

// leaf is one document of meta-data.
type leaf struct{ name, value string }

// leaves are what an instance is told about itself, in the order of names. What
// it does not have is left out.
func leaves(i wire.Instance, p wire.Port) []leaf {
	local, public := "", ""
	if i.PublicAddress.Is4() {
		public = i.PublicAddress.String()
		local = public
	} else if at := slices.IndexFunc(p.Addresses, netip.Addr.Is4); at >= 0 {
		local = p.Addresses[at].String()
	}
	all := []leaf{
		{"availability-zone", i.Zone},
		{"cloud-identifier", cloudIdentifier(i.Zone)},
		{"instance-id", i.ID},
		{"local-hostname", i.Name},
		{"local-ipv4", local},
		{"public-hostname", i.Name},
		{"public-ipv4", public},
		{"public-keys", strings.Join(i.SSHKeys, "\n")},
		{"service-offering", i.Type},
		{"vm-id", i.ID},
	}
	return slices.DeleteFunc(all, func(l leaf) bool { return l.value == "" })
}

func cloudIdentifier(zone string) string {
	if zone == "" {
		return "cairn"
	}
	return "cairn-" + zone
}

// find the document of a path: an index, a leaf, or the user-data, which is
// empty when there is none.
func find(i wire.Instance, p wire.Port, path string) (body []byte, kind string, ok bool) {
	way := steps(path)
	if len(way) == 0 {
		return index(versions...), kindText, true
	}
	if !slices.Contains(versions, way[0]) {
		return nil, "", false
	}
	switch way = way[1:]; {
	case len(way) == 0:
		return index("meta-data/", "user-data"), kindText, true
	case len(way) == 1 && way[0] == "user-data":
		return i.UserData, kindBytes, true
	case way[0] != "meta-data" || len(way) > 2:
		return nil, "", false
	}
	all := leaves(i, p)
	if len(way) == 1 {
		names := make([]string, len(all))
		for n, l := range all {
			names[n] = l.name
		}
		return index(names...), kindText, true
	}
	for _, l := range all {
		if l.name == way[1] {
			return []byte(l.value), kindText, true
		}
	}
	return nil, "", false
}

// index lists names one a line, without a last newline: clients split by lines
// and would ask for the empty name.
func index(names ...string) []byte { return []byte(strings.Join(names, "\n")) }
