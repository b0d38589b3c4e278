// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"text/tabwriter"
)

// Status is what `cairn lab status` prints.
type Status struct {
	Name       string            `json:"name"`
	Router     string            `json:"router"`
	API        string            `json:"api,omitempty"`
	Ready      bool              `json:"ready"` // all daemons alive, all sessions established
	Namespaces []NamespaceStatus `json:"namespaces"`
	Daemons    []DaemonStatus    `json:"daemons"`
	Sessions   map[string]string `json:"sessions,omitempty"` // hypervisor → state
	Problems   []string          `json:"problems,omitempty"`
	Took       []Took            `json:"took,omitempty"`
}

// NamespaceStatus tells whether a namespace is there; those of instances are
// listed as they are found.
type NamespaceStatus struct {
	Name    string `json:"name"`
	Present bool   `json:"present"`
}

type DaemonStatus struct {
	Name  string `json:"name"`
	Alive bool   `json:"alive"`
	PID   int    `json:"pid,omitempty"`
	Log   string `json:"log"`
}

// Status looks at the lab as it is now.
func (l *Lab) Status() Status {
	s := Status{Name: l.Name(), Router: l.state.Router, Took: l.state.Took, Ready: true}
	if l.state.Listen != "" {
		s.API = l.API()
	}
	there := ownNamespaces(l.Name())
	for _, ns := range l.state.Namespaces {
		present := slices.Contains(there, ns)
		s.Namespaces = append(s.Namespaces, NamespaceStatus{ns, present})
		if !present {
			s.Problems = append(s.Problems, "namespace "+ns+" is gone")
		}
	}
	for _, ns := range there {
		if !slices.Contains(l.state.Namespaces, ns) {
			s.Namespaces = append(s.Namespaces, NamespaceStatus{ns, true})
		}
	}
	speakers := false
	for _, d := range l.order {
		pid := d.PID()
		s.Daemons = append(s.Daemons, DaemonStatus{Name: d.Name(), Alive: pid != 0, PID: pid, Log: d.LogPath()})
		if pid == 0 {
			s.Problems = append(s.Problems, d.Name()+" does not run")
		}
		speakers = speakers || d.Name() == "cairnd"
	}
	sessions, err := l.Sessions()
	if err != nil {
		s.Problems = append(s.Problems, "router: "+err.Error())
	}
	s.Sessions = sessions
	if speakers && err == nil {
		if err := l.SessionsEstablished(); err != nil {
			s.Problems = append(s.Problems, err.Error())
		}
	}
	s.Ready = len(s.Problems) == 0
	return s
}

func (s Status) print(w io.Writer, asJSON bool) error {
	if asJSON {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(s)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "lab %s\trouter %s\tapi %s\tready %t\n\n", s.Name, s.Router, orDash(s.API), s.Ready)
	fmt.Fprintln(t, "NAMESPACE\tPRESENT")
	for _, n := range s.Namespaces {
		fmt.Fprintf(t, "%s\t%t\n", n.Name, n.Present)
	}
	fmt.Fprintln(t, "\nDAEMON\tALIVE\tPID\tLOG")
	for _, d := range s.Daemons {
		fmt.Fprintf(t, "%s\t%t\t%d\t%s\n", d.Name, d.Alive, d.PID, d.Log)
	}
	fmt.Fprintln(t, "\nSESSION\tSTATE")
	for _, name := range slices.Sorted(maps.Keys(s.Sessions)) {
		fmt.Fprintf(t, "%s\t%s\n", name, s.Sessions[name])
	}
	if len(s.Problems) != 0 {
		fmt.Fprintln(t, "\nPROBLEM")
		for _, p := range s.Problems {
			fmt.Fprintln(t, p)
		}
	}
	return t.Flush()
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// Environment is what a client of the API needs, as lines for a shell.
func (l *Lab) Environment() string {
	c := l.Credentials()
	if c.Key == "" {
		return ""
	}
	return fmt.Sprintf("export EXOSCALE_API_ENDPOINT=%s\nexport EXOSCALE_API_KEY=%s\nexport EXOSCALE_API_SECRET=%s\nexport EXOSCALE_ZONE=%s\n",
		l.API(), c.Key, c.Secret, Zone)
}
