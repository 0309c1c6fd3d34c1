package logtail

import (
	"fmt"
	"strings"
	"testing"
)

func TestBuffer(t *testing.T) {
	var b Buffer
	for i := range 100_000 {
		fmt.Fprintf(&b, "line %d\n", i)
	}
	all := b.String()
	if len(all) > most+step || len(all) < most-step || !strings.HasSuffix(all, "line 99999\n") {
		t.Errorf("%d bytes are kept, the last %q", len(all), b.Tail(20))
	}
	if got := b.Tail(6); got != "99999\n" {
		t.Errorf("tail %q", got)
	}
	if b.Tail(1<<30) != all {
		t.Error("a tail longer than all is not all")
	}
}
