// SPDX-License-Identifier: Apache-2.0

package arch

import (
	"io/fs"
	"os"
	"strings"
	"testing"
	"testing/fstest"
)

func TestTheTreeKeepsItsLaws(t *testing.T) {
	tree, err := Read(os.DirFS("../.."))
	if err != nil {
		t.Fatal(err)
	}
	if len(tree.Go) < 20 {
		t.Fatalf("read %d Go files: this is not the tree", len(tree.Go))
	}
	for _, v := range Check(tree) {
		t.Error(v)
	}
}

const spdxLine = "// SPDX-License-Identifier: Apache-2.0\n"

// goFile makes a source file that breaks no law but the one a test wants.
func goFile(pkg, rest string) *fstest.MapFile {
	return &fstest.MapFile{Data: []byte(spdxLine + "\n// Package " + pkg + " owns something worth a sentence of its own.\npackage " + pkg + "\n" + rest)}
}

// TestAPlantedViolationOfEachLawIsFound is the negative control of every law.
func TestAPlantedViolationOfEachLawIsFound(t *testing.T) {
	tests := []struct {
		law, want string
		plant     fstest.MapFS
	}{
		{"imports", "may not import controlplane/store", fstest.MapFS{"dataplane/nlb/a.go": goFile("nlb", "import _ \"cairn/controlplane/store\"\n")}},
		{"imports", "may not import dataplane/nlb", fstest.MapFS{"controlplane/dist/a.go": goFile("dist", "import _ \"cairn/dataplane/nlb\"\n")}},
		{"imports", "may not import lb/bgp", fstest.MapFS{"dataplane/announce/a.go": goFile("announce", "import _ \"cairn/lb/bgp\"\n")}},
		{"imports", "may not import cloud/cli", fstest.MapFS{"controlplane/api/a.go": goFile("api", "import _ \"cairn/cloud/cli\"\n")}},
		{"imports", "no row", fstest.MapFS{"attic/a.go": goFile("attic", "")}},
		{"dependencies", "may not import github.com/osrg/gobgp/v4", fstest.MapFS{"dataplane/nlb/a.go": goFile("nlb", "import _ \"github.com/osrg/gobgp/v4/api\"\n")}},
		{"dependencies", "is on no line", fstest.MapFS{"cloud/cli/a.go": goFile("cli", "import _ \"example.org/left-pad\"\n")}},
		{"standalone", "imports github.com/google/uuid", fstest.MapFS{"cloud/a.go": goFile("cloud", "import _ \"github.com/google/uuid\"\n")}},
		{"packages", "0 package comments", fstest.MapFS{"lb/slots/a.go": {Data: []byte(spdxLine + "\npackage slots\n")}}},
		{"packages", "2 package comments", fstest.MapFS{"lb/slots/a.go": goFile("slots", ""), "lb/slots/b.go": goFile("slots", "")}},
		{"names", "says nothing", fstest.MapFS{"cloud/util/a.go": goFile("util", "")}},
		{"spdx", "no SPDX line", fstest.MapFS{"bpf/a.bpf.c": {Data: []byte("int x;\n")}}},
		{"bpf", "conditional", fstest.MapFS{"bpf/a.bpf.c": {Data: []byte("#ifdef DEBUG\n")}}},
		{"bpf", "data_end outside", fstest.MapFS{"bpf/a.bpf.c": {Data: []byte("if (p > ctx->data_end)\n")}}},
		{"bpf", "without a comment", fstest.MapFS{"bpf/a.bpf.c": {Data: []byte("\nstruct {\n\t__uint(type, 1);\n} vips SEC(\".maps\");\n")}}},
		{"api-paths", "spells the API's path", fstest.MapFS{"cloud/cli/a.go": goFile("cli", "var p = \"/v2/load-balancer/\"\n")}},
		{"unfinished", "FIXME", fstest.MapFS{"cloud/cli/a.go": goFile("cli", "// FIXME later\n")}},
		{"document", "cloud/attic does not exist", fstest.MapFS{"ARCHITECTURE.md": {Data: []byte("see `cloud/attic`\n")}}},
		{"document", "does not define Gone", fstest.MapFS{"ARCHITECTURE.md": {Data: []byte("see `cloud/cli:Gone`\n")}, "cloud/cli/a.go": goFile("cli", "")}},
		{"document", "does not name the stage", fstest.MapFS{"ARCHITECTURE.md": {Data: []byte("nothing\n")}}},
		{"document", "lines are more than", fstest.MapFS{"ARCHITECTURE.md": {Data: []byte(strings.Repeat("\n", documentLines+1))}}},
	}
	list, err := fs.ReadFile(os.DirFS("."), "dependencies.txt")
	if err != nil {
		t.Fatal(err)
	}
	planted := map[string]bool{}
	for _, test := range tests {
		planted[test.law] = true
		test.plant["test/arch/dependencies.txt"] = &fstest.MapFile{Data: list}
		tree, err := Read(test.plant)
		if err != nil {
			t.Fatal(err)
		}
		found := false
		for _, v := range Laws[test.law](tree) {
			found = found || strings.Contains(v.Why, test.want)
		}
		if !found {
			t.Errorf("%s: %q was planted and not found: %v", test.law, test.want, Laws[test.law](tree))
		}
	}
	for law := range Laws {
		if !planted[law] {
			t.Errorf("law %s has no negative control", law)
		}
	}
}

func TestAListedDependencyNeedsAReason(t *testing.T) {
	if _, bad := allowList("example.org/m | cloud |\n"); len(bad) != 1 {
		t.Error("a line without a reason was accepted")
	}
}
