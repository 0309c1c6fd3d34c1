package xdp

import (
	"testing"

	"github.com/tidegate-mesh/tidegate/libs/policy"
)

// TestSharedDigest gives all words of a key the same factor, so that a key and the one with its ends exchanged have one digest: each
// must select its own packets and no other's.
func TestSharedDigest(t *testing.T) {
	r := newRig(t, 1)
	g := r.open(t, Options{Mode: ModeHost})
	p := program(t, g)
	table, err := g.rules()
	must(t, err)
	for i := range table.factors {
		table.factors[i] = 1
	}
	const a, b, c = "192.0.2.1", "198.51.100.7", "203.0.113.9"
	there := Rule{ID: 1, Action: policy.Drop, Match: policy.Match{Src: host(a), Dst: host(b)}}
	back := Rule{ID: 2, Action: policy.Drop, Match: policy.Match{Src: host(b), Dst: host(a)}}
	other := Rule{ID: 3, Action: policy.Drop, Match: policy.Match{Src: host(c), Dst: host(c)}}
	expect := func(src, dst string, want uint32) {
		t.Helper()
		if got := send(t, p, udp(src, dst).frame(t)); got != want {
			t.Errorf("%s to %s: action %d, not %d", src, dst, got, want)
		}
	}

	must(t, g.PutRules([]Rule{there, other})) // of two rules the mask has nothing in common that spares the lookup
	expect(a, b, drop)
	expect(b, a, pass)
	must(t, g.PutRules([]Rule{back}))
	if table.digest(&table.byID[1].Key) == table.digest(&table.byID[2].Key) || masksInUse(t, g) != 2 {
		t.Error("the two rules should be under two masks")
	}
	expect(a, b, drop)
	expect(b, a, drop)

	// A rule that moves to what has its old digest.
	must(t, g.DeleteRules([]uint64{2}))
	moved := back
	moved.ID = 1
	must(t, g.PutRules([]Rule{moved}))
	expect(a, b, pass)
	expect(b, a, drop)
	must(t, g.DeleteRules([]uint64{1}))
	expect(b, a, pass)
	expect(c, c, drop)
	if n := masksInUse(t, g); n != 1 {
		t.Errorf("%d masks are left", n)
	}

	// Whoever opens the gate next takes the factors over.
	again := r.open(t, Options{Mode: ModeHost})
	must(t, again.PutRules([]Rule{there}))
	if again.table.factors != table.factors {
		t.Errorf("factors %x, before %x", again.table.factors, table.factors)
	}
	expect(a, b, drop)
	expect(b, a, pass)
	expect(c, c, drop)
}
