package ingest

import (
	"math"
	"testing"
	"time"
)

// TestCaptureClockBounds: a file whose stamps jump far ahead and back, again and again, does not carry the clock to where
// adding a timeout to it overflows.
func TestCaptureClockBounds(t *testing.T) {
	var c captureClock
	last := int64(0)
	for range 64 {
		for _, stamp := range []int64{captureStart, math.MaxInt64} {
			now := c.at(stamp)
			if now < last || now > math.MaxInt64/2 {
				t.Fatalf("the clock went from %d to %d", last, now)
			}
			last = now
		}
	}
}

// TestReplayOfBrokenStamps: the last stamp once brought the clock to its end, where the next window never ended.
func TestReplayOfBrokenStamps(t *testing.T) {
	h := between("192.0.2.1", "198.51.100.1")
	frame := h.AppendUDP(nil, 7, 9, []byte("x"))
	const steps, far = 10, math.MaxInt64/4 - captureStart
	var frames []frameAt
	for range steps {
		frames = append(frames, frameAt{0, frame}, frameAt{time.Duration(far), frame})
	}
	frames = append(frames, frameAt{0, frame}, frameAt{time.Duration(math.MaxInt64 - 1 - steps*far - captureStart), frame})
	l, err := Replay(t.Context(), ReplayConfig{}, capture(t, frames), &record{})
	if err != nil || l.Packets != 2*steps+2 || l.Difference != 0 {
		t.Errorf("%+v, %v", l, err)
	}
}
