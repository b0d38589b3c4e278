// SPDX-License-Identifier: Apache-2.0

package oracle

import (
	"strings"
	"testing"

	"cairn/test/model/scenario"
)

func TestTableSaysWhatTheRulesSay(t *testing.T) {
	steps, err := scenario.Parse(`
groups 5 1
rule 1 of 1 in tcp 80-90 from 192.0.2.0/24
rule 2 of 1 in icmp 8/-1 group 2
join 192.0.2.9 of 2
source 203.0.113.0/24 of 2
`)
	if err != nil {
		t.Fatal(err)
	}
	h := scenario.NewModel()
	for _, s := range steps {
		scenario.Apply(h, *s.Change)
	}
	table := Table(h, h.Ports[5])
	for _, want := range []string{
		"iifname network ip saddr 192.0.2.0/24 tcp dport 80-90 accept",
		"iifname network ip saddr 192.0.2.9/32 meta l4proto 1 icmp type 8 accept",
		"iifname network ip saddr 203.0.113.0/24 meta l4proto 1 icmp type 8 accept",
		"iifname instance accept",
	} {
		if !strings.Contains(table, want) {
			t.Errorf("no %q in\n%s", want, table)
		}
	}
}
