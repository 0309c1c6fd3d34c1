package app

// berLength reads a length of ASN.1's basic encoding (X.690 8.1.3); size 0 when there is none.
func berLength(b []byte) (length, size int) {
	if len(b) == 0 {
		return 0, 0
	}
	if b[0] < 0x80 {
		return int(b[0]), 1
	}
	n := int(b[0] & 0x7F)
	if n < 1 || n > 4 || len(b) < 1+n {
		return 0, 0
	}
	for _, c := range b[1 : 1+n] {
		length = length<<8 | int(c)
	}
	return length, 1 + n
}

// element takes the element that b begins with: its tag, its value as far as it is there, what is behind it.
func element(b []byte) (tag byte, value, rest []byte, whole bool) {
	if len(b) < 2 {
		return 0, nil, nil, false
	}
	size, n := berLength(b[1:])
	if n == 0 {
		return 0, nil, nil, false
	}
	value = b[1+n:]
	if size > len(value) {
		return b[0], value, nil, false
	}
	return b[0], value[:size], value[size:], true
}
