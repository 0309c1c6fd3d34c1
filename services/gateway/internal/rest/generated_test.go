package rest

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"testing"

	"github.com/tidegate-mesh/tidegate/libs/api"
)

// TestGenerated sends requests that are made from the document, good and broken, through the whole chain. No answer is
// a 5xx that nobody ordered, every answer is in the document, and what is broken is refused.
func TestGenerated(t *testing.T) {
	n := 3000
	switch {
	case os.Getenv("TIDEGATE_FULL") != "":
		n = 50000
	case testing.Short():
		n = 1000
	}
	const seed = 20261125
	r := newRig(t)
	g := &generator{document: r.document, rnd: rand.New(rand.NewPCG(seed, 1))}
	away := &api.Problem{Status: http.StatusServiceUnavailable, Title: http.StatusText(http.StatusServiceUnavailable), Service: "persist", Detail: "persist does not answer"}
	statuses, kinds, good, wrong, noHTTP := map[int]int{}, map[string]int{}, map[string]int{}, 0, 0
	for i := range n {
		if i%200 == 0 {
			r.mesh.reset()
		}
		down := i%50 == 49
		r.mesh.fail(down, away)
		q := g.next()
		kinds[q.broken]++
		w, ok := r.send(r.tokens[q.role], q.request)
		if !ok {
			noHTTP++ // the server answers 400 before any of this
			continue
		}
		statuses[w.Code]++
		err := r.check(q.request, w)
		switch {
		case err != nil:
		case w.Code >= 500 && (!down || w.Code != http.StatusServiceUnavailable):
			err = fmt.Errorf("status %d", w.Code)
		case q.refused && w.Code/100 != 4:
			err = fmt.Errorf("it should be refused, status %d", w.Code)
		case q.broken == "" && !down && (w.Code == 400 || w.Code == 401 || w.Code == 403 || w.Code == 405 || w.Code == 413 || w.Code == 415 || w.Code == 428):
			err = fmt.Errorf("it is good, status %d", w.Code)
		case w.Code/100 == 2 && q.broken == "":
			if op := r.find(q.method, q.target); op != nil {
				good[op.id]++
			}
		}
		if err != nil {
			if wrong++; wrong <= 20 {
				t.Errorf("request %d of seed %d as %q, broken by %q: %v\n%.600q\nanswer %.400s", i, seed, q.role, q.broken, err, q.text(""), w.Body)
			}
		}
	}
	if wrong > 20 {
		t.Errorf("%d more", wrong-20)
	}
	t.Logf("%d requests (%d no HTTP), statuses %v", n, noHTTP, statuses)
	// A test of this kind is worth nothing when most of what it sends does not arrive.
	for _, op := range r.operations {
		if good[op.id] == 0 {
			t.Errorf("no good request for %s was answered with success", op.id)
		}
	}
	for _, kind := range brokenKinds {
		if kinds[kind] == 0 {
			t.Errorf("nothing was broken by %q", kind)
		}
	}
	if got := slices.Sorted(maps.Keys(statuses)); !slices.Contains(got, 503) || noHTTP > n/20 {
		t.Errorf("statuses %v, %d requests were no HTTP", got, noHTTP)
	}
}
