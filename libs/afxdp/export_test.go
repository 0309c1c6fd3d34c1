package afxdp

// Inventory numbers the frames that a native socket holds: received ones, and spare ones of the transmit half. all is how
// many its frame memory has. Of other sockets it is empty.
func Inventory(s Socket) (held, spare []int, all int) {
	n, ok := s.(*native)
	if !ok {
		return nil, nil, 0
	}
	number := func(addrs []uint64) []int {
		var f []int
		for _, a := range addrs {
			f = append(f, int(a)/n.size) //nolint:gosec // within the memory
		}
		return f
	}
	return number(n.held), number(n.spare), len(n.umem) / n.size
}
