// SPDX-License-Identifier: Apache-2.0

package arch

import (
	"fmt"
	"path"
	"strings"
)

// row of the table of folders: what a package below the folder may import from
// this module. The longest folder that fits decides. A trailing slash means
// "everything below", no slash the package alone.
type row struct {
	folder string
	may    []string
}

var rows = []row{
	{"cloud", nil},
	{"cloud/api", []string{"cloud", "cloud/api/"}},
	{"cloud/join", []string{"cloud"}},
	{"proto", nil},
	{"bpf", []string{"bpf/"}},
	{"cloud/wire", []string{"cloud", "proto/"}},
	{"cloud/firewall", []string{"cloud/wire"}},
	{"lb/slots", []string{"cloud"}},
	{"lb/health", []string{"cloud"}},
	{"lb/announce", []string{"cloud"}},
	{"lb/bgp", []string{"cloud", "lb/announce"}},
	{"cloud/place", []string{"cloud"}},
	{"cloud/meter", []string{"cloud"}},
	{"cloud/compute", []string{"cloud"}},
	{"cloud/client", []string{"cloud", "cloud/api/"}},
	{"cloud/cli", []string{"cloud", "cloud/api/", "cloud/client"}},
	{"dataplane", []string{
		"cloud", "cloud/firewall", "cloud/wire", "cloud/join", "proto/", "bpf/", "lb/slots", "lb/health", "lb/announce",
		"cloud/compute", "dataplane/",
	}},
	{"dataplane/speaker", []string{"cloud", "cloud/wire", "proto/", "bpf/", "lb/announce", "lb/bgp", "dataplane/"}},
	{"controlplane/fsm", nil},
	{"controlplane/program", nil},
	{"controlplane", []string{
		"cloud", "cloud/api/", "cloud/firewall", "cloud/join", "cloud/meter", "cloud/place", "cloud/wire", "proto/", "lb/slots", "lb/health", "lb/announce", "controlplane/",
	}},
	{"test/lab", []string{"cloud", "cloud/api/", "cloud/client", "test/lab/"}},
	{"cmd", []string{
		"cloud/", "proto/", "bpf/", "lb/", "dataplane/", "controlplane/", "test/lab/",
	}},
	{"test", []string{"cloud/", "proto/", "bpf/", "lb/", "dataplane/", "controlplane/", "test/", "cmd/"}},
}

func rowOf(folder string) (row, bool) {
	var best row
	found := false
	for _, r := range rows {
		if r.folder == "cloud" && folder != "cloud" {
			continue // the root package's row speaks of no folder below it
		}
		if below(folder, r.folder) && len(r.folder) >= len(best.folder) {
			best, found = r, true
		}
	}
	return best, found
}

func (r row) allows(target string) bool {
	for _, may := range r.may {
		if root, ok := strings.CutSuffix(may, "/"); ok && below(target, root) {
			return true
		}
		if target == may {
			return true
		}
	}
	return below(target, r.folder) && r.folder != "cmd" && r.folder != "cloud"
}

// imports: the two planes never import each other, and each folder only what
// its row of the table names. Tests may use test support beside that.
func imports(t *Tree) []Violation {
	var out []Violation
	for p, f := range t.Go {
		folder := path.Dir(p)
		if folder == "." {
			continue
		}
		r, ok := rowOf(folder)
		if !ok {
			out = append(out, Violation{"imports", p, "folder is in no row of the table"})
			continue
		}
		for _, imp := range importsOf(f) {
			target, own := strings.CutPrefix(imp, Module+"/")
			if !own || r.allows(target) || (isTest(p) && (target == folder || target == "bpf/packet" || below(target, "test/lab"))) {
				continue
			}
			out = append(out, Violation{"imports", p, fmt.Sprintf("%s may not import %s", folder, target)})
		}
	}
	return out
}

// standalone: packages that import the standard library only, so that they can
// be taken out of the tree.
func standalone(t *Tree) []Violation {
	var out []Violation
	for p, f := range t.Go {
		folder := path.Dir(p)
		if isTest(p) || (folder != "cloud" && folder != "controlplane/fsm" && folder != "controlplane/program" && folder != "cloud/join") {
			continue
		}
		for _, imp := range importsOf(f) {
			if !standard(imp) && imp != Module+"/cloud" {
				out = append(out, Violation{"standalone", p, "imports " + imp})
			}
		}
	}
	return out
}

func standard(imp string) bool {
	first, _, _ := strings.Cut(imp, "/")
	return !strings.Contains(first, ".") && first != Module
}

// dependencies: every outside module is on the list, with who may import it.
func dependencies(t *Tree) []Violation {
	allowed, out := allowList(t.text("test/arch/dependencies.txt"))
	for p, f := range t.Go {
		folder := path.Dir(p)
		if folder == "." {
			continue
		}
		for _, imp := range importsOf(f) {
			if standard(imp) || imp == Module || strings.HasPrefix(imp, Module+"/") {
				continue
			}
			if why := allowed.refuses(imp, folder); why != "" {
				out = append(out, Violation{"dependencies", p, why})
			}
		}
	}
	return out
}

type dependency struct {
	module    string
	importers []string
}

type allowance []dependency

func allowList(text string) (allowance, []Violation) {
	var list allowance
	var out []Violation
	for i, line := range strings.Split(text, "\n") {
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		cols := strings.Split(line, "|")
		if len(cols) != 3 || strings.TrimSpace(cols[2]) == "" {
			out = append(out, Violation{"dependencies", "test/arch/dependencies.txt", fmt.Sprintf("line %d: want module | importers | reason", i+1)})
			continue
		}
		list = append(list, dependency{strings.TrimSpace(cols[0]), strings.Fields(cols[1])})
	}
	return list, out
}

func (a allowance) refuses(imp, folder string) string {
	for _, d := range a {
		if !below(imp, d.module) {
			continue
		}
		for _, root := range d.importers {
			if below(folder, root) {
				return ""
			}
		}
		return fmt.Sprintf("%s may not import %s", folder, d.module)
	}
	return imp + " is on no line of dependencies.txt"
}
