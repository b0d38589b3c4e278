// SPDX-License-Identifier: Apache-2.0

package cloud

// OperationState is where an asynchronous operation stands.
type OperationState string

const (
	OperationPending OperationState = "pending"
	OperationSuccess OperationState = "success"
	OperationFailure OperationState = "failure"
	OperationTimeout OperationState = "timeout"
)

// Final says that the operation will not change any more.
func (s OperationState) Final() bool { return s != OperationPending && s != "" }

// Reason says why an operation did not succeed.
type Reason string

const (
	ReasonIncorrect   Reason = "incorrect"
	ReasonUnknown     Reason = "unknown"
	ReasonUnavailable Reason = "unavailable"
	ReasonForbidden   Reason = "forbidden"
	ReasonBusy        Reason = "busy"
	ReasonFault       Reason = "fault"
	ReasonPartial     Reason = "partial"
	ReasonNotFound    Reason = "not-found"
	ReasonInterrupted Reason = "interrupted"
	ReasonUnsupported Reason = "unsupported"
	ReasonConflict    Reason = "conflict"
)

// Operation is the answer to every asynchronous request, and what a client polls.
type Operation struct {
	ID        ID             `json:"id" doc:"identity of the operation" table:"true"`
	State     OperationState `json:"state" enum:"pending,success,failure,timeout" table:"true"`
	Reason    Reason         `json:"reason,omitempty" enum:"incorrect,unknown,unavailable,forbidden,busy,fault,partial,not-found,interrupted,unsupported,conflict" doc:"why it did not succeed" table:"true"`
	Message   string         `json:"message,omitempty" table:"true"`
	Reference *Reference     `json:"reference,omitempty" doc:"the object concerned, there from the first answer"`
}

// Reference names the object that an operation concerns: the parent, where a child
// is added or removed. Package cloud/api makes it (Operation.Refer).
type Reference struct {
	ID      ID     `json:"id"`
	Link    string `json:"link,omitempty" doc:"path of the object"`
	Command string `json:"command,omitempty" doc:"operation id that reads the object"`
}
