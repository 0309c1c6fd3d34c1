package loadgen

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tidegate-mesh/tidegate/libs/afxdp"
)

// Sent is what a Sender did. Times are of CLOCK_MONOTONIC in ns, the clock of the XDP program's
// first_drop_ns: FirstNs is just before the first frame went out.
type Sent struct {
	Frames  uint64
	FirstNs uint64
	LastNs  uint64
}

// Sender sends frames out of one interface by AF_XDP. One goroutine; it must be opened in the interface's
// network namespace.
type Sender struct {
	sock   afxdp.Socket
	frames [][]byte
}

const (
	sendBatch  = 64
	frameBytes = 1600
)

// NewSender opens a sender on queue of iface.
func NewSender(iface string, queue int) (*Sender, error) {
	sock, err := afxdp.Open(afxdp.DefaultConfig(iface, queue))
	if err != nil {
		return nil, fmt.Errorf("open a sender on %s: %w", iface, err)
	}
	s := &Sender{sock: sock, frames: make([][]byte, sendBatch)}
	for i := range s.frames {
		s.frames[i] = make([]byte, 0, frameBytes)
	}
	return s, nil
}

// Close closes the socket.
func (s *Sender) Close() error { return s.sock.Close() }

// Send makes frames with next and sends pps of them a second, evenly, until ctx ends or count were sent
// (0: no limit). A sender that falls behind does not catch up more than 20 ms.
func (s *Sender) Send(ctx context.Context, next func([]byte) []byte, pps int, count uint64) (Sent, error) {
	var out Sent
	const slack = 20 * time.Millisecond
	start := time.Now()
	owed := func() int { return int(time.Since(start).Seconds()*float64(pps)) - int(out.Frames) }
	for ctx.Err() == nil && (count == 0 || out.Frames < count) {
		n := min(owed(), sendBatch)
		if count != 0 {
			n = min(n, int(count-out.Frames))
		}
		if n <= 0 {
			// Sleeping less than the kernel's timer slack would spin.
			time.Sleep(200 * time.Microsecond)
			continue
		}
		if late := owed() - int(slack.Seconds()*float64(pps)) - sendBatch; late > 0 {
			start = start.Add(time.Duration(float64(late) / float64(pps) * float64(time.Second)))
		}
		for i := range n {
			s.frames[i] = next(s.frames[i][:0])
		}
		now := monotonic()
		if out.FirstNs == 0 {
			out.FirstNs = now
		}
		if err := s.flush(ctx, s.frames[:n]); err != nil {
			return out, err
		}
		out.Frames += uint64(n)
		out.LastNs = now
	}
	return out, nil
}

func (s *Sender) flush(ctx context.Context, frames [][]byte) error {
	for len(frames) > 0 && ctx.Err() == nil {
		n, err := s.sock.Send(frames)
		if err != nil {
			return fmt.Errorf("send frames: %w", err)
		}
		frames = frames[n:]
		if err := s.sock.Flush(); err != nil {
			return fmt.Errorf("send frames: %w", err)
		}
	}
	return nil
}

func monotonic() uint64 {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) != nil {
		return 0
	}
	return uint64(ts.Nano())
}
