// SPDX-License-Identifier: Apache-2.0

// Package agentv1 is the wire between the control plane and the agents,
// generated from agent.proto. Only cloud/wire and the packages that hold a
// stream or a socket see these types; start reading at agent.proto.
package agentv1

//go:generate ../../../scripts/protoc.sh agent.proto
