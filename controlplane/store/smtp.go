// SPDX-License-Identifier: Apache-2.0

package store

// KindSMTP is that of permits to send mail. They belong to the zone, and
// operators give them; the id is the organisation's.
const KindSMTP Kind = "smtp-permit"

// SMTPDoc lets an organisation's instances connect to TCP port 25 of others.
type SMTPDoc struct {
	Organization string `json:"organization"` // its name
}

// Kind of the document.
func (SMTPDoc) Kind() Kind { return KindSMTP }

// Index makes the name unique in the zone.
func (d SMTPDoc) Index() Index {
	return Index{Name: d.Organization, Unique: d.Organization, State: "given"}
}
