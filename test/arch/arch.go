// SPDX-License-Identifier: Apache-2.0

// Package arch owns the laws of the tree: who may import whom, which outside
// modules are allowed, and what every source file must carry. A law is a pure
// function over a file tree, so that its test can plant a violation. Start at
// Laws.
package arch

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// Module is the path that the tree's own imports start with.
const Module = "cairn"

// Violation is one breach of a law.
type Violation struct {
	Law, File, Why string
}

func (v Violation) String() string { return fmt.Sprintf("%s: %s: %s", v.Law, v.File, v.Why) }

// Tree is the source as the laws see it.
type Tree struct {
	FS    fs.FS
	Go    map[string]*ast.File // by path
	Files []string             // all paths, sorted
}

// Law looks at a tree and lists what breaks it.
type Law func(*Tree) []Violation

// Laws are all laws of the tree, by name.
var Laws = map[string]Law{
	"imports":      imports,
	"dependencies": dependencies,
	"standalone":   standalone,
	"packages":     packages,
	"names":        names,
	"spdx":         spdx,
	"bpf":          bpfSource,
	"api-paths":    apiPaths,
	"unfinished":   unfinished,
	"document":     document,
}

// Read parses the tree below fsys. Hidden folders and build outputs are left
// out.
func Read(fsys fs.FS) (*Tree, error) {
	t := &Tree{FS: fsys, Go: map[string]*ast.File{}}
	fset := token.NewFileSet()
	err := fs.WalkDir(fsys, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if p != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "bin" || d.Name() == "testdata") {
				return fs.SkipDir
			}
			return nil
		}
		t.Files = append(t.Files, p)
		if !strings.HasSuffix(p, ".go") {
			return nil
		}
		src, err := fs.ReadFile(fsys, p)
		if err != nil {
			return err
		}
		f, err := parser.ParseFile(fset, p, src, parser.ParseComments)
		if err != nil {
			return fmt.Errorf("parse %s: %w", p, err)
		}
		t.Go[p] = f
		return nil
	})
	slices.Sort(t.Files)
	return t, err
}

// Check runs all laws.
func Check(t *Tree) []Violation {
	var all []Violation
	for _, law := range Laws {
		all = append(all, law(t)...)
	}
	slices.SortFunc(all, func(a, b Violation) int { return strings.Compare(a.String(), b.String()) })
	return all
}

func (t *Tree) text(p string) string {
	b, err := fs.ReadFile(t.FS, p)
	if err != nil {
		return ""
	}
	return string(b)
}

func isTest(p string) bool { return strings.HasSuffix(p, "_test.go") }

func generated(p string) bool {
	return strings.HasSuffix(p, ".pb.go") || strings.Contains(path.Base(p), "_bpfel.")
}

// below reports whether folder is root or lies in it.
func below(folder, root string) bool {
	return folder == root || strings.HasPrefix(folder, root+"/")
}

func importsOf(f *ast.File) []string {
	var out []string
	for _, spec := range f.Imports {
		out = append(out, strings.Trim(spec.Path.Value, `"`))
	}
	return out
}
