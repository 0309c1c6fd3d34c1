package policy

import "testing"

func TestScope(t *testing.T) {
	for text, want := range map[string]Scope{
		"": {}, "all": {}, "site:ams": {Site: "ams"}, "node:edge-1.example": {Node: "edge-1.example"},
		"interface:eth0.12": {Iface: "eth0.12"}, "interface:edge-1/ens3f0": {Node: "edge-1", Iface: "ens3f0"},
	} {
		got, err := ParseScope(text)
		if err != nil || got != want {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
		if again, err := ParseScope(got.String()); err != nil || again != got {
			t.Errorf("%q is written as %q and read as %+v, %v", text, got, again, err)
		}
	}
	for _, bad := range []string{"ams", "all:ams", "site", "site:", "node:a/b", "interface:", "interface:/eth0", "interface:n/", "interface:a/b/c", "site:a b", "iface:eth0"} {
		if got, err := ParseScope(bad); err == nil {
			t.Errorf("%q is read as %+v", bad, got)
		}
	}
	s := Scope{Node: "edge-1", Iface: "eth0"}
	if !s.Has("ams", "edge-1", "eth0") || s.Has("ams", "edge-1", "eth1") || s.Has("ams", "edge-2", "eth0") || !(Scope{}).Has("", "n", "i") || (Scope{Site: "ams"}).Has("", "n", "i") {
		t.Error("a scope has the wrong interfaces")
	}
}
