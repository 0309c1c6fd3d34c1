package main

import (
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"net/netip"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/tidegate-mesh/tidegate/libs/api"
)

// tableRows are aligned together: a longer listing begins anew, so that it needs no more memory and shows from the
// start.
const tableRows = 1000

// output is how a read command prints.
type output struct {
	JSON bool `help:"print JSON, one object a line, instead of a table"`
}

// list prints a listing: objects as they come, or a table.
func list[T any](o output, w io.Writer, items iter.Seq2[T, error], head string, row func(T) []string) error {
	var rows [][]string
	for item, err := range items {
		if err != nil {
			return err
		}
		if o.JSON {
			if err := printJSON(w, item); err != nil {
				return err
			}
			continue
		}
		if len(rows) == tableRows {
			if err := table(w, head, rows); err != nil {
				return err
			}
			head, rows = "", rows[:0]
		}
		rows = append(rows, row(item))
	}
	if o.JSON {
		return nil
	}
	return table(w, head, rows)
}

// whole is a listing that came at once.
func whole[T any](items []T, err error) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		if err != nil {
			var none T
			yield(none, err)
			return
		}
		for _, item := range items {
			if !yield(item, nil) {
				return
			}
		}
	}
}

// one prints an object: as JSON, or by text.
func one[T any](o output, w io.Writer, v T, text func(io.Writer, T) error) error {
	if o.JSON {
		return printJSON(w, v)
	}
	return text(w, v)
}

// table prints rows with aligned columns; without a head, rows alone.
func table(w io.Writer, head string, rows [][]string) error {
	t := tabwriter.NewWriter(w, 2, 0, 2, ' ', 0)
	if head != "" {
		_, _ = fmt.Fprintln(t, strings.ReplaceAll(head, " ", "\t"))
	}
	for _, r := range rows {
		for i, cell := range r {
			if i > 0 {
				_, _ = io.WriteString(t, "\t")
			}
			_, _ = io.WriteString(t, plain(cell))
		}
		_, _ = io.WriteString(t, "\n")
	}
	return t.Flush()
}

// plain makes text safe for a terminal: host names and comments come from elsewhere.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, s)
}

// printJSON writes one object a line.
func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// when writes a time of today as a clock, another with its date.
func when(n api.Nanos) string {
	if n == 0 {
		return "-"
	}
	t, now := n.Time().Local(), time.Now()
	if t.YearDay() == now.YearDay() && t.Year() == now.Year() {
		return t.Format("15:04:05.000")
	}
	return t.Format(time.DateTime)
}

// after writes how much later than first a time is.
func after(first, n api.Nanos) string {
	if n == 0 {
		return "-"
	}
	return fmt.Sprintf("%d ms", (n-first)/1e6)
}

// quantity writes a number with a decimal unit: 1.2k, 3.4M.
func quantity(v float64) string {
	for _, u := range []struct {
		at   float64
		name string
	}{{1e9, "G"}, {1e6, "M"}, {1e3, "k"}} {
		if v >= u.at {
			return strconv.FormatFloat(v/u.at, 'f', 1, 64) + u.name
		}
	}
	return strconv.FormatFloat(v, 'f', 0, 64)
}

func count(n uint64) string { return quantity(float64(n)) }

func addrPort(ip string, port uint16) string {
	a, err := netip.ParseAddr(ip)
	if err != nil || port == 0 {
		return ip
	}
	return netip.AddrPortFrom(a, port).String()
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
