package afxdp

import (
	"errors"
	"fmt"
)

// Pair is the sockets of two queues that forward to each other.
type Pair struct {
	A, B Socket
	// Copies says why Forward copies between the two; nil when they share frame memory.
	Copies error
}

var errAsavieShares = errors.New("the asavie backend has a frame memory for each socket")

// OpenPair opens two sockets, of two interfaces or queues, that share frame memory (XDP_SHARED_UMEM across devices,
// kernel 5.10): memory is as large as that of both together, each socket with its own four rings. Where kernel or driver
// refuses (two drivers of which only the first has zero-copy, for one), each has its own memory and Pair.Copies the reason.
// An error is one that Open would give too.
func OpenPair(a, b Config) (Pair, error) {
	aIndex, err := a.resolve()
	if err != nil {
		return Pair{}, err
	}
	bIndex, err := b.resolve()
	if err != nil {
		return Pair{}, err
	}
	refused := errAsavieShares
	switch {
	case a.Backend == Asavie || b.Backend == Asavie:
	case a.FrameSize != b.FrameSize:
		refused = fmt.Errorf("frame sizes differ: %d and %d bytes", a.FrameSize, b.FrameSize)
	default:
		first, second, err := openNativePair(a, b, aIndex, bIndex)
		if err == nil {
			return Pair{A: first, B: second}, nil
		}
		refused = fmt.Errorf("share frame memory of %s and %s, queues %d and %d: %w", a.Iface, b.Iface, a.Queue, b.Queue, err)
	}
	// What is wrong with one socket alone shows here again.
	first, err := Open(a)
	if err != nil {
		return Pair{}, err
	}
	second, err := Open(b)
	if err != nil {
		return Pair{}, errors.Join(err, first.Close())
	}
	return Pair{A: first, B: second, Copies: refused}, nil
}

// copier forwards between sockets that share no memory.
type copier struct{ data [][]byte }

func (c *copier) forward(frames []Frame, to Socket) (int, error) {
	c.data = c.data[:0]
	for i := range frames {
		c.data = append(c.data, frames[i].Data)
	}
	return to.Send(c.data)
}
