package statuspage

import (
	"cmp"
	"net/http"
	"slices"
	"strings"
)

// sensorRows bounds one answer; a site may have thousands, so the page searches here.
const sensorRows = 100

// sensorList is the answer to a search.
type sensorList struct {
	Total    int      `json:"total"`
	Matching int      `json:"matching"`
	Rows     []Sensor `json:"rows"`
}

// sensors answers /sensors?q=TEXT&sort=name|silent|refused|messages.
func (p *Page) sensors(w http.ResponseWriter, r *http.Request) {
	all := p.o.Gateway.Sensors()
	list := sensorList{Total: len(all), Rows: []Sensor{}}
	want := strings.ToLower(r.URL.Query().Get("q"))
	for _, s := range all {
		if strings.Contains(strings.ToLower(s.Name), want) || strings.Contains(s.Source, want) {
			list.Rows = append(list.Rows, s)
		}
	}
	list.Matching = len(list.Rows)
	sortSensors(list.Rows, r.URL.Query().Get("sort"))
	list.Rows = list.Rows[:min(sensorRows, len(list.Rows))]
	secure(w.Header())
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	_, _ = w.Write(encode(list)) // the reader may be gone
}

// sortSensors orders by name when by is none of the others.
func sortSensors(rows []Sensor, by string) {
	slices.SortFunc(rows, func(a, b Sensor) int {
		first := 0
		switch by {
		case "silent":
			first = a.LastSeen.Compare(b.LastSeen)
		case "refused":
			first = cmp.Compare(b.Refused, a.Refused)
		case "messages":
			first = cmp.Compare(b.Messages, a.Messages)
		}
		return cmp.Or(first, strings.Compare(a.Name, b.Name), strings.Compare(a.Source, b.Source))
	})
}
