package classify

import (
	"time"

	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
	"github.com/tidegate-mesh/tidegate/services/classify/internal/detect"
)

const (
	lagsKept = 64                 // windows from which it is told how far a sensor's clock is off
	skewMin  = int64(500e6)       // less is on its way, and the sums of a second bear it
	skewMax  = int64(time.Minute) // more is no clock that is off, but a capture's time
)

// sensor is what is known of one that sends windows.
type sensor struct {
	epoch, sequence uint64 // of its newest window
	// How long ago, by this machine's clock, its newest windows had ended when they came.
	lags [lagsKept]int64
	n    int
	skew int64 // in force
}

func (e *Engine) sensorOf(w *flowv1.Window) *sensor {
	s := e.sensors[w.GetSensor()]
	if s == nil {
		if len(e.sensors) >= maxStreams {
			clear(e.sensors)
		}
		s = &sensor{}
		e.sensors[w.GetSensor()] = s
	}
	return s
}

// repeats tells whether a window has come before: a sensor whose stream broke sends what was not acknowledged again.
func (s *sensor) repeats(w *flowv1.Window) bool {
	if w.GetEpoch() == s.epoch && w.GetSequence() <= s.sequence && w.GetSequence() > 0 {
		return true
	}
	s.epoch, s.sequence = w.GetEpoch(), w.GetSequence()
	return false
}

// skew is how far this machine's clock is ahead of that of the window's sensor, in whole slots. The lag that is least has the
// least of the way in it. Sums of one host are made of the windows of several sensors, and one that is a second older than
// another takes itself for the first after a clock was set back.
func (e *Engine) skew(s *sensor, w *flowv1.Window) int64 {
	if e.cfg.Now == nil {
		return 0
	}
	s.lags[s.n%lagsKept] = e.cfg.Now() - w.GetEndNs()
	s.n++
	least := s.lags[0]
	for _, d := range s.lags[:min(s.n, lagsKept)] {
		least = min(least, d)
	}
	if d := least - s.skew; max(d, -d) < skewMin || s.n < lagsKept/2 {
		return s.skew // it does not follow what only trembles, nor what a sensor had to keep until it was connected
	}
	if s.skew = least / int64(detect.Slot) * int64(detect.Slot); max(least, -least) < skewMin || max(least, -least) > skewMax {
		s.skew = 0
	}
	return s.skew
}
