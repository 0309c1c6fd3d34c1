package sqlstore

import (
	"bytes"
	"context"
	"strings"
	"sync"
	"testing"
	"time"
)

// testUsual: a day is replaced, nodes come in the order of bytes, old days go.
func testUsual(t *testing.T, p place) {
	s := p.open(t, func(c *Config) { c.Now = func() time.Time { return now } })
	ctx := context.Background()
	today := now.Unix() / 86400
	if _, ok, err := s.NextUsual(ctx, today, ""); ok || err != nil {
		t.Fatalf("empty: %v %v", ok, err)
	}
	large := bytes.Repeat([]byte{0, 0xff, '\'', '\\', '\n'}, 200_000) // a MiB of what text columns do not take
	put := func(d UsualDay) {
		t.Helper()
		if err := s.PutUsual(ctx, d); err != nil {
			t.Fatal(err)
		}
	}
	put(UsualDay{Node: "b", Day: today, UpdatedNs: 1, Data: []byte("first")})
	put(UsualDay{Node: "b", Day: today, UpdatedNs: 2, Data: large})
	put(UsualDay{Node: "B", Day: today, UpdatedNs: 3, Data: []byte{}})
	put(UsualDay{Node: "ä", Day: today, UpdatedNs: 4, Data: []byte{0}})
	put(UsualDay{Node: "a", Day: today - 1, UpdatedNs: 5, Data: []byte("yesterday")})
	put(UsualDay{Node: "a", Day: today - usualDays, UpdatedNs: 6, Data: []byte("kept")})
	put(UsualDay{Node: "a", Day: today - usualDays - 1, UpdatedNs: 7, Data: []byte("old")})
	if err := s.Maintain(ctx); err != nil {
		t.Fatal(err)
	}
	days := func(day int64) (out []UsualDay) {
		t.Helper()
		for after := ""; ; after = out[len(out)-1].Node {
			d, ok, err := s.NextUsual(ctx, day, after)
			if err != nil {
				t.Fatal(err)
			}
			if !ok {
				return out
			}
			if out = append(out, d); len(out) > 9 {
				t.Fatalf("nodes come again: %q", d.Node)
			}
		}
	}
	got := days(today)
	if len(got) != 3 || got[0].Node != "B" || got[1].Node != "b" || got[2].Node != "ä" {
		t.Fatalf("%d nodes: %+v", len(got), got)
	}
	if d := got[1]; d.Day != today || d.UpdatedNs != 2 || !bytes.Equal(d.Data, large) {
		t.Errorf("a day changed on its way: %d of %d at %d, %d bytes", d.Day, today, d.UpdatedNs, len(d.Data))
	}
	for day, want := range map[int64]int{today - 1: 1, today - usualDays: 1, today - usualDays - 1: 0, today + 1: 0} {
		if n := len(days(day)); n != want {
			t.Errorf("%d days ago: %d, want %d", today-day, n, want)
		}
	}
	for _, d := range []UsualDay{{Node: "", Day: today}, {Node: "x", Day: 0}, {Node: strings.Repeat("x", 256), Day: today}} {
		d.Data = []byte("x")
		if err := s.PutUsual(ctx, d); err == nil {
			t.Errorf("stored %q on day %d", d.Node, d.Day)
		}
	}
	// Several instances of persist: one row is left, whole. On some databases one of the transactions has to be tried again.
	var wg sync.WaitGroup
	for i := range byte(4) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			d := UsualDay{Node: "shared", Day: today - 2, UpdatedNs: int64(i), Data: bytes.Repeat([]byte{i}, 100)}
			err := s.PutUsual(ctx, d)
			for range 20 {
				if err == nil {
					return
				}
				time.Sleep(20 * time.Millisecond)
				err = s.PutUsual(ctx, d)
			}
			t.Error(err)
		}()
	}
	wg.Wait()
	if got := days(today - 2); len(got) != 1 || !bytes.Equal(got[0].Data, bytes.Repeat([]byte{byte(got[0].UpdatedNs)}, 100)) {
		t.Errorf("%+v", got)
	}
}
