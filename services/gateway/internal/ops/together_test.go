package ops

import (
	"context"
	"sync"
	"testing"

	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/libs/bus"
	policyv1 "github.com/tidegate-mesh/tidegate/proto/policy/v1"
)

// crossing is a bus on which something else happens between two calls, once.
type crossing struct {
	Bus
	once          sync.Once
	updated       func() // after a list was written
	beforeUpdated func() // before it is
}

func (c *crossing) UpdateList(ctx context.Context, l *policyv1.AddressList, revision uint64) (uint64, error) {
	if c.beforeUpdated != nil {
		c.once.Do(c.beforeUpdated)
	}
	n, err := c.Bus.UpdateList(ctx, l, revision)
	if c.updated != nil {
		c.once.Do(c.updated)
	}
	return n, err
}

// Two upload to one list at the same time, one the entries that it had, one others: whoever comes last, its entries are there.
func TestUploadsThatCross(t *testing.T) {
	const had, other = "192.0.2.1\n", "192.0.2.2\n"
	for name, cross := range map[string]func(ctx context.Context, c *crossing, a, b *Operations, nats *bus.Bus){
		"put back before they are deleted": func(ctx context.Context, c *crossing, a, b *Operations, _ *bus.Bus) {
			c.updated = func() { _, _ = b.PutListEntries(ctx, "bad", []byte(had)) }
			_, _ = a.PutListEntries(ctx, "bad", []byte(other))
		},
		"deleted after they were found": func(ctx context.Context, c *crossing, a, b *Operations, nats *bus.Bus) {
			all, _ := nats.Lists(ctx)
			old := all["bad"].List.GetObject()
			if _, err := b.PutListEntries(ctx, "bad", []byte(other)); err != nil {
				t.Error(err)
			}
			_, _ = nats.PutListEntries(ctx, "bad", []byte(had)) // b has not deleted them yet
			c.beforeUpdated = func() { _ = nats.DeleteListEntries(ctx, old) }
			_, _ = a.PutListEntries(ctx, "bad", []byte(had))
		},
	} {
		t.Run(name, func(t *testing.T) {
			a, b, nats := overNATS(t)
			ctx := asOperator(t)
			if _, err := a.PutList(ctx, "bad", api.ListInput{Action: "drop"}); err != nil {
				t.Fatal(err)
			}
			if _, err := a.PutListEntries(ctx, "bad", []byte(had)); err != nil {
				t.Fatal(err)
			}
			c := &crossing{Bus: a.bus}
			a.bus = c
			cross(ctx, c, a, b, nats)
			if got := stored(t, nats, "bad"); got != had {
				t.Errorf("stored %q", got)
			}
		})
	}
}
