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

// lags are how long ago, by this machine's clock, a sensor's newest windows had ended when they came.
type lags struct {
	list [lagsKept]int64
	n    int
	skew int64 // in force
}

// skew is how far this machine's clock is ahead of that of the window's sensor, in whole slots. The lag that is least has the
// least of the way in it. Sums of one host are made of the windows of several sensors, and one that is a second older than
// another takes itself for the first after a clock was set back.
func (e *Engine) skew(w *flowv1.Window) int64 {
	if e.cfg.Now == nil {
		return 0
	}
	l := e.lags[w.GetSensor()]
	if l == nil {
		if len(e.lags) >= maxStreams {
			clear(e.lags)
		}
		l = &lags{}
		e.lags[w.GetSensor()] = l
	}
	l.list[l.n%lagsKept] = e.cfg.Now() - w.GetEndNs()
	l.n++
	least := l.list[0]
	for _, d := range l.list[:min(l.n, lagsKept)] {
		least = min(least, d)
	}
	if d := least - l.skew; max(d, -d) < skewMin || l.n < lagsKept/2 {
		return l.skew // it does not follow what only trembles, nor what a sensor had to keep until it was connected
	}
	if l.skew = least / int64(detect.Slot) * int64(detect.Slot); max(least, -least) < skewMin || max(least, -least) > skewMax {
		l.skew = 0
	}
	return l.skew
}
