package flow

import "strings"

// Risk is a set of things about a flow that somebody should look at. The bits are stored: a bit keeps its meaning, new
// ones come behind.
type Risk uint64

// What a flow can be marked for.
const (
	ObsoleteTLS      Risk = 1 << iota // SSL, TLS 1.0 or 1.1 (RFC 8996)
	ClearCredentials                  // a password in clear
	DNSTunnel                         // names that are data
	UnexpectedPort                    // another protocol on a port that belongs to a known one
	Executable                        // a program over HTTP
	Malformed                         // lengths or codes that cannot be
)

var risks = [...]struct{ name, reason string }{
	{"obsolete_tls", "the session uses SSL, TLS 1.0 or TLS 1.1, which RFC 8996 forbids"},
	{"clear_credentials", "a user name or password crosses the network in clear text"},
	{"dns_tunnel", "the names asked for look like data, as a tunnel through DNS sends them"},
	{"unexpected_port", "the application is not the one that this port belongs to"},
	{"executable", "a program is downloaded over plain HTTP"},
	{"malformed", "a length or code in the payload cannot be: damaged, or made to mislead a parser"},
}

// Names lists the risks' names, nil for none. Bits of a later version have no name here and are left out.
func (r Risk) Names() []string { return r.AppendNames(nil) }

// AppendNames appends to out what Names lists.
func (r Risk) AppendNames(out []string) []string {
	for i, k := range risks {
		if r&(1<<i) != 0 {
			out = append(out, k.name)
		}
	}
	return out
}

// String joins the names with commas.
func (r Risk) String() string { return strings.Join(r.Names(), ",") }

// RiskNamed is the risk of that name; 0 when this version does not know it.
func RiskNamed(name string) Risk {
	for i, k := range risks {
		if k.name == name {
			return 1 << i
		}
	}
	return 0
}

// RisksNamed is the set of those names that this version knows.
func RisksNamed(names []string) (r Risk) {
	for _, n := range names {
		r |= RiskNamed(n)
	}
	return r
}

// RiskReason says in words why the risk of that name is one; empty when this version does not know it.
func RiskReason(name string) string {
	for _, k := range risks {
		if k.name == name {
			return k.reason
		}
	}
	return ""
}

// RiskNames lists the names of all risks, in the order of their bits.
func RiskNames() []string { return (Risk(1)<<len(risks) - 1).Names() }
