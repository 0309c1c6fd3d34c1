package app

import (
	"bytes"
	"encoding/binary"
)

// sshStream recognises the identification string (RFC 4253 4.2), and reads HASSH from the client's key exchange
// (RFC 4253 7.1). A server may send other lines before its string; those few are not worth the confusion with
// other text protocols.
func sshStream(f *Flow, in *input) outcome {
	const prefix = "SSH-"
	b := in.data
	n := min(len(b), len(prefix))
	if string(b[:n]) != prefix[:n] {
		return no
	}
	if n < len(prefix) {
		return more
	}
	version := b[n:]
	if len(version) < 2 {
		return more
	}
	if (version[0] != '1' && version[0] != '2') || version[1] != '.' {
		return no
	}
	if in.dir != 0 || version[0] == '1' && !bytes.HasPrefix(version, []byte("1.99")) {
		return label
	}
	end := bytes.IndexByte(b, '\n')
	if end < 0 {
		if len(b) > 255 {
			return final
		}
		return label
	}
	return f.keyExchange(b[end+1:])
}

// keyExchange reads the packet with SSH_MSG_KEXINIT.
func (f *Flow) keyExchange(b []byte) outcome {
	const kexInit = 20
	if len(b) < 6 {
		return label
	}
	size := int(binary.BigEndian.Uint32(b))
	if b[5] != kexInit || size < 17+10*4 || size > MaxBytes {
		return final
	}
	if len(b) < 4+size {
		return label
	}
	b = b[6+16 : 4+size] // behind the cookie
	// Key exchange, host key, then per direction ciphers, MACs, compression. HASSH is of the client's own.
	out := f.engine.text[:0]
	for i := range 8 {
		name := list(b, 4)
		if len(b) < 4 || name == nil {
			return final
		}
		b = b[4+len(name):]
		switch i {
		case 0, 2, 4, 6:
			if i > 0 {
				out = append(out, ';')
			}
			out = append(out, name...)
		}
	}
	f.facts.HASSH = f.engine.md5(out)
	return final
}
