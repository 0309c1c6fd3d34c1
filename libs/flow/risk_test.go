package flow

import (
	"slices"
	"testing"
)

func TestRisks(t *testing.T) {
	all := RiskNames()
	want := []string{"obsolete_tls", "clear_credentials", "dns_tunnel", "unexpected_port", "executable", "malformed"}
	if !slices.Equal(all, want) {
		t.Errorf("names %q: their order is that of stored bits", all)
	}
	for i, name := range all {
		if r := RiskNamed(name); r != 1<<i {
			t.Errorf("%s is bit set %b, expected bit %d", name, r, i)
		}
		if RiskReason(name) == "" {
			t.Errorf("%s has no reason", name)
		}
	}
	r := ObsoleteTLS | Malformed
	if got := RisksNamed(append(r.Names(), "of_a_later_version")); got != r {
		t.Errorf("there and back: %s, expected %s", got, r)
	}
	if r.String() != "obsolete_tls,malformed" || Risk(0).Names() != nil || Risk(1<<40).Names() != nil {
		t.Errorf("%q, %q, %q", r, Risk(0).Names(), Risk(1<<40).Names())
	}
	if RiskNamed("no") != 0 || RiskReason("no") != "" {
		t.Error("an unknown name is a risk")
	}
}
