package usual

import (
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
	"github.com/tidegate-mesh/tidegate/services/classify/internal/detect"
)

const (
	dayNs    = int64(86400e9)
	firstDay = int64(20_000)
)

var web = netip.MustParseAddr("192.0.2.7")

func everywhere(netip.Addr) *detect.Thresholds {
	t := detect.DefaultThresholds()
	return &t
}

func newSet() *Set { return New(Config{Days: 7, Factor: 3}, everywhere) }

// teach is one day of so many minutes, in which a rate's highest values are those that value tells.
func teach(s *Set, addr netip.Addr, m *Minute, day int64, minutes, rate int, value func(minute int) float64) {
	for i := range minutes {
		s.At(addr, m, (firstDay+day)*dayNs+int64(i)*minuteNs)
		m.peaks[rate] = max(m.peaks[rate], value(i))
	}
}

func always(v float64) func(int) float64 { return func(int) float64 { return v } }

// TestHistogram: the p95 that is read is at most one step of 19% above the true one, and never below it.
func TestHistogram(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // reproducible
	for range 200 {
		h, n := &host{}, 360+rng.IntN(1000)
		values := make([]float64, n)
		d := h.on(1)
		d.minutes, d.rates[detect.RateUDPPackets] = uint16(n), &histogram{} //nolint:gosec // small
		for i := range values {
			values[i] = math.Exp(rng.Float64()*10) * 100 // 100 to 2.2 million
			if b := bucketOf(detect.RateUDPPackets, values[i]); b >= 0 {
				d.rates[detect.RateUDPPackets][b]++
			}
		}
		slices.Sort(values)
		want := values[int(math.Ceil(quantile*float64(n)))-1]
		got, minutes := h.p95(detect.RateUDPPackets, 2)
		if minutes != n || got < want || got > want*math.Exp2(1.0/perOctave)*1.0001 {
			t.Fatalf("p95 of %d minutes %v, want %v to a fifth more", minutes, got, want)
		}
	}
	for v, want := range map[float64]int{0: -1, -1: -1, 624: -1, 625: 0, math.NaN(): -1, math.Inf(1): buckets - 1, 20_000: 20} {
		if got := bucketOf(detect.RateUDPPackets, v); got != want {
			t.Errorf("bucket of %v: %d, want %d", v, got, want)
		}
	}
	if got := upper(detect.RateUDPPackets, buckets-1); got != 20_000*2048 {
		t.Errorf("the highest value is %v", got)
	}
}

// TestFormula: max(configured, min(3 · p95, 1.25 · yesterday's, 10 · configured)), from six hours on.
func TestFormula(t *testing.T) {
	const own = 20_000.0
	step := math.Exp2(1.0 / perOctave)
	for _, c := range []struct {
		name    string
		minutes int
		value   func(day, minute int) float64
		want    []float64 // on the days after the first; 0: configured
	}{
		{"a third of the threshold and less", 1440, func(_, i int) float64 { return []float64{100, 5500}[i%2] }, []float64{0, 0, 0}},
		{"half of it", 1440, func(int, int) float64 { return 10_000 }, []float64{25_000, 31_250, 10_000 * 3 * step, 10_000 * 3 * step}},
		{"just below it, for ever", 1440, func(d, _ int) float64 { return 0.99 * own * math.Pow(Growth, float64(d)) },
			[]float64{25_000, 31_250, 39_062.5, 48_828.1, 61_035.2, 76_293.9, 95_367.4, 119_209, 149_012, 186_265, 200_000, 200_000, 200_000}},
		{"four minutes of a hundred", 1440, func(_, i int) float64 { return []float64{100, 15_000}[b2i(i%25 == 0)] }, []float64{0, 0, 0}},
		{"six minutes of a hundred", 1440, func(_, i int) float64 { return []float64{100, 15_000}[b2i(i%16 == 0)] }, []float64{25_000, 31_250}},
		{"less than six hours", 359, func(int, int) float64 { return 15_000 }, []float64{0, 25_000}},
		{"quiet again", 1440, func(d, _ int) float64 { return []float64{15_000, 100}[b2i(d > 0)] }, []float64{25_000, 31_250, 39_062.5, 48_828.1, 50_453.8, 50_453.8, 50_453.8, 0}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, m := newSet(), &Minute{}
			for day := range int64(len(c.want)) {
				teach(s, web, m, day, c.minutes, detect.RateUDPPackets, func(i int) float64 { return c.value(int(day), i) })
				s.At(web, m, (firstDay+day+1)*dayNs)
				got := 0.0
				if x := s.Thresholds(web); x != nil {
					got = x.UDPPackets
					if own := detect.DefaultThresholds(); x.SYN != own.SYN || x.UDPBits != own.UDPBits {
						t.Fatalf("another threshold was raised: %+v", x)
					}
				}
				if want := c.want[day]; math.Abs(got-want) > want/1000 {
					t.Fatalf("on day %d the threshold is %.1f, want %.1f", day+1, got, want)
				}
			}
		})
	}
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// TestAttacksTeachNothing: a minute with an attack in it is left out, and a level below 1 is what a minute has at most.
func TestAttacksTeachNothing(t *testing.T) {
	flood := detect.Floods()[1]
	if flood.Type != detect.UDPFlood {
		t.Fatal("the floods have another order")
	}
	th := detect.DefaultThresholds()
	measure := func(packets uint64) detect.Measure {
		return flood.Measure(&detect.Sums{Packets: packets, UDP: packets, Bytes: packets * 100}, &th)
	}
	for name, attack := range map[string]func(m *Minute){
		"a level of 1":       func(m *Minute) { x := measure(1e6); m.Take(&flood, &x) },
		"an attack was told": func(m *Minute) { m.Spoil() },
	} {
		s, m := newSet(), &Minute{}
		for i := range int64(1000) {
			s.At(web, m, firstDay*dayNs+i*minuteNs)
			x := measure(19_000)
			m.Take(&flood, &x)
			attack(m)
		}
		s.At(web, m, (firstDay+1)*dayNs)
		if hosts, raised, _ := s.Stats(); hosts != 0 || raised != 0 {
			t.Errorf("%s: %d hosts, %d raised", name, hosts, raised)
		}
	}
	s, m := newSet(), &Minute{}
	for i := range int64(1000) {
		s.At(web, m, firstDay*dayNs+i*minuteNs)
		x := measure(19_000)
		m.Take(&flood, &x)
	}
	s.At(web, m, (firstDay+1)*dayNs)
	if x := s.Thresholds(web); x == nil || x.UDPPackets != 25_000 || x.UDPBits != th.UDPBits {
		t.Errorf("without an attack: %+v", x)
	}
}

// TestBounds: no more hosts than MaxHosts; those learned about for an hour stay, others make room.
func TestBounds(t *testing.T) {
	s := newSet()
	host := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}) }
	minutes := make([]Minute, 3*MaxHosts)
	visit := func(i, from, n int) {
		for k := range n {
			s.At(host(i), &minutes[i], firstDay*dayNs+int64(from+k)*minuteNs)
			minutes[i].peaks[detect.RateICMP] = 400
		}
	}
	for i := range MaxHosts {
		visit(i, 1, 100-2*(i%2)*40) // of two hosts one for 100 minutes, one for 20
	}
	for i := range MaxHosts {
		visit(MaxHosts+i, 200, 100)
	}
	hosts, _, refused := s.Stats()
	if hosts != MaxHosts || refused == 0 {
		t.Errorf("%d hosts, %d refused", hosts, refused)
	}
	for i := 0; i < MaxHosts; i += 2 {
		if s.hosts[host(i)] == nil {
			t.Fatalf("host %d was displaced after 100 minutes", i)
		}
	}
	if s.hosts[host(1)] != nil || s.hosts[host(MaxHosts)] == nil {
		t.Error("hosts of 20 minutes did not make room")
	}
	// After a week without a word everything is forgotten.
	s.At(host(0), &Minute{}, (firstDay+9)*dayNs)
	if hosts, _, _ := s.Stats(); hosts != 0 {
		t.Errorf("%d hosts after nine days", hosts)
	}
}

// TestClock: a clock that jumps a year, back, or around midnight raises nothing twice and breaks nothing.
func TestClock(t *testing.T) {
	s, m := newSet(), &Minute{}
	teach(s, web, m, 0, 1440, detect.RateICMP, always(300))
	for range 10 {
		s.At(web, m, (firstDay+1)*dayNs)
		s.At(web, m, (firstDay+1)*dayNs-1)
	}
	s.At(web, m, (firstDay+1)*dayNs+minuteNs)
	if x := s.Thresholds(web); x == nil || x.ICMP != 625 {
		t.Fatalf("around midnight: %+v", x)
	}
	s.At(web, m, (firstDay+400)*dayNs)
	if x := s.Thresholds(web); x != nil {
		t.Fatalf("a year later: %+v", x)
	}
	teach(s, web, m, 2, 1440, detect.RateICMP, always(300))
	s.At(web, m, (firstDay+3)*dayNs)
	if x := s.Thresholds(web); x == nil || x.ICMP != 625 {
		t.Fatalf("after the clock was set right: %+v", x)
	}
}

// TestRoundTrip: what is exported and imported elsewhere gives the same thresholds, however often, late and under however
// many names it comes.
func TestRoundTrip(t *testing.T) {
	a, m := newSet(), &Minute{}
	stored := map[uint32]*eventv1.UsualDay{}
	store := func(s *Set) {
		for _, d := range s.Changed() {
			if n := proto.Size(d); n >= 1<<20 {
				t.Fatalf("a day takes %d bytes", n)
			}
			stored[d.GetDay()] = d
		}
	}
	other := netip.MustParseAddr("2001:db8::1")
	m6 := &Minute{}
	for day := range int64(5) {
		teach(a, web, m, day, 1440, detect.RateICMP, func(i int) float64 { return 300 + float64(i) })
		teach(a, other, m6, day, 700, detect.RateSYN, always(100))
		store(a)
	}
	now := (firstDay+4)*dayNs + 1439*minuteNs
	var days []*eventv1.UsualDay
	for _, d := range stored {
		days = append(days, d)
	}
	if len(days) != 5 {
		t.Fatalf("%d days", len(days))
	}
	b := newSet()
	if n := b.Import(append(days, days...), now); n != 2 {
		t.Fatalf("%d hosts", n)
	}
	same := func(what string, b *Set) {
		t.Helper()
		for _, h := range []netip.Addr{web, other} {
			if d := cmp.Diff(a.Thresholds(h), b.Thresholds(h)); d != "" {
				t.Errorf("%s: thresholds of %s differ (-want +got):\n%s", what, h, d)
			}
			if a.Thresholds(h) == nil {
				t.Errorf("%s: nothing is raised for %s", what, h)
			}
		}
	}
	same("restart", b)
	for _, s := range []*Set{a, b} {
		s.Again(uint32(firstDay + 4))
	}
	if d := cmp.Diff(a.export(uint32(firstDay+4)), b.export(uint32(firstDay+4)), protocmp.Transform()); d != "" {
		t.Errorf("a day changed on its way (-want +got):\n%s", d)
	}
	// A restart over midnight raises for the new day, as going on would have.
	c, next := newSet(), now+10*minuteNs
	c.Import(days, next)
	a.At(web, m, next)
	same("over midnight", c)
	c.Import(days, next)
	same("twice over midnight", c)
	// Late: minutes of today were learned meanwhile.
	late, ml := newSet(), &Minute{}
	for i := range int64(30) {
		late.At(web, ml, next+i*minuteNs)
		ml.peaks[detect.RateICMP] = 300
	}
	late.Import(days, next+30*minuteNs)
	same("late", late)
	if d := late.hosts[web].on(uint32(firstDay + 5)); d.minutes != 29 {
		t.Errorf("%d minutes of before the import are left, want 29", d.minutes)
	}
	// Lowered in the configuration: never more than the tenfold of it.
	low := New(Config{Days: 7, Factor: 3}, func(netip.Addr) *detect.Thresholds { x := detect.DefaultThresholds(); x.ICMP = 10; return &x })
	low.Import(days, now)
	if x := low.Thresholds(web); x == nil || x.ICMP > 100 {
		t.Errorf("a configured threshold of 10 became %+v", x)
	}
	none := New(Config{Days: 7, Factor: 3}, func(netip.Addr) *detect.Thresholds { return nil })
	if n := none.Import(days, now); n != 0 {
		t.Errorf("%d hosts that are not protected", n)
	}
}

// FuzzImport: whatever is stored, nothing panics, no threshold is below the configured or above its tenfold.
func FuzzImport(f *testing.F) {
	s, m := newSet(), &Minute{}
	teach(s, web, m, 0, 1440, detect.RateICMP, always(300))
	s.At(web, m, (firstDay+1)*dayNs)
	for _, d := range s.Changed() {
		b, err := proto.Marshal(d)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		d := &eventv1.UsualDay{}
		if proto.Unmarshal(b, d) != nil {
			return
		}
		s := newSet()
		s.Import([]*eventv1.UsualDay{d}, (firstDay+2)*dayNs)
		own := detect.DefaultThresholds()
		for addr := range s.hosts {
			if x := s.Thresholds(addr); x != nil {
				for rate := range detect.NumRates {
					if v := *x.Rate(rate); !(v >= *own.Rate(rate)) || v > Most**own.Rate(rate) {
						t.Fatalf("threshold %s is %v", detect.RateNames[rate], v)
					}
				}
			}
		}
		if len(s.hosts) > MaxHosts {
			t.Fatal("too many hosts")
		}
		for _, d := range s.Changed() {
			if proto.Size(d) >= 1<<20 {
				t.Fatal("a day is larger than a message may be")
			}
		}
	})
}
