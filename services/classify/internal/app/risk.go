package app

import (
	"slices"

	"github.com/tidegate-mesh/tidegate/libs/flow"
	"github.com/tidegate-mesh/tidegate/libs/packet"
)

// Risk is a set of things about a flow that somebody should look at; libs/flow has their names and reasons.
type Risk = flow.Risk

// What a flow can be marked for.
const (
	ObsoleteTLS      = flow.ObsoleteTLS
	ClearCredentials = flow.ClearCredentials
	DNSTunnel        = flow.DNSTunnel
	UnexpectedPort   = flow.UnexpectedPort
	Executable       = flow.Executable
	Malformed        = flow.Malformed
)

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
