// SPDX-License-Identifier: Apache-2.0

package scenario

import "testing"

func tables(t *testing.T) map[string][]Step {
	t.Helper()
	all, err := Tables()
	if err != nil || len(all) == 0 {
		t.Fatal(err, len(all))
	}
	return all
}

func TestTheModelAnswersAsTheTablesSay(t *testing.T) {
	for file, steps := range tables(t) {
		h := NewModel()
		for _, s := range steps {
			switch {
			case s.Change != nil:
				Apply(h, *s.Change)
			case s.Send != nil:
				got := Judge(h, *s.Send, func() uint16 { return 40001 })
				if s.Want == nil {
					t.Errorf("%s:%d: nothing is wanted: %s", file, s.Line, s)
				} else if got.Reason != s.Want.Reason || s.Want.Rule != 0 && got.Rule != s.Want.Rule {
					t.Errorf("%s:%d: %s %d: %s", file, s.Line, got.Reason, got.Rule, s)
				}
			default:
				h.Now += s.Wait
			}
		}
	}
}

func TestATextIsReadAsItIsWritten(t *testing.T) {
	for file, steps := range tables(t) {
		text := Text(steps)
		again, err := Parse(text)
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		if Text(again) != text {
			t.Errorf("%s changes when it is read again", file)
		}
	}
}

func TestATextThatSaysNothingIsRefused(t *testing.T) {
	for _, line := range []string{
		"grops 5 1", "rule", "rule 5 of 1", "rule 5 of 1 in tcp 80 from 1.2.3.4/32", "rule 5 of 1 in tcp 80-90 from", "join x of 1",
		"join 1.2.3.4 of", "wait long", "vmx tcp 1.2.3.4 > 5.6.7.8", "uplink tcp", "vm5 tcp 1.2.3.4 > 5.6.7.8 =>", "source 1.2.3.4 of 1",
		"vm5 tcp 1.2.3.4 > 5.6.7.8 => a b c", "vm5 tcp 1.2.3.4 > 5.6.7.8 => a b",
	} {
		if _, err := Parse(line); err == nil {
			t.Errorf("%q was read", line)
		}
	}
}
