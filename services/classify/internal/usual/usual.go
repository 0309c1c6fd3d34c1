// Package usual learns which rates are usual for a host and raises its thresholds accordingly.
//
// The formula. Of each minute in which a window told of the host, the highest value of each rate (over one second, as
// detectors measure it) goes into a histogram of the day. A minute that saw an attack, or any level of 1, is left out whole.
// When a day (UTC) begins, for each rate
//
//	learned   = Factor · p95 of the minutes of the last Days days, of at least MinMinutes
//	threshold = max(configured, min(learned, Growth · yesterday's threshold, Most · configured))
//
// So it is never below the configured one, changes at midnight only, and an attacker who sends just below it for months
// gets a quarter more a day and the tenfold at most.
package usual

import (
	"math"
	"net/netip"
	"slices"

	"github.com/tidegate-mesh/tidegate/services/classify/internal/detect"
)

const (
	MinMinutes = 360  // minutes learned from before a threshold moves
	Growth     = 1.25 // times yesterday's threshold
	Most       = 10   // times the configured threshold
	MaxHosts   = 256  // hosts that are learned about; the others have the configured thresholds
	MaxDays    = 28

	quantile = 0.95
	// A newcomer takes the place of a host that was learned about for at most so many minutes, or that was not seen for a day.
	lightMinutes = 60

	minuteNs   = int64(60e9)
	dayMinutes = 24 * 60
)

// Histograms have four buckets to the doubling (a step is 19%), from a 32nd of the built-in threshold to 2,048 times of it.
// What is below is negligible: it raises nothing.
const (
	buckets   = 64
	perOctave = 4
	lowest    = 1.0 / 32
)

type histogram [buckets]uint16

// units are the lower ends of bucket 0, by rate.
var units = func() (u [detect.NumRates]float64) {
	t := detect.DefaultThresholds()
	for i := range u {
		u[i] = lowest * *t.Rate(i)
	}
	return u
}()

// bucketOf is -1 for what is negligible.
func bucketOf(rate int, v float64) int {
	if v < units[rate] || math.IsNaN(v) {
		return -1
	}
	return int(min(perOctave*math.Log2(v/units[rate]), buckets-1))
}

// upper is the upper end of a bucket.
func upper(rate, bucket int) float64 {
	return units[rate] * math.Exp2(float64(bucket+1)/perOctave)
}

// day is what was learned about a host on one day.
type day struct {
	number  uint32 // days since 1970
	minutes uint16
	rates   [detect.NumRates]*histogram // nil: negligible all day
}

// host is what is known of a host.
type host struct {
	days       []day                    // the last ones, in order; the newest may be today
	thresholds [detect.NumRates]float64 // in force where above the configured ones, else 0
	since      uint32                   // day on which these were set; 0: never
	limits     *detect.Thresholds       // of all rates; nil when nothing is raised
	lastMinute int64
}

// p95 is the upper end of the bucket below which 95% of the minutes before today are, of so many.
func (h *host) p95(rate int, today uint32) (value float64, minutes int) {
	var sum [buckets]int
	heavy := 0
	for i := range h.days {
		d := &h.days[i]
		if d.number >= today {
			continue
		}
		minutes += int(d.minutes)
		if c := d.rates[rate]; c != nil {
			for b, n := range c {
				sum[b] += int(n)
				heavy += int(n)
			}
		}
	}
	rank := int(math.Ceil(quantile * float64(minutes))) // the minute looked for, counted from the lightest
	at := minutes - heavy
	if minutes == 0 || rank <= at {
		return 0, minutes
	}
	for b, n := range sum {
		if at += n; at >= rank {
			return upper(rate, b), minutes
		}
	}
	return 0, minutes
}

func (h *host) minutes() (n int) {
	for i := range h.days {
		n += int(h.days[i].minutes)
	}
	return n
}

// on is a day of the host, made if need be.
func (h *host) on(number uint32) *day {
	i, found := slices.BinarySearchFunc(h.days, number, func(d day, n uint32) int { return int(int64(d.number) - int64(n)) })
	if !found {
		h.days = slices.Insert(h.days, i, day{number: number})
	}
	return &h.days[i]
}

// Config says how much is learned.
type Config struct {
	Days   int     // 1 … MaxDays
	Factor float64 // above 1
}

// Set is what is usual for the hosts. It has no lock.
type Set struct {
	cfg        Config
	configured func(netip.Addr) *detect.Thresholds // nil: the host is not protected
	hosts      map[netip.Addr]*host
	today      uint32
	changed    map[uint32]bool // days to be stored
	refused    uint64
}

// New makes an empty set; configured tells what the configuration says about a host.
func New(cfg Config, configured func(netip.Addr) *detect.Thresholds) *Set {
	return &Set{cfg: cfg, configured: configured, hosts: make(map[netip.Addr]*host), changed: make(map[uint32]bool)}
}

// Minute collects what one minute brought a host.
type Minute struct {
	number int64 // since 1970
	peaks  [detect.NumRates]float64
	attack bool
}

// Take notes what a measure of a flood found.
func (m *Minute) Take(d *detect.Flood, x *detect.Measure) {
	if x.Level >= 1 {
		m.attack = true
		return
	}
	d.Rates(x, func(rate int, v float64) { m.peaks[rate] = max(m.peaks[rate], v) })
}

// Spoil: there was an attack, so nothing is learned from this minute.
func (m *Minute) Spoil() { m.attack = true }

// At begins the minute of a time (Unix ns) unless m is that one; what m had before is learned.
func (s *Set) At(addr netip.Addr, m *Minute, now int64) {
	number := now / minuteNs
	if m.number == number {
		return
	}
	today := uint32(number / dayMinutes) //nolint:gosec // days since 1970
	if s.today == 0 {
		s.roll(today)
	}
	if m.number != 0 && !m.attack {
		s.learn(addr, m)
	}
	*m = Minute{number: number}
	s.roll(today)
}

// learn takes in a minute, of today or of the day that just ended.
func (s *Set) learn(addr netip.Addr, m *Minute) {
	number := uint32(m.number / dayMinutes) //nolint:gosec // days since 1970
	if number > s.today || int64(number) < int64(s.today)-int64(s.cfg.Days) {
		return // the clock was set
	}
	h := s.hosts[addr]
	if h == nil {
		if !s.worth(addr, m) || !s.room(m.number) {
			return
		}
		h = &host{}
		s.hosts[addr] = h
	}
	h.lastMinute = m.number
	d := h.on(number)
	if d.minutes >= dayMinutes {
		return // a clock that was set back
	}
	d.minutes++
	for rate, v := range m.peaks {
		if b := bucketOf(rate, v); b >= 0 {
			if d.rates[rate] == nil {
				d.rates[rate] = &histogram{}
			}
			d.rates[rate][b]++
		}
	}
	s.changed[number] = true
}

// worth: a host is learned about from the first minute on of which the like could raise a threshold.
func (s *Set) worth(addr netip.Addr, m *Minute) bool {
	t := s.configured(addr)
	if t == nil {
		return false
	}
	for rate, v := range m.peaks {
		if v*s.cfg.Factor > *t.Rate(rate) {
			return true
		}
	}
	return false
}

// room makes place for a host, if it can without losing one that was learned about for long.
func (s *Set) room(minute int64) bool {
	if len(s.hosts) < MaxHosts {
		return true
	}
	var lightest netip.Addr
	least := math.MaxInt
	for addr, h := range s.hosts {
		n := h.minutes()
		if minute-h.lastMinute > dayMinutes {
			n = 0
		}
		if n < least || n == least && addr.Less(lightest) {
			lightest, least = addr, n
		}
	}
	if least > lightMinutes {
		s.refused++
		return false
	}
	delete(s.hosts, lightest)
	return true
}

// roll begins a day. Days in the future, as a clock leaves them that was set back, are forgotten.
func (s *Set) roll(today uint32) {
	if today == s.today {
		return
	}
	s.today = today
	for addr, h := range s.hosts {
		if !s.trim(h) {
			delete(s.hosts, addr)
			continue
		}
		s.raise(addr, h)
		h.on(today)
	}
	for d := range s.changed {
		if d > today {
			delete(s.changed, d)
		}
	}
	if len(s.hosts) > 0 {
		s.changed[today] = true // the thresholds of the day
	}
}

// trim forgets days that are too old or not yet; false when nothing is left.
func (s *Set) trim(h *host) bool {
	h.days = slices.DeleteFunc(h.days, func(d day) bool { return int64(d.number) < int64(s.today)-int64(s.cfg.Days) || d.number > s.today })
	return h.minutes() > 0
}

// raise sets the thresholds of the day that begins, once.
func (s *Set) raise(addr netip.Addr, h *host) {
	t := s.configured(addr)
	if t == nil || h.since >= s.today {
		return
	}
	for rate := range h.thresholds {
		own := *t.Rate(rate)
		p95, minutes := h.p95(rate, s.today)
		if minutes < MinMinutes {
			return
		}
		h.since = s.today
		next := min(s.cfg.Factor*p95, Growth*max(own, h.thresholds[rate]), Most*own)
		if next <= own {
			next = 0
		}
		h.thresholds[rate] = next
	}
	s.apply(addr, h)
}

// apply makes h.limits of h.thresholds.
func (s *Set) apply(addr netip.Addr, h *host) {
	h.limits = nil
	t := s.configured(addr)
	if t == nil {
		return
	}
	limits, raised := *t, false
	for rate, v := range h.thresholds {
		own := *t.Rate(rate)
		if v = min(v, Most*own); v > own {
			*limits.Rate(rate), raised = v, true
		}
	}
	if raised {
		h.limits = &limits
	}
}

// Thresholds are those in force for a host; nil: the configured ones.
func (s *Set) Thresholds(addr netip.Addr) *detect.Thresholds {
	if h := s.hosts[addr]; h != nil {
		return h.limits
	}
	return nil
}

// Raised lists the hosts with a threshold above the configured one, in order, with these thresholds by name.
func (s *Set) Raised() (hosts []netip.Addr, thresholds []map[string]float64) {
	for addr, h := range s.hosts {
		if h.limits != nil {
			hosts = append(hosts, addr)
		}
	}
	slices.SortFunc(hosts, netip.Addr.Compare)
	for _, addr := range hosts {
		own, m := s.configured(addr), make(map[string]float64)
		for rate, name := range detect.RateNames {
			if v := *s.hosts[addr].limits.Rate(rate); v > *own.Rate(rate) {
				m[name] = v
			}
		}
		thresholds = append(thresholds, m)
	}
	return hosts, thresholds
}

// Stats are how many hosts are learned about, how many of them have raised thresholds, and how often there was no room for one.
func (s *Set) Stats() (hosts, raised, refused uint64) {
	for _, h := range s.hosts {
		if h.limits != nil {
			raised++
		}
	}
	return uint64(len(s.hosts)), raised, s.refused
}
