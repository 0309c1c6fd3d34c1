package app

import "strings"

// Risk is a set of things about a flow that somebody should look at.
type Risk uint16

// What a flow can be marked for.
const (
	ObsoleteTLS      Risk = 1 << iota // SSL, TLS 1.0 or 1.1 (RFC 8996)
	ClearCredentials                  // a password in clear
	DNSTunnel                         // names that are data
	UnexpectedPort                    // another protocol on a port that belongs to a known one
	Executable                        // a program over HTTP
	Malformed                         // lengths or codes that cannot be
)

var riskNames = [...]string{"obsolete_tls", "clear_credentials", "dns_tunnel", "unexpected_port", "executable", "malformed"}

// Names lists the risks' names.
func (r Risk) Names() []string {
	var out []string
	for i, name := range riskNames {
		if r&(1<<i) != 0 {
			out = append(out, name)
		}
	}
	return out
}

// String joins the names with commas.
func (r Risk) String() string { return strings.Join(r.Names(), ",") }

func (f *Flow) risk(is bool, r Risk) {
	if is {
		f.facts.Risks |= r
	}
}
