package enforce

import (
	"errors"
	"fmt"
	"strings"

	"github.com/tidegate-mesh/tidegate/libs/policy"
)

// flowSpec writes a match as the conditions of a FlowSpec route (RFC 8955 4.2, RFC 8956) in ExaBGP's words. The error says
// why there is no route that matches these packets and no others.
func flowSpec(m *policy.Match) (string, error) {
	switch {
	case !m.Src.IsValid() && !m.Dst.IsValid():
		return "", errors.New("it names neither a source nor a destination")
	case m.Host != "":
		return "", errors.New("a router does not see which host a flow names")
	case m.OutOfState:
		return "", errors.New("a router does not know the state of connections")
	case m.TTLMin != 0 || m.TTLMax != 0:
		return "", errors.New("FlowSpec has no condition for the TTL")
	case m.Fragment == policy.WholeOnly:
		return "", errors.New("FlowSpec has no condition that routers read alike for packets that are no fragments")
	}
	var b strings.Builder
	say := func(format string, v ...any) { fmt.Fprintf(&b, format+"; ", v...) }
	if m.Dst.IsValid() {
		say("destination %s", m.Dst.Masked())
	}
	if m.Src.IsValid() {
		say("source %s", m.Src.Masked())
	}
	if m.HasProtocol {
		name := "protocol"
		if m.Dst.IsValid() && m.Dst.Addr().Is6() || m.Src.IsValid() && m.Src.Addr().Is6() {
			name = "next-header"
		}
		say(name+" =%d", m.Protocol)
	}
	if m.HasDstPort {
		say("destination-port =%d", m.DstPort)
	}
	if m.HasSrcPort {
		say("source-port =%d", m.SrcPort)
	}
	if m.TCPFlagsMask != 0 {
		say("tcp-flags [ %s ]", flowFlags(m.TCPFlags, m.TCPFlagsMask))
	}
	switch {
	case m.LengthMin != 0 && m.LengthMin == m.LengthMax:
		say("packet-length =%d", m.LengthMin)
	case m.LengthMin != 0 && m.LengthMax != 0:
		say("packet-length >=%d&<=%d", m.LengthMin, m.LengthMax)
	case m.LengthMin != 0:
		say("packet-length >=%d", m.LengthMin)
	case m.LengthMax != 0:
		say("packet-length <=%d", m.LengthMax)
	}
	if m.Fragment == policy.FragmentsOnly { // the first one is not "a fragment" there
		say("fragment [ is-fragment first-fragment ]")
	}
	return b.String(), nil
}

// flowFlags asks for each flag by itself, all of them together: set, or not set.
func flowFlags(value, mask uint8) string {
	names := [...]string{"fin", "syn", "rst", "push", "ack", "urgent", "ece", "cwr"} // from the lowest bit on
	var all []string
	for i, name := range names {
		switch {
		case mask>>i&1 == 0:
		case value>>i&1 == 1:
			all = append(all, "="+name)
		default:
			all = append(all, "!"+name)
		}
	}
	return strings.Join(all, "&")
}
