package bus

import (
	"context"
	"strings"
	"testing"
)

// TestSecondEmbedded: two servers on one folder would write over each other's messages.
func TestSecondEmbedded(t *testing.T) {
	dir := t.TempDir()
	first, err := StartEmbedded(context.Background(), dir, Listen{})
	if err != nil {
		t.Fatal(err)
	}
	if second, err := StartEmbedded(context.Background(), dir, Listen{}); err == nil || !strings.Contains(err.Error(), dir) {
		t.Errorf("a second server: %v", err)
		if err == nil {
			second.Shutdown()
		}
	}
	first.Shutdown()
	next, err := StartEmbedded(context.Background(), dir, Listen{})
	if err != nil {
		t.Fatalf("after the first has ended: %v", err)
	}
	next.Shutdown()
}
