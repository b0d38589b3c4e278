// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"strings"
	"sync"

	"github.com/cilium/ebpf/btf"
)

// Stage is what a twin of a program does in a step; include/trace.h says what its
// numbers mean.
type Stage = uplinkTraceStage

// The stages.
const (
	StagePort    = uplinkTraceStageTRACE_PORT
	StageOwner   = uplinkTraceStageTRACE_OWNER
	StagePrefix  = uplinkTraceStageTRACE_PREFIX
	StageAddress = uplinkTraceStageTRACE_ADDRESS
	StageStation = uplinkTraceStageTRACE_STATION
	StageFlow    = uplinkTraceStageTRACE_FLOW
	StagePolicy  = uplinkTraceStageTRACE_POLICY
	StageOpens   = uplinkTraceStageTRACE_OPENS
	StageService = uplinkTraceStageTRACE_SERVICE
	StageBackend = uplinkTraceStageTRACE_BACKEND
	StageWeigh   = uplinkTraceStageTRACE_WEIGH
	StageExit    = uplinkTraceStageTRACE_EXIT
	StageCopy    = uplinkTraceStageTRACE_COPY
)

// String is the enumerator's name in lower case, without its prefix: "policy".
func (s uplinkTraceStage) String() string {
	if name, ok := stageNames()[uint32(s)]; ok {
		return name
	}
	return fmt.Sprintf("stage_%d", uint32(s))
}

var stageNames = sync.OnceValue(func() map[uint32]string { return enumNames("trace_stage", "TRACE_") })

// enumNames reads an enum out of the object's own type information, so that no
// second list can differ from it.
func enumNames(enum, prefix string) map[uint32]string {
	names := map[uint32]string{}
	spec, err := loadUplink()
	if err != nil {
		return names
	}
	var found *btf.Enum
	if err := spec.Types.TypeByName(enum, &found); err != nil {
		return names
	}
	for _, v := range found.Values {
		names[uint32(v.Value)] = strings.ToLower(strings.TrimPrefix(v.Name, prefix))
	}
	return names
}

// OwnMaps are those that each object has of its own, and each load of it: what a
// program needs for one packet, and what a twin leaves behind.
var OwnMaps = []string{".rodata", "scratch", "captured", "too_bigs", "trace_steps"}
