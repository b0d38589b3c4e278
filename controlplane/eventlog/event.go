// SPDX-License-Identifier: Apache-2.0

package eventlog

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"strconv"
	"time"

	"cairn/cloud"
	"cairn/cloud/meter"
)

// Kind of an event.
type Kind string

// The kinds.
const (
	FlowOpened Kind = "flow.opened"
	FlowClosed Kind = "flow.closed"
	FlowDenied Kind = "flow.denied"
	Usage      Kind = "usage"
	Lost       Kind = "lost"
)

// Event is one entry of the log. ID is set where an event may be told twice: both
// times it is the same. Exactly one of Flow, Usage and Loss is there, by kind.
type Event struct {
	Offset   uint64       `json:"-"` // place in the log
	ID       string       `json:"id,omitempty"`
	Time     time.Time    `json:"time"`
	Kind     Kind         `json:"kind"`
	Zone     string       `json:"zone"`
	Host     string       `json:"host,omitempty"`
	Org      cloud.ID     `json:"organization,omitempty"`
	Instance cloud.ID     `json:"instance,omitempty"`
	Port     uint32       `json:"port,omitempty"`
	Flow     *cloud.Flow  `json:"flow,omitempty"`
	Usage    *meter.Usage `json:"usage,omitempty"`
	Loss     *Loss        `json:"loss,omitempty"`
}

// Loss is how many events of a host are missing since the last such event: what
// its agent had no room for, and what the control plane did not take.
type Loss struct {
	Agent        uint64 `json:"agent"`
	ControlPlane uint64 `json:"control-plane"`
}

// maxLine is the longest line that is written, or read.
const maxLine = 64 << 10

// nobody stands in a line for no instance.
const nobody = "-"

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var errLine = errors.New("damaged line")

// appendLine writes an event as a line: checksum of the rest, offset, instance,
// and the event as JSON, which has no line break in it.
func appendLine(to []byte, e *Event) ([]byte, error) {
	text, err := json.Marshal(e)
	if err != nil {
		return to, fmt.Errorf("encode event: %w", err)
	}
	begin := len(to)
	to = append(to, "00000000 "...)
	to = strconv.AppendUint(to, e.Offset, 10)
	to = append(to, ' ')
	if e.Instance == "" {
		to = append(to, nobody...)
	}
	to = append(to, e.Instance...)
	to = append(to, ' ')
	to = append(to, text...)
	if len(to)-begin >= maxLine {
		return to[:begin], fmt.Errorf("encode event: %d bytes are more than %d", len(to)-begin, maxLine)
	}
	sum := crc32.Checksum(to[begin+9:], castagnoli)
	hex.Encode(to[begin:], []byte{byte(sum >> 24), byte(sum >> 16), byte(sum >> 8), byte(sum)})
	return append(to, '\n'), nil
}

// line is a line whose checksum is right. It lives as long as what it was cut from.
type line struct {
	offset   uint64
	instance []byte
	text     []byte
}

// cutLine reads a line, without its line break.
func cutLine(b []byte) (line, error) {
	sum, rest, ok := bytes.Cut(b, []byte(" "))
	var want [4]byte
	if !ok || len(sum) != 8 {
		return line{}, errLine
	}
	if _, err := hex.Decode(want[:], sum); err != nil {
		return line{}, errLine
	}
	got := crc32.Checksum(rest, castagnoli)
	if want != [4]byte{byte(got >> 24), byte(got >> 16), byte(got >> 8), byte(got)} {
		return line{}, errLine
	}
	number, rest, _ := bytes.Cut(rest, []byte(" "))
	instance, text, ok := bytes.Cut(rest, []byte(" "))
	offset, err := strconv.ParseUint(string(number), 10, 64)
	if !ok || err != nil {
		return line{}, errLine
	}
	return line{offset, instance, text}, nil
}

func (l line) event() (Event, error) {
	var e Event
	if err := json.Unmarshal(l.text, &e); err != nil {
		return e, errLine
	}
	e.Offset = l.offset
	return e, nil
}
