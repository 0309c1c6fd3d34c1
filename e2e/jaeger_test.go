package e2e

import (
	"context"
	"fmt"

	"github.com/tidegate-mesh/tidegate/e2e/rig"
)

// verdictTrace reads a verdict's trace back from Jaeger: every hop has to be there, in one tree.
func verdictTrace(ctx context.Context, jaeger, id string) error {
	spans, err := (&rig.Jaeger{Query: jaeger}).Trace(ctx, id)
	if err != nil {
		return err
	}
	names := map[string]bool{}
	roots := 0
	for _, s := range spans {
		names[s.Name] = true
		if s.Parent == "" {
			roots++
		}
	}
	for _, want := range []string{"window close", "classify", "decide", "publish", "enforce apply", "first drop", "persist.insert"} {
		if !names[want] {
			return fmt.Errorf("no span %q in trace %s: %v", want, id, names)
		}
	}
	if roots != 1 {
		return fmt.Errorf("%d roots in trace %s, want one tree", roots, id)
	}
	return nil
}
