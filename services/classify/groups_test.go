package classify

import (
	"net/netip"
	"reflect"
	"testing"

	"github.com/tidegate-mesh/tidegate/libs/policy"
	classifyv1 "github.com/tidegate-mesh/tidegate/proto/classify/v1"
)

func TestListGroups(t *testing.T) {
	list := func(change func(*Config)) *classifyv1.ListGroupsResponse {
		r := newRig(t, &fakeBus{rules: make(map[string]policy.Rule)}, change)
		defer r.stop()
		l, err := r.client.ListGroups(t.Context(), &classifyv1.ListGroupsRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	everything := list(func(*Config) {})
	if g := everything.GetGroups(); len(g) != 1 || g[0].GetName() != "default" || len(g[0].GetPrefixes()) != 0 ||
		g[0].GetThresholds()["excess_syn"] != 150 {
		t.Errorf("nothing protected: %v", everything)
	}
	some := list(func(c *Config) {
		c.Engine.SYN, c.Engine.Protected = 99, []string{"198.51.100.0/24"}
		c.Engine.Groups = []Group{{
			Name: "dns", Prefixes: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/32")},
			Thresholds: map[string]float64{"udp": 50000},
		}}
	})
	type row struct {
		Name     string
		Prefixes []string
		SYN, UDP float64
	}
	var got []row
	for _, g := range some.GetGroups() {
		got = append(got, row{g.GetName(), g.GetPrefixes(), g.GetThresholds()["excess_syn"], g.GetThresholds()["udp_packets"]})
	}
	want := []row{{"dns", []string{"192.0.2.0/24", "2001:db8::/32"}, 99, 50000}, {"default", []string{"198.51.100.0/24"}, 99, 20000}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if some.GetConfigVersion() == "" || some.GetConfigVersion() == everything.GetConfigVersion() {
		t.Errorf("configuration versions %q and %q", everything.GetConfigVersion(), some.GetConfigVersion())
	}
}
