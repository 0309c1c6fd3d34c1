package app

// sshStream recognises the identification string (RFC 4253 4.2). A server may send other lines before it;
// those few are not worth the confusion with other text protocols.
func sshStream(_ *Flow, in *input) outcome {
	const prefix = "SSH-"
	n := min(len(in.data), len(prefix))
	if string(in.data[:n]) != prefix[:n] {
		return no
	}
	if n < len(prefix) {
		return more
	}
	version := in.data[n:]
	if len(version) < 2 {
		return more
	}
	if (version[0] != '1' && version[0] != '2') || version[1] != '.' {
		return no
	}
	return final
}
