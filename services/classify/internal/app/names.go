package app

// maxNames is how many names one generation holds.
const maxNames = 8192

// names interns strings, so that a name seen before costs no allocation. It keeps two generations: when the
// young one is full it becomes the old one, so memory is bounded and what is in use stays.
type names struct {
	young, old map[string]string
}

func (n *names) reset() {
	n.young = make(map[string]string, 64)
	n.old = nil
}

func (n *names) get(b []byte) string {
	if s, ok := n.young[string(b)]; ok {
		return s
	}
	s, ok := n.old[string(b)]
	if !ok {
		s = string(b)
	}
	if len(n.young) >= maxNames {
		n.old = n.young
		n.young = make(map[string]string, maxNames)
	}
	n.young[s] = s
	return s
}
