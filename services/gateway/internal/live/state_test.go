package live

import (
	"math"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tidegate-mesh/tidegate/libs/api"
)

func sensor(name string, drop, bytes uint64) api.Sensor {
	return api.Sensor{Name: name, Interfaces: []api.Interface{{
		Name: "eth0", XDPPackets: map[string]uint64{"drop": drop}, XDPBytes: map[string]uint64{"drop": bytes},
	}}}
}

func TestRates(t *testing.T) {
	t0 := time.Unix(1000, 0)
	at := func(ms int) time.Time { return t0.Add(time.Duration(ms) * time.Millisecond) }
	var m meter
	for _, step := range []struct {
		name     string
		ms       int
		sensors  []api.Sensor
		pps, bps float64 // of drop; -1 = absent
	}{
		{"first reading", 0, []api.Sensor{sensor("a", 100, 1000)}, -1, -1},
		{"second", 250, []api.Sensor{sensor("a", 200, 2000)}, 400, 32000},
		{"over the time there is", 500, []api.Sensor{sensor("a", 200, 2000)}, 200, 16000},
		{"over a second", 1250, []api.Sensor{sensor("a", 1200, 12000)}, 1000, 80000},
		{"another sensor begins", 2250, []api.Sensor{sensor("a", 1300, 13000), sensor("b", 1<<40, 0)}, 100, 8000},
		{"both", 3250, []api.Sensor{sensor("a", 1400, 14000), sensor("b", 1<<40+50, 0)}, 150, 8000},
		{"one does not answer", 3500, []api.Sensor{sensor("b", 1<<40+50, 0)}, 40, 0},
		{"and is back", 4500, []api.Sensor{sensor("a", 1525, 14000), sensor("b", 1<<40+50, 0)}, 100, 0},
		{"counters begin anew", 5500, []api.Sensor{sensor("a", 5, 50), sensor("b", 1<<40+150, 0)}, 100, 0},
		{"and go on", 6500, []api.Sensor{sensor("a", 105, 50), sensor("b", 1<<40+150, 0)}, 100, 0},
		{"nobody", 7500, nil, -1, -1},
		{"after long silence nothing is known", 20000, []api.Sensor{sensor("a", 9999, 50)}, -1, -1},
	} {
		pps, bps := m.rates(at(step.ms), step.sensors)
		for _, c := range []struct {
			what string
			got  map[string]float64
			want float64
		}{{"pps", pps, step.pps}, {"bps", bps, step.bps}} {
			got, ok := c.got["drop"]
			if ok != (c.want >= 0) || ok && math.Abs(got-c.want) > 0.001*c.want {
				t.Errorf("%s: %s is %v (%v), want %v", step.name, c.what, got, ok, c.want)
			}
		}
	}
}

func TestTalkers(t *testing.T) {
	dst, src := talkers([]api.Sensor{
		{TopDst: []api.Talker{{Addr: "192.0.2.1", PPS: 5, BPS: 1}, {Addr: "192.0.2.2", PPS: 7, BPS: 2}}},
		{TopDst: []api.Talker{{Addr: "192.0.2.1", PPS: 3, BPS: 4}}},
	})
	want := []api.Talker{{Addr: "192.0.2.1", PPS: 8, BPS: 5}, {Addr: "192.0.2.2", PPS: 7, BPS: 2}}
	if d := cmp.Diff(want, dst); d != "" || len(src) != 0 {
		t.Errorf("%s, sources %v", d, src)
	}
}

func TestAttacks(t *testing.T) {
	now := time.Unix(1000, 0)
	later := func(s int) time.Time { return now.Add(time.Duration(s) * time.Second) }
	a := newAttacks()
	ids := func() (out []string) {
		for _, x := range a.active() {
			out = append(out, x.ID)
		}
		return out
	}
	expect := func(when string, want ...string) {
		t.Helper()
		if d := cmp.Diff(want, ids()); d != "" {
			t.Errorf("%s: %s", when, d)
		}
	}
	a.drop("x", 70) // may come before the attack itself
	a.drop("x", 90)
	a.event(api.Attack{ID: "x", State: "started", FirstNs: 10, UpdatedNs: 20}, now)
	a.event(api.Attack{ID: "y", State: "started", FirstNs: 11, UpdatedNs: 20}, now)
	expect("two began", "y", "x")
	if got := a.active()[1].FirstDropNs; got != 70 {
		t.Errorf("first drop %d, want 70", got)
	}
	a.drop("x", 60)
	a.event(api.Attack{ID: "x", State: "updated", FirstNs: 10, UpdatedNs: 30, PPS: 9}, now)
	a.event(api.Attack{ID: "x", State: "updated", FirstNs: 10, UpdatedNs: 25, PPS: 1}, now) // late
	if got := a.active()[1]; got.PPS != 9 || got.FirstDropNs != 60 || a.firstDrop("x") != 60 {
		t.Errorf("%+v", got)
	}
	a.event(api.Attack{ID: "y", State: "ended", UpdatedNs: 40}, now)
	expect("one ended", "x")
	a.reconcile([]api.Attack{{ID: "y", State: "updated", UpdatedNs: 30}, {ID: "z", State: "updated", FirstNs: 1, FirstDropNs: 2}}, later(1))
	expect("the database is behind about y and knows z", "x", "z")
	a.reconcile(nil, later(20))
	expect("events of 20 s ago are believed", "x", "z")
	a.reconcile(nil, later(61))
	expect("long silence")
	for i := range 1000 {
		id := string(rune(i + 0x4e00))
		a.event(api.Attack{ID: id, State: "started"}, later(100+i))
		a.drop("other"+id, 1)
	}
	if n := len(a.active()); n != maxAttacks || len(a.byID) > 2*maxAttacks || len(a.drops) != maxAttacks {
		t.Errorf("%d shown, %d and %d remembered: not bounded", n, len(a.byID), len(a.drops))
	}
}
