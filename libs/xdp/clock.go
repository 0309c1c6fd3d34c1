package xdp

import (
	"time"

	"golang.org/x/sys/unix"
)

func clock(id int32) uint64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(id, &ts); err != nil {
		return 0 // both clocks used here exist on every Linux
	}
	return uint64(ts.Nano()) //nolint:gosec // clocks are positive
}

// MonotonicNow is CLOCK_MONOTONIC in nanoseconds, the clock of all kernel times in this package.
func MonotonicNow() uint64 { return clock(unix.CLOCK_MONOTONIC) }

// MonotonicToUnix turns a CLOCK_MONOTONIC time into a wall-clock time by the present offset between the
// clocks; it is as good as the wall clock was steady since. 0 gives the zero Time.
func MonotonicToUnix(ns uint64) time.Time {
	if ns == 0 {
		return time.Time{}
	}
	offset := int64(clock(unix.CLOCK_REALTIME)) - int64(MonotonicNow()) //nolint:gosec // below 2^63 until 2262
	return time.Unix(0, int64(ns)+offset)                               //nolint:gosec // as above
}

// expiry is the kernel's form of an expiry time: 0 = never, 1 = already over.
func expiry(t time.Time) uint64 {
	if t.IsZero() {
		return 0
	}
	left := time.Until(t)
	now := MonotonicNow()
	if left <= 0 && uint64(-left) >= now { //nolint:gosec // -left is positive here
		return 1
	}
	return uint64(int64(now) + int64(left)) //nolint:gosec // positive as tested above
}
