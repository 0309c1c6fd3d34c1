package usual

import (
	"net/netip"
	"slices"

	"github.com/tidegate-mesh/tidegate/libs/flow"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
	"github.com/tidegate-mesh/tidegate/services/classify/internal/detect"
)

// Changed are the days with something new since the last call, the newest first, without node and time. A message is below
// 1 MiB however much was learned.
func (s *Set) Changed() []*eventv1.UsualDay {
	var out []*eventv1.UsualDay
	for number := range s.changed {
		out = append(out, s.export(number))
	}
	clear(s.changed)
	slices.SortFunc(out, func(a, b *eventv1.UsualDay) int { return int(int64(b.GetDay()) - int64(a.GetDay())) })
	return out
}

// Again: a day was not stored, Changed is to return it again.
func (s *Set) Again(number uint32) { s.changed[number] = true }

func (s *Set) export(number uint32) *eventv1.UsualDay {
	out := &eventv1.UsualDay{Day: number, Rates: detect.RateNames[:]}
	addrs := make([]netip.Addr, 0, len(s.hosts))
	for addr := range s.hosts {
		addrs = append(addrs, addr)
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	for _, addr := range addrs {
		h := s.hosts[addr]
		i := slices.IndexFunc(h.days, func(d day) bool { return d.number == number })
		if i < 0 {
			continue
		}
		d := &h.days[i]
		a := addr.As16()
		x := &eventv1.UsualHost{Addr: a[:], Minutes: uint32(d.minutes)}
		for rate, c := range d.rates {
			r := &eventv1.UsualRate{Rate: uint32(rate)} //nolint:gosec // few
			if number == h.since {
				r.Threshold = h.thresholds[rate]
			}
			if c != nil {
				for b, n := range c {
					if n > 0 {
						r.Buckets, r.Counts = append(r.Buckets, uint32(b)), append(r.Counts, uint32(n)) //nolint:gosec // at most buckets
					}
				}
			}
			if r.Threshold > 0 || len(r.Buckets) > 0 {
				x.Rates = append(x.Rates, r)
			}
		}
		out.Hosts = append(out.Hosts, x)
	}
	return out
}

// Import takes in what classifiers stored, for the day of now (Unix ns). Of several accounts of one host and day the one
// with the most minutes counts, so that the same may come twice and under several names; of their thresholds the highest. The
// thresholds of an earlier day are raised for today. What makes no sense is left out. It returns how many hosts are known now.
func (s *Set) Import(days []*eventv1.UsualDay, now int64) int {
	today := uint32(now / minuteNs / dayMinutes) //nolint:gosec // days since 1970
	s.roll(today)
	days = slices.Clone(days)
	slices.SortStableFunc(days, func(a, b *eventv1.UsualDay) int { return int(int64(a.GetDay()) - int64(b.GetDay())) })
	for _, d := range days {
		if d.GetDay() > today || int64(d.GetDay()) < int64(today)-int64(s.cfg.Days) {
			continue
		}
		places := make([]int, len(d.GetRates()))
		for i, name := range d.GetRates() {
			places[i] = slices.Index(detect.RateNames[:], name) // -1: of another version
		}
		for _, x := range d.GetHosts() {
			s.take(d.GetDay(), places, x)
		}
	}
	for len(s.hosts) > MaxHosts {
		s.dropLightest()
	}
	for addr, h := range s.hosts {
		if !s.trim(h) || s.configured(addr) == nil {
			delete(s.hosts, addr)
			continue
		}
		if h.since < today {
			s.raise(addr, h)
			h.on(today)
			s.changed[today] = true
		}
		s.apply(addr, h)
	}
	return len(s.hosts)
}

// take merges one host's day.
func (s *Set) take(number uint32, places []int, x *eventv1.UsualHost) {
	if len(x.GetAddr()) != 16 || x.GetMinutes() > dayMinutes {
		return
	}
	addr := flow.AddrBytes(x.GetAddr())
	h := s.hosts[addr]
	if h == nil {
		h = &host{}
		s.hosts[addr] = h
	}
	h.lastMinute = max(h.lastMinute, int64(number)*dayMinutes)
	in := day{number: number, minutes: uint16(x.GetMinutes())} //nolint:gosec // at most a day's
	var thresholds [detect.NumRates]float64
	for _, r := range x.GetRates() {
		if int(r.GetRate()) >= len(places) || places[r.GetRate()] < 0 || len(r.GetBuckets()) != len(r.GetCounts()) {
			continue
		}
		rate, c, total := places[r.GetRate()], &histogram{}, uint32(0)
		if v := r.GetThreshold(); v > 0 { // not NaN
			thresholds[rate] = v
		}
		for i, b := range r.GetBuckets() {
			if n := r.GetCounts()[i]; b < buckets && n <= x.GetMinutes() && total+n <= x.GetMinutes() {
				c[b] += uint16(n) //nolint:gosec // at most a day's
				total += n
			}
		}
		if total > 0 {
			in.rates[rate] = c
		}
	}
	if d := h.on(number); in.minutes > d.minutes {
		*d = in
	}
	if thresholds == [detect.NumRates]float64{} || number < h.since {
		return
	}
	if number > h.since {
		h.since, h.thresholds = number, thresholds
		return
	}
	for rate, v := range thresholds {
		h.thresholds[rate] = max(h.thresholds[rate], v)
	}
}

func (s *Set) dropLightest() {
	var lightest netip.Addr
	least := -1
	for addr, h := range s.hosts {
		if n := h.minutes(); least < 0 || n < least || n == least && addr.Less(lightest) {
			lightest, least = addr, n
		}
	}
	delete(s.hosts, lightest)
}
