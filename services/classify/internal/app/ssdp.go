package app

import "bytes"

// ssdpDatagram recognises SSDP (UPnP Device Architecture 2.0, 1.2 and 1.3): an HTTP-shaped search or notice
// for everyone, or the answer to a search, which names its search target and service.
func ssdpDatagram(_ *Flow, in *input) outcome {
	b := in.data
	if bytes.HasPrefix(b, []byte("M-SEARCH * HTTP/1.")) || bytes.HasPrefix(b, []byte("NOTIFY * HTTP/1.")) {
		return final
	}
	if bytes.HasPrefix(b, []byte("HTTP/1.1 200 ")) || bytes.HasPrefix(b, []byte("HTTP/1.0 200 ")) {
		b = b[:min(len(b), 1500)]
		if field(b, "ST") != nil || field(b, "USN") != nil || field(b, "NT") != nil {
			return final
		}
	}
	return no
}
