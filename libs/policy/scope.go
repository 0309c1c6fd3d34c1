package policy

import (
	"fmt"
	"regexp"
	"strings"
)

// Scope is where a rule acts. The zero value is everywhere; else Site alone, Node alone, or Iface, on every node or on Node.
type Scope struct {
	Site, Node, Iface string
}

var scopeName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:@-]{0,254}$`)

// ParseScope reads all (or nothing), site:NAME, node:NAME, interface:NAME and interface:NODE/NAME.
func ParseScope(s string) (Scope, error) {
	kind, name, _ := strings.Cut(s, ":")
	var out Scope
	switch kind {
	case "", "all":
		if name == "" {
			return out, nil
		}
	case "site":
		out.Site = name
	case "node":
		out.Node = name
	case "interface":
		if node, iface, ok := strings.Cut(name, "/"); ok {
			if out.Node, name = node, iface; !scopeName.MatchString(node) {
				name = ""
			}
		}
		out.Iface = name
	}
	if out == (Scope{}) || !scopeName.MatchString(name) {
		return Scope{}, fmt.Errorf("scope %q: use all, site:NAME, node:NAME, interface:NAME or interface:NODE/NAME", s)
	}
	return out, nil
}

// String writes what ParseScope reads.
func (s Scope) String() string {
	switch {
	case s.Site != "":
		return "site:" + s.Site
	case s.Iface != "" && s.Node != "":
		return "interface:" + s.Node + "/" + s.Iface
	case s.Iface != "":
		return "interface:" + s.Iface
	case s.Node != "":
		return "node:" + s.Node
	}
	return "all"
}

// Has reports whether an interface of a node at a site is inside.
func (s Scope) Has(site, node, iface string) bool {
	return (s.Site == "" || s.Site == site) && (s.Node == "" || s.Node == node) && (s.Iface == "" || s.Iface == iface)
}
