// SPDX-License-Identifier: Apache-2.0

package arch

import (
	"fmt"
	"go/ast"
	"go/token"
	"path"
	"regexp"
	"strings"
)

// packages: one package comment per folder.
func packages(t *Tree) []Violation {
	comments, folders := map[string]int{}, map[string]string{}
	for p, f := range t.Go {
		folder := path.Dir(p)
		if isTest(p) || folder == "." {
			continue
		}
		folders[folder] = p
		if f.Doc != nil && strings.Contains(f.Doc.Text(), "\n") || f.Doc != nil && len(f.Doc.Text()) > 40 {
			comments[folder]++
		}
	}
	var out []Violation
	for folder, p := range folders {
		if comments[folder] != 1 {
			out = append(out, Violation{"packages", p, fmt.Sprintf("%s has %d package comments", folder, comments[folder])})
		}
	}
	return out
}

var vague = map[string]bool{"util": true, "utils": true, "common": true, "types": true, "manager": true, "helpers": true, "misc": true}

// names: a package is named after what it owns.
func names(t *Tree) []Violation {
	var out []Violation
	for p, f := range t.Go {
		if vague[strings.TrimSuffix(f.Name.Name, "_test")] {
			out = append(out, Violation{"names", p, "package " + f.Name.Name + " says nothing"})
		}
	}
	return out
}

// spdx: every source file names the licence.
func spdx(t *Tree) []Violation {
	var out []Violation
	for _, p := range t.Files {
		if !hasSuffix(p, ".go", ".c", ".h", ".proto", ".sh") || generated(p) {
			continue
		}
		head := t.text(p)
		if len(head) > 400 {
			head = head[:400]
		}
		if !strings.Contains(head, "SPDX-License-Identifier:") {
			out = append(out, Violation{"spdx", p, "no SPDX line"})
		}
	}
	return out
}

func hasSuffix(p string, suffixes ...string) bool {
	for _, s := range suffixes {
		if strings.HasSuffix(p, s) {
			return true
		}
	}
	return false
}

var conditional = regexp.MustCompile(`^\s*#\s*(if|ifdef|ifndef|elif)\b`)

// bpfSource: no conditionals, data_end only in the cursor, a comment above each
// map.
func bpfSource(t *Tree) []Violation {
	var out []Violation
	for _, p := range t.Files {
		if !below(p, "bpf") || !hasSuffix(p, ".c", ".h") {
			continue
		}
		lines := strings.Split(t.text(p), "\n")
		for i, line := range lines {
			at := fmt.Sprintf("line %d: ", i+1)
			if conditional.MatchString(line) {
				out = append(out, Violation{"bpf", p, at + "preprocessor conditional"})
			}
			if strings.Contains(line, "data_end") && path.Base(p) != "packet.h" {
				out = append(out, Violation{"bpf", p, at + "data_end outside packet.h"})
			}
			if strings.Contains(line, `SEC(".maps")`) && !commented(lines, i) {
				out = append(out, Violation{"bpf", p, at + "map without a comment above it"})
			}
		}
	}
	return out
}

// commented: the declaration that ends at line i starts below a comment.
func commented(lines []string, i int) bool {
	for ; i >= 0; i-- {
		if strings.HasPrefix(lines[i], "struct {") || strings.HasPrefix(lines[i], "struct ") && strings.HasSuffix(lines[i], "{") {
			break
		}
	}
	if i <= 0 {
		return false
	}
	above := strings.TrimSpace(lines[i-1])
	return strings.HasSuffix(above, "*/") || strings.HasPrefix(above, "//")
}

var apiPath = regexp.MustCompile(`^/(v2/)?(zone|operation|ssh-key|instance|instance-type|instance-pool|template|anti-affinity-group|security-group|load-balancer)(/|$|\{)`)

// apiPaths: the public API's paths are data of cloud/api; nobody else spells
// one.
func apiPaths(t *Tree) []Violation {
	var out []Violation
	for p, f := range t.Go {
		if below(path.Dir(p), "cloud/api") || below(p, "test") || isTest(p) {
			continue
		}
		ast.Inspect(f, func(n ast.Node) bool {
			lit, ok := n.(*ast.BasicLit)
			if ok && lit.Kind == token.STRING && apiPath.MatchString(strings.Trim(lit.Value, "\"`")) {
				out = append(out, Violation{"api-paths", p, "spells the API's path " + lit.Value})
			}
			return true
		})
	}
	return out
}

var unfinishedWord = regexp.MustCompile(`\b(TODO|FIXME|XXX)\b`)

// unfinished: nothing is left half done in the tree.
func unfinished(t *Tree) []Violation {
	var out []Violation
	for _, p := range t.Files {
		if !hasSuffix(p, ".go", ".c", ".h", ".proto", ".sh", "Makefile") || generated(p) || below(p, "test/arch") {
			continue
		}
		if word := unfinishedWord.FindString(t.text(p)); word != "" {
			out = append(out, Violation{"unfinished", p, word})
		}
	}
	return out
}
