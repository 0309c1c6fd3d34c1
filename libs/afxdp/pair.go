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

// Reasons of this package not to share.
var (
	errAsavieShares = errors.New("the asavie backend has a frame memory for each socket")
	errUnlike       = errors.New("frame size, zero-copy and need-wakeup differ, and are one for a frame memory")
)

// OpenPair opens two sockets, of two interfaces or queues, that share frame memory (XDP_SHARED_UMEM across devices,
// kernel 5.10): memory is as large as that of both together, each socket with its own four rings. Where kernel or driver
// refuses, or one driver alone has zero-copy, each has its own memory and Pair.Copies the reason.
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
	case a.FrameSize != b.FrameSize || a.ZeroCopy != b.ZeroCopy || a.NeedWakeup != b.NeedWakeup:
		refused = errUnlike
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

// openNativePair opens two sockets in one frame memory.
func openNativePair(a, b Config, aIndex, bIndex int) (_, _ *native, err error) {
	m, err := mapMemory(a, b)
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, m.release()) }()
	first, err := newNative(a, aIndex, m, 0, nil)
	if err != nil {
		return nil, nil, err
	}
	if a.ZeroCopy == ZeroCopyAuto && !first.zeroCopy && hasZeroCopy(b) {
		return nil, nil, errors.Join(fmt.Errorf("the driver of %s has zero-copy, that of %s has not", b.Iface, a.Iface), first.Close())
	}
	second, err := newNative(b, bIndex, m, a.partSize(), first)
	if err != nil {
		return nil, nil, errors.Join(err, first.Close())
	}
	return first, second, nil
}

// hasZeroCopy tries: the second socket in a memory would take the first one's mode and say nothing.
func hasZeroCopy(cfg Config) bool {
	cfg.ZeroCopy, cfg.Frames, cfg.RxRing, cfg.TxRing = ZeroCopyRequire, 64, 64, 64
	s, err := Open(cfg)
	return err == nil && s.Close() == nil
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
