package live

import (
	"cmp"
	"slices"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/api"
)

const (
	rateSpan   = time.Second     // rates are over about so long
	rateOldest = 5 * time.Second // counters from before say nothing about now
	topTalkers = 10
)

// meter turns counters into rates. It belongs to one goroutine.
type meter struct {
	samples map[ifaceKey][]sample // oldest first
}

type ifaceKey struct{ sensor, iface string }

type sample struct {
	at             time.Time
	packets, bytes map[string]uint64
}

// rates adds the counters read at now and gives packets and bits a second by XDP action over all interfaces that
// are there. An interface counts from its second reading on; one whose counters went back (made anew, restarted)
// or that was away for long begins again.
func (m *meter) rates(now time.Time, sensors []api.Sensor) (pps, bps map[string]float64) {
	pps, bps = map[string]float64{}, map[string]float64{}
	kept := make(map[ifaceKey][]sample, len(m.samples))
	for _, s := range sensors {
		for _, i := range s.Interfaces {
			k := ifaceKey{s.Name, i.Name}
			next := sample{at: now, packets: i.XDPPackets, bytes: i.XDPBytes}
			list := m.samples[k]
			if n := len(list); n > 0 && (decreased(list[n-1].packets, next.packets) || decreased(list[n-1].bytes, next.bytes)) {
				list = nil
			}
			// The newest that is a whole span old is the base; what is older is of no use.
			for len(list) > 1 && now.Sub(list[1].at) >= rateSpan-rateSpan/20 || len(list) > 0 && now.Sub(list[0].at) > rateOldest {
				list = list[1:]
			}
			if len(list) > 0 {
				seconds := now.Sub(list[0].at).Seconds()
				add(pps, list[0].packets, next.packets, 1/seconds)
				add(bps, list[0].bytes, next.bytes, 8/seconds)
			}
			kept[k] = append(slices.Clone(list), next)
		}
	}
	for k, list := range m.samples { // a sensor that misses one answer is not begun again
		if _, ok := kept[k]; !ok && now.Sub(list[len(list)-1].at) <= rateOldest {
			kept[k] = list
		}
	}
	m.samples = kept
	return pps, bps
}

func decreased(before, after map[string]uint64) bool {
	for k, v := range before {
		if after[k] < v {
			return true
		}
	}
	return false
}

func add(sum map[string]float64, before, after map[string]uint64, factor float64) {
	for k, v := range after {
		sum[k] += float64(v-before[k]) * factor
	}
}

// talkers adds up the sensors' heaviest addresses.
func talkers(sensors []api.Sensor) (dst, src []api.Talker) {
	d, s := map[string]api.Talker{}, map[string]api.Talker{}
	for _, sensor := range sensors {
		collect(d, sensor.TopDst)
		collect(s, sensor.TopSrc)
	}
	return heaviest(d), heaviest(s)
}

func collect(sum map[string]api.Talker, list []api.Talker) {
	for _, t := range list {
		v := sum[t.Addr]
		sum[t.Addr] = api.Talker{Addr: t.Addr, PPS: v.PPS + t.PPS, BPS: v.BPS + t.BPS}
	}
}

func heaviest(sum map[string]api.Talker) []api.Talker {
	out := make([]api.Talker, 0, len(sum))
	for _, t := range sum {
		out = append(out, t)
	}
	slices.SortFunc(out, func(a, b api.Talker) int {
		return cmp.Or(cmp.Compare(b.PPS, a.PPS), cmp.Compare(a.Addr, b.Addr))
	})
	return out[:min(len(out), topTalkers)]
}
