package bustest

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/tidegate-mesh/tidegate/libs/bus"
	policyv1 "github.com/tidegate-mesh/tidegate/proto/policy/v1"
)

// lists: a key a list, and its entries however long.
func lists(t *testing.T, s Server) {
	b := Open(t, s.Config)
	ctx := context.Background()
	var mu sync.Mutex
	var got []bus.ListUpdate
	seen := func(ok func([]bus.ListUpdate) bool) func() bool {
		return func() bool { mu.Lock(); defer mu.Unlock(); return ok(got) }
	}
	background(t, func(ctx context.Context) error {
		return b.WatchLists(ctx, func(u bus.ListUpdate) { mu.Lock(); defer mu.Unlock(); got = append(got, u) })
	})
	Wait(t, "an empty repetition", seen(func(u []bus.ListUpdate) bool { return len(u) == 2 && u[0].Restarted && u[1].Synced }))

	text := bytes.Repeat([]byte("192.0.2.1\n"), 300_000) // many messages
	object, err := b.PutListEntries(ctx, "l", text)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := b.PutListEntries(ctx, "l", text); err != nil || again != object {
		t.Errorf("the same text: %q, %v", again, err)
	}
	if read, err := b.ListEntries(ctx, object); err != nil || !bytes.Equal(read, text) {
		t.Errorf("%d bytes read, %v", len(read), err)
	}
	if empty, err := b.PutListEntries(ctx, "l", nil); err != nil {
		t.Error(err)
	} else if read, err := b.ListEntries(ctx, empty); err != nil || len(read) != 0 {
		t.Errorf("no entries: %d bytes, %v", len(read), err)
	}
	list := &policyv1.AddressList{Name: "l", Action: policyv1.Action_ACTION_DROP, Object: object, Hosts: 1}
	revision, err := b.UpdateList(ctx, list, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.UpdateList(ctx, list, 0); !errors.Is(err, bus.ErrConflict) {
		t.Errorf("a list that is there is made: %v", err)
	}
	list.Comment = "changed"
	if _, err := b.UpdateList(ctx, list, revision+10); !errors.Is(err, bus.ErrConflict) {
		t.Errorf("another revision: %v", err)
	}
	if revision, err = b.UpdateList(ctx, list, revision); err != nil {
		t.Fatal(err)
	}
	all, err := b.Lists(ctx)
	if err != nil || len(all) != 1 || all["l"].Revision != revision || all["l"].List.GetComment() != "changed" {
		t.Errorf("lists %v, %v", all, err)
	}
	if err := b.DeleteList(ctx, "l", revision-1); !errors.Is(err, bus.ErrConflict) {
		t.Errorf("delete of another revision: %v", err)
	}
	if err := b.DeleteList(ctx, "l", revision); err != nil {
		t.Fatal(err)
	}
	Wait(t, "the changes", seen(func(u []bus.ListUpdate) bool {
		return len(u) == 5 && u[3].List.GetComment() == "changed" && u[4].Name == "l" && u[4].List == nil && u[4].Err == nil
	}))
	for range 2 {
		if err := b.DeleteListEntries(ctx, object); err != nil {
			t.Error(err)
		}
	}
	if _, err := b.ListEntries(ctx, object); err == nil {
		t.Error("deleted entries are read")
	}
}
