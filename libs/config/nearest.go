package config

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

// Nearest is the known word that word most likely was meant to be, or "": of those at most a quarter of its letters
// away, and one letter in short words, the closest.
func Nearest(word string, known []string) string {
	best, least := "", max(1, len(word)/4)+1
	for _, k := range known {
		if d := distance(word, k); d < least || d == least && best != "" && k < best {
			best, least = k, d
		}
	}
	return best
}

// distance counts the letters to insert, remove, replace or swap with their neighbour (optimal string alignment).
func distance(a, b string) int {
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			replace := last[j-1]
			if a[i-1] != b[j-1] {
				replace++
			}
			row[j] = min(last[j]+1, row[j-1]+1, replace)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last, row = last, row, before
	}
	return last[len(b)]
}

// checkVariables refuses a variable of this service that no flag has but that is almost the name of one: it would
// silently do nothing. Others are left alone: an orchestrator sets variables of such names too.
func checkVariables(root *kong.Node, prefix string) error {
	known := map[string]bool{}
	var collect func(*kong.Node)
	collect = func(n *kong.Node) {
		for _, flag := range n.Flags {
			for _, v := range flag.Envs {
				if rest, ok := strings.CutPrefix(v, prefix); ok {
					known[rest] = true
				}
			}
		}
		for _, child := range n.Children {
			collect(child)
		}
	}
	collect(root)
	names := slices.Sorted(maps.Keys(known))
	for _, assignment := range os.Environ() {
		name, _, _ := strings.Cut(assignment, "=")
		rest, ok := strings.CutPrefix(name, prefix)
		if !ok || known[rest] {
			continue
		}
		if n := Nearest(rest, names); n != "" {
			return fmt.Errorf("environment variable %s is unknown: did you mean %s%s?", name, prefix, n)
		}
	}
	return nil
}
