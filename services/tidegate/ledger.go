package main

import (
	"fmt"
	"strings"

	"github.com/tidegate-mesh/tidegate/libs/ledger"
)

// ledgerText writes one line a stage.
func ledgerText(l ledger.Sheet) string {
	var b strings.Builder
	for _, s := range l.Stages {
		var parts []string
		for _, e := range ledger.Equations {
			if e.Stage != s.Stage {
				continue
			}
			for _, term := range e.Out {
				name := ledger.Short(term)
				parts = append(parts, fmt.Sprintf("%s %d", strings.ReplaceAll(name, "_", " "), s.Out[name]))
			}
		}
		fmt.Fprintf(&b, "ledger %-8s %d = %s (difference %d)\n", s.Stage, s.In, strings.Join(parts, " + "), s.Difference)
	}
	return b.String()
}
