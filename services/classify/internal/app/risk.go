package app

import (
	"slices"
	"strings"

	"github.com/tidegate-mesh/tidegate/libs/packet"
)

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

// portsOf are the ports that belong to one kind of application, with its labels. A flow to one of them with another
// label is worth a look: it may hide from a filter that goes by ports.
var portsOf = map[uint16][]string{
	22:   {"ssh"},
	25:   {"smtp", "smtps"},
	53:   {"dns", "dnscrypt"},
	80:   {"http", "http2", "websocket", "soap", "http_proxy", "http_connect"},
	110:  {"pop3", "pop3s"},
	143:  {"imap", "imaps"},
	443:  {"tls", "quic", "http", "http2", "websocket", "applepush"},
	3306: {"mysql", "tls"},
	3389: {"rdp", "tls"},
	5432: {"postgresql", "tls"},
	6379: {"resp", "tls"},
}

// unexpected tells whether a flow that is labelled goes to a port of another application.
func (f *Flow) unexpected() bool {
	labels := portsOf[f.key.DstPort]
	return f.app != "" && labels != nil && (f.proto == packet.ProtoTCP || f.proto == packet.ProtoUDP) && !slices.Contains(labels, f.app)
}

func (f *Flow) risk(is bool, r Risk) {
	if is {
		f.facts.Risks |= r
	}
}
