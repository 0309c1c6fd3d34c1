package app

// mqttStream recognises MQTT (3.1.1 and 5.0, 2.1 and 3): CONNECT with the protocol's name, or, in the middle of
// a connection, packets of both sides whose lengths fit.
func mqttStream(f *Flow, in *input) outcome {
	b := in.data
	kind := b[0] >> 4
	if kind == 0 || kind == 15 && b[0]&15 != 0 {
		return no
	}
	size, n := 0, 0
	for i := 1; ; i++ {
		if i >= len(b) {
			return more
		}
		if i > 4 {
			return no
		}
		size |= int(b[i]&0x7F) << (7 * (i - 1))
		if b[i]&0x80 == 0 {
			n = i + 1
			break
		}
	}
	body := b[n:]
	if kind == 1 {
		if b[0] != 0x10 {
			return no
		}
		if len(body) < 8 {
			return more
		}
		if at(body, 0, "\x00\x04MQTT") || at(body, 0, "\x00\x06MQIs") {
			return final
		}
		return no
	}
	fits := len(body) >= size
	switch kind {
	case 2: // CONNACK
		fits = fits && b[0] == 0x20 && size >= 2 && body[0] <= 1
	case 3:
		fits = size >= 3 && len(body) >= 3 && be16(body)+2 <= size && be16(body) > 0 && printable(body[2:min(len(body), 2+be16(body))])
	case 4, 5, 7, 11:
		fits = fits && b[0]&15 == 0 && (size == 2 || kind != 11 && size == 3)
	case 6:
		fits = fits && b[0]&15 == 2 && size == 2
	case 8, 10:
		fits = fits && b[0]&15 == 2 && size >= 5
	case 9:
		fits = fits && b[0]&15 == 0 && size >= 3
	case 12, 13, 14:
		fits = b[0]&15 == 0 && size == 0
	default:
		fits = false
	}
	if !fits || len(body) > size && !mqttFollows(body[size:]) {
		return no
	}
	other := f.other(in)
	if len(other) == 0 {
		return more
	}
	if k := other[0] >> 4; len(other) >= 2 && k >= 2 && k <= 14 && int(other[1])+2 <= max(len(other), f.dirs[in.dir^1].first.size()) && (k == 3 || other[0]&15 == 0 || other[0]&15 == 2) {
		return final
	}
	return no
}

// mqttFollows tells whether more packets end where the bytes do; the last may be cut.
func mqttFollows(b []byte) bool {
	for len(b) >= 2 {
		if kind := b[0] >> 4; kind < 2 || kind > 14 || kind != 3 && b[0]&15 != 0 && b[0]&15 != 2 {
			return false
		}
		size, n := protoVarint(b[1:min(len(b), 5)])
		if n == 0 {
			return false
		}
		if size >= uint64(len(b)-1-n) {
			return b[0]>>4 == 3 || size == uint64(len(b)-1-n)
		}
		b = b[1+n+int(size):] //nolint:gosec // below len(b)
	}
	return true
}
