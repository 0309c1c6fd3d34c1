package page

import (
	"fmt"
	"html/template"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/api"
)

// functions are what templates can call.
var functions = template.FuncMap{
	"si":       si,
	"count":    func(n uint64) string { return si(float64(n)) },
	"clock":    clock,
	"second":   func(n api.Nanos) string { return n.Time().Format("15:04:05") },
	"lines":    func() []line { return lines },
	"until":    func(t time.Time) int64 { return time.Until(t).Milliseconds() },
	"since":    since,
	"left":     func(n api.Nanos) string { return left(n, time.Now()) },
	"type":     func(s string) string { return strings.ReplaceAll(s, "_", " ") },
	"percent":  func(share float64) string { return strconv.FormatFloat(100*share, 'f', 1, 64) + "%" },
	"evidence": evidence,
	"light":    light,
}

// line is one line of the charts. chart.js has the same names and says which XDP actions are in each.
type line struct{ Name, Text string }

var lines = []line{
	{"seen", "all seen"}, {"drop", "dropped"}, {"limit", "over a rate limit"}, {"pass", "passed in the driver"}, {"up", "to the sensor"},
	{"lost", "without a reader"},
}

// si writes a number with three digits and a prefix.
func si(v float64) string {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return "–"
	}
	prefix := ""
	for _, p := range []string{"k", "M", "G", "T", "P"} {
		if math.Abs(v) < 999.5 {
			break
		}
		v, prefix = v/1000, " "+p
	}
	digits := 0
	if prefix != "" {
		digits = max(0, 2-int(math.Log10(max(math.Abs(v), 1))))
	}
	return strconv.FormatFloat(v, 'f', digits, 64) + prefix
}

func clock(n api.Nanos) string {
	if n == 0 {
		return "–"
	}
	return n.Time().Format("15:04:05.000")
}

// since is the time between two moments, "–" when one is unknown.
func since(from, to api.Nanos) string {
	if from == 0 || to == 0 {
		return "–"
	}
	d := time.Duration(to - from)
	switch {
	case d < 0:
		return "0 ms"
	case d < 10*time.Second:
		return strconv.FormatInt(d.Milliseconds(), 10) + " ms"
	}
	return d.Round(time.Second).String()
}

func left(n api.Nanos, now time.Time) string {
	if n == 0 {
		return "never"
	}
	d := n.Time().Sub(now)
	switch {
	case d <= 0:
		return "expired"
	case d < time.Minute:
		return strconv.Itoa(int(d.Seconds())) + " s"
	case d < time.Hour:
		return strconv.Itoa(int(d.Minutes())) + " min"
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h %d min", int(d.Hours()), int(d.Minutes())%60)
	}
	return strconv.Itoa(int(d.Hours())/24) + " d"
}

// evidence tells a verdict's measurements in words, the strongest first.
func evidence(e api.Evidence) []string {
	names := make([]string, 0, len(e.Features))
	for n := range e.Features {
		names = append(names, n)
	}
	over := func(n string) float64 {
		if t := e.Thresholds[n]; t > 0 {
			return e.Features[n] / t
		}
		return -1
	}
	slices.SortFunc(names, func(a, b string) int {
		if x, y := over(a), over(b); x != y {
			if x > y {
				return -1
			}
			return 1
		}
		return strings.Compare(a, b)
	})
	var out []string
	for _, n := range names {
		s := strings.ReplaceAll(n, "_", " ") + " was " + number(e.Features[n])
		if t, ok := e.Thresholds[n]; ok {
			s += ", the threshold is " + number(t)
			if r := over(n); r >= 1 {
				s += " (" + strconv.FormatFloat(r, 'f', 1, 64) + " times)"
			}
		}
		out = append(out, s+".")
	}
	return out
}

// number keeps small fractions readable.
func number(v float64) string {
	if math.Abs(v) < 100 && v != math.Trunc(v) {
		return strconv.FormatFloat(v, 'g', 3, 64)
	}
	return si(v)
}

// ledgerLight is the state of the ledger for the header.
type ledgerLight struct{ Class, Text string }

// inFlightShare is how much of what the largest stage has seen may be under way; inFlightFloor is never worth a
// warning: a quarter second of a busy link.
const (
	inFlightShare = 0.001
	inFlightFloor = 250_000
)

// light is green while the difference is 0 or what can be in flight.
func light(l api.Ledger, missing []api.Missing) ledgerLight {
	if len(l.Stages) == 0 {
		return ledgerLight{"off", "no ledger yet"}
	}
	var most uint64
	worst := l.Stages[0]
	for _, s := range l.Stages {
		most = max(most, s.In)
		if magnitude(s.Difference) > magnitude(worst.Difference) {
			worst = s
		}
	}
	d := magnitude(l.Difference)
	switch {
	case d == 0:
		return ledgerLight{"good", "balanced"}
	case float64(d) <= max(inFlightFloor, inFlightShare*float64(most)):
		return ledgerLight{"good", si(float64(d)) + " in flight"}
	case len(missing) > 0:
		return ledgerLight{"warn", "a service is missing"}
	}
	return ledgerLight{"bad", si(float64(d)) + " unaccounted, most in " + worst.Stage}
}

func magnitude(d int64) uint64 {
	if d < 0 {
		return uint64(-d)
	}
	return uint64(d)
}
