// SPDX-License-Identifier: Apache-2.0

package cloud

// DefaultZone is the zone name that unmodified clients always know.
const DefaultZone = "ch-gva-2"

// Zone is a place with an API endpoint of its own.
type Zone struct {
	Name        string `json:"name" table:"true"`
	APIEndpoint string `json:"api-endpoint" doc:"base URL of the API, with its version" table:"true"`
	SOSEndpoint string `json:"sos-endpoint,omitempty" doc:"base URL of the object storage"`
}

// ZoneList answers list-zones.
type ZoneList struct {
	Zones []Zone `json:"zones"`
}
