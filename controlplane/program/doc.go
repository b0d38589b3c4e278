// SPDX-License-Identifier: Apache-2.0

// Package program runs workflows that are data: a tree of leaves in sequence,
// in parallel, guarded by rescue and finally, or waiting for an event. It owns
// the tree, the pure reducer that says what to do next, and the worker that
// does it over any store that implements Tasks. It never knows what a leaf
// means, never touches a store but through that interface, and imports the
// standard library only, so that it can be taken out and used elsewhere.
//
// Start at Step in step.go; task.go says what a store has to promise.
//
// # Promises
//
//   - A leaf is begun at least once, and again after a crash or a lost lease:
//     actions must be idempotent.
//   - A rescue begins only when every leaf of its body has settled, so that it
//     never cleans up under a sibling that is still building.
//   - Nothing is begun that has not been written down first, and a worker that
//     lost its lease writes nothing.
//   - A cancelled program begins no further leaf but those that clean up: the
//     rescue of a body that has failed, and finally clauses.
//   - Programs of one subject run one after the other, in order of insertion.
package program
