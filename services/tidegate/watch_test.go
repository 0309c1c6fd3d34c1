package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/libs/api/client"
)

func event(t *testing.T, id int, kind string, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("id: %d\nevent: %s\ndata: %s\n\n", id, kind, b)
}

// TestWatch follows a stream over a break, to the end of the token.
func TestWatch(t *testing.T) {
	gap := api.StreamGap{From: 3, To: 4}
	newStream := func() *fakeGateway {
		connections := 0
		return newGateway(t, map[string]http.HandlerFunc{"GET /api/v1/stream": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			if connections++; connections == 1 {
				_, _ = io.WriteString(w, "retry: 1\n\n"+event(t, 2, api.EventAttack, attackOne))
				return
			}
			_, _ = io.WriteString(w, event(t, 5, api.EventGap, gap)+event(t, 6, api.EventVerdict, verdictOne)+
				event(t, 7, "of tomorrow", gap)+"event: expired\ndata: {}\n\n")
		}})
	}
	g := newStream()
	g.loggedIn(t)
	out, _, err := command(t, "", "watch")
	if !errors.Is(err, client.ErrExpired) {
		t.Errorf("ended with %v", err)
	}
	want := `2026-01-01 00:00:09  attack syn_flood-198.51.100.7-1 ended: syn_flood against 198.51.100.7, 50.0k packets/s, 24.0M bits/s, 41000 sources, first drop after 210 ms
! events 3 to 4 are lost to this listener: read tidegate attacks
2026-01-01 00:00:00  verdict on syn_flood against 198.51.100.7: 50000 SYN a second, 41000 sources (1 rules)
`
	if out != want {
		t.Errorf("printed\n%swant\n%s", out, want)
	}
	if want := []string{"GET stream?types=attack%2Cverdict", "GET stream?last_event_id=2&types=attack%2Cverdict"}; strings.Join(g.asked, " ") != strings.Join(want, " ") {
		t.Errorf("asked %q, want %q", g.asked, want)
	}

	g = newStream()
	g.loggedIn(t)
	out, _, err = command(t, "", "watch", "--json", "--types", "attack,live", "--after", "1")
	if !errors.Is(err, client.ErrExpired) {
		t.Errorf("ended with %v", err)
	}
	if g.asked[0] != "GET stream?last_event_id=1&types=attack%2Clive" {
		t.Errorf("asked %q", g.asked)
	}
	var got []watched
	for d := json.NewDecoder(strings.NewReader(out)); ; {
		var w watched
		if err := d.Decode(&w); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("%v in %s", err, out)
		}
		got = append(got, w)
	}
	if len(got) != 4 || got[0].ID != "2" || got[0].Event != api.EventAttack || got[3].Event != "of tomorrow" {
		t.Fatalf("events %+v", got)
	}
	var a api.Attack
	if err := json.Unmarshal(got[0].Data, &a); err != nil || a.ID != attackOne.ID || a.FirstNs != t0 {
		t.Errorf("attack %+v, %v", a, err)
	}
}

func TestEventLines(t *testing.T) {
	for _, c := range []struct {
		kind string
		data string
		want string
	}{
		{api.EventEnforcement, `{"node":"edge1","rule_id":"d-17","state":"refused","reason":"never_block","detail":"inside 192.0.2.0/24","time_ns":"1767225600000000000"}`,
			"2026-01-01 00:00:00  rule d-17 refused on edge1: never_block inside 192.0.2.0/24\n"},
		{api.EventWindow, `{"sensor":"edge1","end_ns":"1767225600000000000","packets":9,"bytes":540,"syn":1,"flows_active":3}`, "2026-01-01 00:00:00  edge1: 9 packets, 540 bytes, 1 SYN, 3 flows\n"},
		{api.EventLive, `{"time_ns":"1767225600000000000","pps":{"seen":50000,"drop":49000},"ledger":{"difference":2}}`, "2026-01-01 00:00:00  drop 49.0k/s seen 50.0k/s, 0 attacks, difference 2\n"},
		{api.EventGap, `{"restarted":true}`, "! the events were made anew; some may be lost: read tidegate attacks\n"},
		{api.EventVerdict, `{"explanation":"\u001b[2Jx"}`, "-  verdict on  against : ?[2Jx (0 rules)\n"},
		{api.EventAttack, `[]`, "an event of the kind attack cannot be read: json: cannot unmarshal array into Go value of type api.Attack\n"},
	} {
		var out strings.Builder
		if err := eventText(&out, client.Event{Type: c.kind, Data: json.RawMessage(c.data)}); err != nil || out.String() != c.want {
			t.Errorf("%s is %q, %v; want %q", c.kind, out.String(), err, c.want)
		}
	}
}
