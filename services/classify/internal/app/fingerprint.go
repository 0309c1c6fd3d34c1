package app

import (
	"crypto/md5" //nolint:gosec // JA3 and HASSH are defined with it
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"slices"
	"strconv"
)

// Fingerprints of the client: JA3 and JA3S (Salesforce, 2017), JA4 (the TLS client part only, which is under the
// BSD licence; FoxIO, JA4+ technical details), HASSH (Salesforce, 2018).

// grease tells the reserved values that clients mix in (RFC 8701).
func grease(v uint16) bool { return v&0x0F0F == 0x0A0A && v>>8 == v&0xFF }

// extensionValue walks over extensions: it takes the first off *b.
func extensionValue(b *[]byte) (kind uint16, value []byte, ok bool) {
	if len(*b) < 4 {
		return 0, nil, false
	}
	kind = binary.BigEndian.Uint16(*b)
	size := int(binary.BigEndian.Uint16((*b)[2:]))
	if size > len(*b)-4 {
		return 0, nil, false
	}
	value = (*b)[4 : 4+size]
	*b = (*b)[4+size:]
	return kind, value, true
}

// tlsVersions are the names of versions: as JA4 writes them and as people do.
func tlsVersion(v int) (short, name string) {
	switch v {
	case 0x0304:
		return "13", "1.3"
	case 0x0303:
		return "12", "1.2"
	case 0x0302:
		return "11", "1.1"
	case 0x0301:
		return "10", "1.0"
	case 0x0300:
		return "s3", "ssl 3.0"
	case 0x0002:
		return "s2", "ssl 2.0"
	case 0xFEFF, 0x0100:
		return "d1", "dtls 1.0"
	case 0xFEFD:
		return "d2", "dtls 1.2"
	case 0xFEFC:
		return "d3", "dtls 1.3"
	}
	return "00", ""
}

// newest is the newest version that a ClientHello offers.
func (h *hello) newest() int {
	best := 0
	for b := h.versions; len(b) >= 2; b = b[2:] {
		v := int(binary.BigEndian.Uint16(b))
		if grease(uint16(v)) { //nolint:gosec // from 16 bits
			continue
		}
		if datagram := v>>8 == 0xFE; best == 0 || !datagram && v > best || datagram && v < best {
			best = v
		}
	}
	if best == 0 {
		return h.version
	}
	return best
}

// prints computes the fingerprints of a complete ClientHello; transport is t, q or d.
func (h *hello) prints(f *Flow, transport byte) {
	_, f.facts.TLSVersion = tlsVersion(h.newest())
	f.risk(h.newest() < 0x0303, ObsoleteTLS)
	f.facts.JA3 = h.ja3(f.engine)
	f.facts.JA4 = h.ja4(f.engine, transport)
}

// decimals appends a list of 16-bit numbers without GREASE, as JA3 writes it.
func decimals(out, b []byte) []byte {
	first := true
	for ; len(b) >= 2; b = b[2:] {
		v := binary.BigEndian.Uint16(b)
		if grease(v) {
			continue
		}
		if !first {
			out = append(out, '-')
		}
		first = false
		out = strconv.AppendUint(out, uint64(v), 10)
	}
	return out
}

// kinds appends the extensions' numbers without GREASE, as JA3 writes them.
func kinds(out, b []byte) []byte {
	first := true
	for {
		kind, _, ok := extensionValue(&b)
		if !ok {
			return out
		}
		if grease(kind) {
			continue
		}
		if !first {
			out = append(out, '-')
		}
		first = false
		out = strconv.AppendUint(out, uint64(kind), 10)
	}
}

func (h *hello) ja3(e *Engine) string {
	out := strconv.AppendUint(e.text[:0], uint64(h.version), 10) //nolint:gosec // from 16 bits
	out = decimals(append(out, ','), h.ciphers)
	out = kinds(append(out, ','), h.extensions)
	out = decimals(append(out, ','), h.groups)
	out = append(out, ',')
	for i, c := range h.formats {
		if i > 0 {
			out = append(out, '-')
		}
		out = strconv.AppendUint(out, uint64(c), 10)
	}
	return e.md5(out)
}

// md5 interns the sum's hex form. text may be longer than the engine's own memory: it was appended to.
func (e *Engine) md5(text []byte) string {
	e.text = text[:0]
	sum := md5.Sum(text) //nolint:gosec // see the import
	var out [32]byte
	hex.Encode(out[:], sum[:])
	return e.names.get(out[:])
}

// ja4 has three parts: transport, version, server name, counts and ALPN in clear; the sorted cipher suites; the
// sorted extensions with the signature algorithms in their own order.
func (h *hello) ja4(e *Engine, transport byte) string {
	short, _ := tlsVersion(h.newest())
	named := byte('i')
	ciphers := e.numbers[:0]
	for b := h.ciphers; len(b) >= 2; b = b[2:] {
		if v := binary.BigEndian.Uint16(b); !grease(v) {
			ciphers = append(ciphers, v)
		}
	}
	var out [36]byte
	a := append(out[:0], transport, short[0], short[1], 0)
	a = twoDigits(a, len(ciphers))
	cipherSum := e.ja4Sum(ciphers, nil)
	count := 0
	extensions := e.numbers[:0]
	for b := h.extensions; ; {
		kind, _, ok := extensionValue(&b)
		if !ok {
			break
		}
		if grease(kind) {
			continue
		}
		count++
		switch kind {
		case 0:
			named = 'd'
		case 16:
		default:
			extensions = append(extensions, kind)
		}
	}
	a[3] = named
	a = twoDigits(a, count)
	a = alpnEnds(a, h.alpn)
	extensionSum := e.ja4Sum(extensions, h.signatures)
	a = append(append(a, '_'), cipherSum[:]...)
	a = append(append(a, '_'), extensionSum[:]...)
	return e.names.get(a)
}

func twoDigits(b []byte, n int) []byte {
	n = min(n, 99)
	return append(b, '0'+byte(n/10), '0'+byte(n%10)) //nolint:gosec // a digit
}

// alpnEnds appends the first and the last character of the first ALPN value, of its hex form when one of them is no
// letter or digit.
func alpnEnds(out, b []byte) []byte {
	if len(b) == 0 {
		return append(out, "00"...)
	}
	first, last := b[0], b[len(b)-1]
	if alphanumeric(first) && alphanumeric(last) {
		return append(out, first, last)
	}
	const digits = "0123456789abcdef"
	return append(out, digits[first>>4], digits[last&15])
}

func alphanumeric(c byte) bool {
	return digit(c) || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}

// ja4Sum is the first half of the SHA-256 of sorted numbers in hex, with the signature algorithms behind them.
func (e *Engine) ja4Sum(numbers []uint16, signatures []byte) [12]byte {
	if len(numbers) == 0 && len(signatures) == 0 {
		return [12]byte([]byte("000000000000"))
	}
	slices.Sort(numbers)
	out := e.text[:0]
	for i, v := range numbers {
		if i > 0 {
			out = append(out, ',')
		}
		out = hex.AppendEncode(out, []byte{byte(v >> 8), byte(v)})
	}
	first := true
	for ; len(signatures) >= 2; signatures = signatures[2:] {
		if grease(binary.BigEndian.Uint16(signatures)) {
			continue
		}
		if first {
			out = append(out, '_')
		} else {
			out = append(out, ',')
		}
		first = false
		out = hex.AppendEncode(out, signatures[:2])
	}
	e.text = out[:0]
	sum := sha256.Sum256(out)
	var text [12]byte
	hex.Encode(text[:], sum[:6])
	return text
}

// serverHello reads version and JA3S of a complete ServerHello (RFC 8446 4.1.3, RFC 5246 7.4.1.3).
func (f *Flow) serverHello(m []byte) {
	if len(m) < 4+2+32+1 {
		return
	}
	version := int(binary.BigEndian.Uint16(m[4:]))
	b := m[38:]
	session := int(b[0])
	if len(b) < 1+session+3 {
		return
	}
	b = b[1+session:]
	cipher := binary.BigEndian.Uint16(b)
	b = b[3:]
	var extensions []byte
	if len(b) >= 2 {
		extensions = list(b, 2)
	}
	out := strconv.AppendUint(f.engine.text[:0], uint64(version), 10) //nolint:gosec // from 16 bits
	out = strconv.AppendUint(append(out, ','), uint64(cipher), 10)
	out = kinds(append(out, ','), extensions)
	f.facts.JA3S = f.engine.md5(out)
	for b := extensions; ; {
		kind, value, ok := extensionValue(&b)
		if !ok {
			break
		}
		if kind == 43 && len(value) == 2 {
			version = int(binary.BigEndian.Uint16(value))
		}
	}
	if _, name := tlsVersion(version); name != "" {
		f.facts.TLSVersion = name
		f.facts.Risks &^= ObsoleteTLS
		f.risk(version < 0x0303, ObsoleteTLS)
	}
}
