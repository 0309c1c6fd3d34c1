package app

import "github.com/tidegate-mesh/tidegate/libs/packet"

// maxExpected is how many announcements one generation holds.
const maxExpected = 4096

// endpoint is where an announced session will be.
type endpoint struct {
	addr  [16]byte
	port  uint16
	proto uint8
}

// expectations remembers what earlier flows announced. Like names it keeps two generations, so that memory is
// bounded and an announcement lasts for at least maxExpected others.
type expectations struct {
	young, old map[endpoint]string
}

func (x *expectations) some() bool { return len(x.young)+len(x.old) > 0 }

func (x *expectations) add(at endpoint, name string) {
	if x.young == nil || len(x.young) >= maxExpected {
		x.old, x.young = x.young, make(map[endpoint]string, 16)
	}
	x.young[at] = name
}

func (x *expectations) get(at endpoint) string {
	if name, ok := x.young[at]; ok {
		return name
	}
	return x.old[at]
}

// announce says that a flow to or from an endpoint will be a session of name.
func (f *Flow) announce(name string, proto uint8, addr [16]byte, port uint16) {
	if port != 0 {
		f.engine.expected.add(endpoint{addr, port, proto}, name)
	}
}

// announced labels a new flow that an earlier one announced. Datagrams still have to be looked at: the name is
// given when the first fits nothing else.
func (f *Flow) announced() {
	name := f.engine.expected.get(endpoint{f.key.Dst, f.key.DstPort, f.proto})
	if name == "" {
		name = f.engine.expected.get(endpoint{f.key.Src, f.key.SrcPort, f.proto})
	}
	if name == "" {
		return
	}
	f.app, f.confidence = name, Session
	if f.proto == packet.ProtoTCP {
		f.final = true
	}
}
