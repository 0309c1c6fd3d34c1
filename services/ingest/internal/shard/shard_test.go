package shard

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
)

func addr(s string) *[16]byte {
	a := netip.MustParseAddr(s).As16()
	return &a
}

func all(int) bool { return true }

var names = []string{"c1:50051", "c2:50051", "c3:50051", "c4:50051"}

func TestOnlyTheSlotsOfTheOneThatGoesMove(t *testing.T) {
	before := NewTable(names, all)
	for i, n := range before.Shares(len(names)) {
		if n < Slots/len(names)*3/4 || n > Slots/len(names)*5/4 {
			t.Errorf("%s owns %d of %d slots", names[i], n, Slots)
		}
	}
	for gone := range names {
		after := NewTable(names, func(i int) bool { return i != gone })
		for s := range after {
			switch {
			case int(before[s]) != gone && after[s] != before[s]:
				t.Fatalf("slot %d moved from %d to %d though %d went", s, before[s], after[s], gone)
			case int(after[s]) == gone:
				t.Fatalf("slot %d stayed with the one that went", s)
			}
		}
		for i, n := range after.Shares(len(names)) {
			if i != gone && n < Slots/3*3/4 {
				t.Errorf("without %d: %d owns %d slots; the load is not shared", gone, i, n)
			}
		}
	}
	if *NewTable(names, all) != *before {
		t.Error("the same list gives another table")
	}
	if *NewTable(names, func(int) bool { return false }) != *before {
		t.Error("with none live, what waits must stay at home")
	}
	// The order of the list is not a sensor's own: names decide.
	turned := slices.Clone(names)
	slices.Reverse(turned)
	for s, owner := range NewTable(turned, all) {
		if turned[owner] != names[before[s]] {
			t.Fatalf("slot %d is %s's or %s's by the order of the list", s, turned[owner], names[before[s]])
		}
	}
}

func TestNetworksAreNotSplit(t *testing.T) {
	table := NewTable(names, all)
	for _, net := range [][]string{
		{"198.51.0.0", "198.51.100.7", "198.51.255.255"},
		{"2001:db8:1::", "2001:db8:1:2::3", "2001:db8:1:ffff::1"},
	} {
		for _, a := range net[1:] {
			if table.Addr(addr(a)) != table.Addr(addr(net[0])) {
				t.Errorf("%s and %s have different owners", a, net[0])
			}
		}
	}
	owners := map[int]int{}
	for i := range 256 {
		owners[table.Addr(addr("10."+strconv.Itoa(i)+".0.1"))]++
		owners[table.Addr(addr("2001:db8:"+strconv.FormatInt(int64(i), 16)+"::1"))]++
	}
	for i := range names {
		if owners[i] < 64 {
			t.Errorf("%s owns %d of 512 networks", names[i], owners[i])
		}
	}
}

func TestSides(t *testing.T) {
	s, err := NewSides([]string{"198.51.100.0/24", "203.0.113.9", "2001:db8:1::/48", "198.51.100.0/24"})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ src, dst, want string }{
		{"192.0.2.1", "198.51.100.7", "198.51.100.7"},
		{"198.51.100.7", "192.0.2.1", "198.51.100.7"}, // asks somebody outside
		{"203.0.113.9", "198.51.100.7", "198.51.100.7"},
		{"198.51.100.7", "203.0.113.9", "203.0.113.9"},
		{"192.0.2.1", "203.0.113.10", "203.0.113.10"}, // neither
		{"2001:db8:1::5", "2001:db8:2::5", "2001:db8:1::5"},
	} {
		if got := s.Of(addr(c.src), addr(c.dst)); *got != *addr(c.want) {
			t.Errorf("%s to %s: %s, want %s", c.src, c.dst, netip.AddrFrom16(*got).Unmap(), c.want)
		}
	}
	src, dst := addr("198.51.100.7"), addr("192.0.2.1")
	if n := testing.AllocsPerRun(100, func() { s.Of(src, dst) }); n > 0 {
		t.Errorf("%v allocations a flow", n)
	}
	if _, err := NewSides([]string{"198.51.100.0/33"}); err == nil || !strings.Contains(err.Error(), `"198.51.100.0/33"`) {
		t.Errorf("a bad prefix: %v", err)
	}
}
