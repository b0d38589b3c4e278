// SPDX-License-Identifier: Apache-2.0

package compute

import "fmt"

// found is what there is of a machine.
type found struct {
	namespace bool
	command   string    // of the workload that was started last
	workload  process   // alive, or zero
	strays    []process // other workloads in its namespace: started, never written down
}

type verb string

const (
	makeNamespace verb = "make namespace"
	endProcess    verb = "end process"
	wireLinks     verb = "wire links"
	startWorkload verb = "start workload"
)

// step is one thing to do to a machine.
type step struct {
	verb    verb
	process process
}

func (s step) String() string {
	if s.verb == endProcess {
		return fmt.Sprintf("%s %d", s.verb, s.process.PID)
	}
	return string(s.verb)
}

// plan lists the steps that make the machine be as spec says. Links are always
// looked after, since anybody on the host can change them; a workload is started
// anew only if it has ended or is another one: new user data or a new name wait
// for the next start, as with any machine.
func plan(spec Spec, have found) []step {
	var steps []step
	keep := spec.Running && have.namespace && have.command == spec.Command && have.workload.PID != 0
	if have.workload.PID != 0 && !keep {
		steps = append(steps, step{verb: endProcess, process: have.workload})
	}
	for _, p := range have.strays {
		steps = append(steps, step{verb: endProcess, process: p})
	}
	if !have.namespace {
		steps = append(steps, step{verb: makeNamespace})
	}
	steps = append(steps, step{verb: wireLinks})
	if spec.Running && !keep {
		steps = append(steps, step{verb: startWorkload})
	}
	return steps
}
