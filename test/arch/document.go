// SPDX-License-Identifier: Apache-2.0

package arch

import (
	"fmt"
	"go/ast"
	"io/fs"
	"path"
	"regexp"
	"strings"
)

const (
	documentFile  = "ARCHITECTURE.md"
	documentLines = 120
)

// stages of the two ways that ARCHITECTURE.md leads along: a packet's and a
// change's. Each must be named there.
var stages = []string{
	"bpf/uplink.bpf.c:uplink", "bpf/uplink.bpf.c:uplink_in", "bpf/port.bpf.c:vm_in", "bpf/port.bpf.c:vm_guard",
	"cloud/api", "controlplane/api", "controlplane/operation", "controlplane/fsm", "controlplane/store",
	"controlplane/replica", "controlplane/compile", "controlplane/dist", "controlplane/converge",
	"dataplane/sync", "dataplane/table", "dataplane/nlb", "dataplane/port", "lb/slots", "dataplane/speaker",
}

var quoted = regexp.MustCompile("`([^`\n]+)`")

// reference is a folder or file of the tree, or path:symbol.
var reference = regexp.MustCompile(`^(cloud|proto|bpf|lb|dns|dataplane|controlplane|test|cmd|scripts)(/[A-Za-z0-9_.-]+)*/?(:[A-Za-z_][A-Za-z0-9_.]*)?$`)

// document: every path and symbol that ARCHITECTURE.md names exists, it names
// each stage, and it stays short.
func document(t *Tree) []Violation {
	text := t.text(documentFile)
	var out []Violation
	fail := func(format string, args ...any) {
		out = append(out, Violation{"document", documentFile, fmt.Sprintf(format, args...)})
	}
	if n := strings.Count(text, "\n"); n > documentLines {
		fail("%d lines are more than %d", n, documentLines)
	}
	named := map[string]bool{}
	for _, m := range quoted.FindAllStringSubmatch(text, -1) {
		ref := strings.TrimSuffix(m[1], "/")
		if !reference.MatchString(m[1]) {
			continue
		}
		place, symbol, _ := strings.Cut(ref, ":")
		named[ref], named[place] = true, true
		info, err := fs.Stat(t.FS, place)
		switch {
		case err != nil:
			fail("%s does not exist", place)
		case symbol != "" && !t.defines(place, info.IsDir(), symbol):
			fail("%s does not define %s", place, symbol)
		}
	}
	for _, stage := range stages {
		if !named[stage] {
			fail("does not name the stage %s", stage)
		}
	}
	return out
}

// defines reports whether a Go package or file, or a C file, defines a symbol.
func (t *Tree) defines(place string, folder bool, symbol string) bool {
	if !folder && !strings.HasSuffix(place, ".go") {
		return regexp.MustCompile(`(?m)\b` + regexp.QuoteMeta(symbol) + `\s*\(`).MatchString(t.text(place))
	}
	for p, f := range t.Go {
		if p != place && !(folder && path.Dir(p) == place) {
			continue
		}
		if declares(f, symbol) {
			return true
		}
	}
	return false
}

func declares(f *ast.File, symbol string) bool {
	typ, method, isMethod := strings.Cut(symbol, ".")
	for _, decl := range f.Decls {
		switch d := decl.(type) {
		case *ast.FuncDecl:
			if isMethod && d.Recv != nil && d.Name.Name == method && receiver(d) == typ {
				return true
			}
			if !isMethod && d.Recv == nil && d.Name.Name == symbol {
				return true
			}
		case *ast.GenDecl:
			for _, spec := range d.Specs {
				if ts, ok := spec.(*ast.TypeSpec); ok && ts.Name.Name == symbol {
					return true
				}
				if vs, ok := spec.(*ast.ValueSpec); ok && valueNamed(vs, symbol) {
					return true
				}
			}
		}
	}
	return false
}

func valueNamed(vs *ast.ValueSpec, symbol string) bool {
	for _, name := range vs.Names {
		if name.Name == symbol {
			return true
		}
	}
	return false
}

func receiver(d *ast.FuncDecl) string {
	expr := d.Recv.List[0].Type
	if star, ok := expr.(*ast.StarExpr); ok {
		expr = star.X
	}
	if index, ok := expr.(*ast.IndexExpr); ok {
		expr = index.X
	}
	if id, ok := expr.(*ast.Ident); ok {
		return id.Name
	}
	return ""
}
