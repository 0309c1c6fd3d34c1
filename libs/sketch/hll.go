// Package sketch holds the fixed-size summaries that windows carry.
package sketch

import (
	"math"
	"math/bits"
)

// Registers is how many registers an HLL has: a standard error of 1.04/√256 = 6.5%, and nearly exact
// below about 100 distinct values by linear counting.
const Registers = 256

// HLL estimates how many distinct values were added (Flajolet et al. 2007). It has a fixed size and no
// pointers, so windows hold thousands of them without allocation; the zero value is empty. A general
// library's sketch starts sparse and allocates as it grows, which the per-packet path must not do.
type HLL [Registers]uint8

// Add adds a value by its 64-bit hash, whose bits must be well mixed (see Mix).
func (h *HLL) Add(hash uint64) {
	rank := uint8(bits.LeadingZeros64(hash<<8|1<<7) + 1) //nolint:gosec // at most 57
	if i := hash >> 56; h[i] < rank {
		h[i] = rank
	}
}

// Merge adds all of o's values. Registers of other lengths are ignored.
func (h *HLL) Merge(o []byte) {
	if len(o) != Registers {
		return
	}
	for i, r := range o {
		if h[i] < r {
			h[i] = r
		}
	}
}

// Reset empties h.
func (h *HLL) Reset() { *h = HLL{} }

// Estimate is the estimated number of distinct values.
func (h *HLL) Estimate() float64 {
	const m = float64(Registers)
	sum, zeros := 0.0, 0
	for _, r := range h {
		sum += 1 / float64(uint64(1)<<(r&63))
		if r == 0 {
			zeros++
		}
	}
	e := 0.7213 / (1 + 1.079/m) * m * m / sum
	if e <= 2.5*m && zeros > 0 {
		return m * math.Log(m/float64(zeros))
	}
	return e
}

// Mix spreads the bits of x over all 64 (the finaliser of SplitMix64).
func Mix(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}
