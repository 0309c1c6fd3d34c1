package bus

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"

	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/encoding/protojson"

	policyv1 "github.com/tidegate-mesh/tidegate/proto/policy/v1"
)

// The buckets of lists of addresses and of domains: one key a list, whose value points to an object with its entries.
const (
	BucketLists       = "tg_lists"
	BucketListEntries = "tg_list_entries"
)

// MaxListBytes is the largest text of a list's entries, 2 M IPv6 prefixes or so.
const MaxListBytes = 64 << 20

// ListEntry is a list and the revision of its key.
type ListEntry struct {
	List     *policyv1.AddressList
	Revision uint64
}

// ListUpdate is a change of the lists.
type ListUpdate struct {
	Name     string
	List     *policyv1.AddressList // nil: deleted, or unreadable when Err is set
	Revision uint64
	Err      error
	// Restarted comes alone, before a full repetition: at the start and after each reconnect.
	Restarted bool
	// Synced comes alone: all that was there at the start of the repetition has been handed over.
	Synced bool
}

// Lists reads all lists, by name. Values that cannot be read are reported to Config.OnBad and left out.
func (b *Bus) Lists(ctx context.Context) (map[string]ListEntry, error) {
	kv, err := b.bucket(ctx, BucketLists)
	if err != nil {
		return nil, fmt.Errorf("read lists: %w", err)
	}
	out := make(map[string]ListEntry)
	err = snapshot(ctx, kv, func(e jetstream.KeyValueEntry) {
		l, err := decodeList(e)
		if err != nil {
			b.bad("decode_list", e.Key(), err)
			return
		}
		out[e.Key()] = ListEntry{List: l, Revision: e.Revision()}
	})
	if err != nil {
		return nil, fmt.Errorf("read lists: %w", err)
	}
	return out, nil
}

func decodeList(e jetstream.KeyValueEntry) (*policyv1.AddressList, error) {
	l := &policyv1.AddressList{}
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(e.Value(), l); err != nil {
		return nil, fmt.Errorf("decode list: %w", err)
	}
	if l.GetName() != e.Key() {
		return nil, fmt.Errorf("the key is %q, the list's name %q", e.Key(), l.GetName())
	}
	return l, nil
}

// UpdateList writes a list if its key still has the revision, and returns the new one; revision 0 means that the key
// must not exist. ErrConflict otherwise.
func (b *Bus) UpdateList(ctx context.Context, l *policyv1.AddressList, revision uint64) (uint64, error) {
	value, err := protojson.Marshal(l)
	if err != nil {
		return 0, fmt.Errorf("encode list %s: %w", l.GetName(), err)
	}
	kv, err := b.bucket(ctx, BucketLists)
	if err != nil {
		return 0, fmt.Errorf("write list %s: %w", l.GetName(), err)
	}
	var rev uint64
	if revision == 0 {
		rev, err = kv.Create(ctx, l.GetName(), value)
	} else {
		rev, err = kv.Update(ctx, l.GetName(), value, revision)
	}
	if err != nil {
		return 0, fmt.Errorf("write list %s: %w", l.GetName(), conflict(err))
	}
	return rev, nil
}

// DeleteList removes a list if its key still has the revision, else ErrConflict. Its object stays: DeleteListEntries.
func (b *Bus) DeleteList(ctx context.Context, name string, revision uint64) error {
	kv, err := b.bucket(ctx, BucketLists)
	if err == nil {
		err = conflict(kv.Delete(ctx, name, jetstream.LastRevision(revision)))
	}
	if err != nil {
		return fmt.Errorf("delete list %s: %w", name, err)
	}
	return nil
}

// PutListEntries stores entries and returns the object's name, which follows from the list and the text: the same text
// is stored once.
func (b *Bus) PutListEntries(ctx context.Context, list string, text []byte) (object string, err error) {
	sum := sha256.Sum256(text)
	object = list + "." + hex.EncodeToString(sum[:])
	store, err := b.objects(ctx)
	if err != nil {
		return "", fmt.Errorf("store the entries of list %s: %w", list, err)
	}
	if _, err := store.GetInfo(ctx, object); err == nil {
		return object, nil
	} else if !errors.Is(err, jetstream.ErrObjectNotFound) {
		return "", fmt.Errorf("store the entries of list %s: %w", list, unavailable(err))
	}
	if _, err := store.PutBytes(ctx, object, text); err != nil {
		return "", fmt.Errorf("store the entries of list %s: %w", list, unavailable(err))
	}
	return object, nil
}

// ListEntries reads the entries that PutListEntries stored. The store's checksum is verified.
func (b *Bus) ListEntries(ctx context.Context, object string) ([]byte, error) {
	fail := func(err error) ([]byte, error) { return nil, fmt.Errorf("read the entries %s: %w", object, err) }
	store, err := b.objects(ctx)
	if err != nil {
		return fail(err)
	}
	o, err := store.Get(ctx, object)
	if err != nil {
		return fail(unavailable(err))
	}
	defer func() { _ = o.Close() }() // what was read was checked
	info, err := o.Info()
	if err != nil {
		return fail(unavailable(err))
	}
	if info.Size > MaxListBytes {
		return fail(fmt.Errorf("%d bytes are more than the limit of %d", info.Size, MaxListBytes))
	}
	text := make([]byte, info.Size)
	if _, err := io.ReadFull(o, text); err != nil {
		return fail(unavailable(err))
	}
	if _, err := o.Read(make([]byte, 1)); !errors.Is(err, io.EOF) { // the checksum is judged at the end
		return fail(fmt.Errorf("the object is damaged: %w", err))
	}
	return text, nil
}

// DeleteListEntries removes an object; one that is not there is not an error.
func (b *Bus) DeleteListEntries(ctx context.Context, object string) error {
	store, err := b.objects(ctx)
	if err == nil {
		err = store.Delete(ctx, object)
	}
	if err != nil && !errors.Is(err, jetstream.ErrObjectNotFound) {
		return fmt.Errorf("delete the entries %s: %w", object, unavailable(err))
	}
	return nil
}

func (b *Bus) objects(ctx context.Context) (jetstream.ObjectStore, error) {
	if o, ok := b.buckets.Load(BucketListEntries); ok {
		return o.(jetstream.ObjectStore), nil
	}
	o, err := b.js.ObjectStore(ctx, BucketListEntries)
	if err != nil {
		return nil, unavailable(err)
	}
	b.buckets.Store(BucketListEntries, o)
	return o, nil
}

// ensureObjects makes the object store.
func (b *Bus) ensureObjects(ctx context.Context) error {
	def := jetstream.ObjectStoreConfig{
		Bucket: BucketListEntries, Description: "entries of address lists", Storage: jetstream.FileStorage, Replicas: max(b.cfg.Replicas, 1),
	}
	o, err := b.js.ObjectStore(ctx, BucketListEntries)
	if errors.Is(err, jetstream.ErrBucketNotFound) || errors.Is(err, jetstream.ErrStreamNotFound) {
		_, err = b.js.CreateObjectStore(ctx, def)
		if errors.Is(err, jetstream.ErrBucketExists) {
			return nil
		}
		return err
	}
	if err != nil || b.cfg.Replicas == 0 {
		return err
	}
	st, err := o.Status(ctx)
	if err == nil && st.Replicas() != b.cfg.Replicas {
		_, err = b.js.UpdateObjectStore(ctx, def)
	}
	return err
}

// WatchLists calls h for each list there is, then with Synced, then for each change, one call at a time in the bucket's
// order. After a reconnect it starts over. It returns when ctx ends (nil).
func (b *Bus) WatchLists(ctx context.Context, h func(ListUpdate)) error {
	return b.again(ctx, "watch_lists", func(alive func()) error {
		return b.watchLists(ctx, func(u ListUpdate) { alive(); h(u) })
	})
}

func (b *Bus) watchLists(ctx context.Context, h func(ListUpdate)) error {
	return b.watchKeys(ctx, BucketLists, jetstream.AllKeys, func() { h(ListUpdate{Restarted: true}) }, func(e jetstream.KeyValueEntry) {
		if e == nil {
			h(ListUpdate{Synced: true})
			return
		}
		u := ListUpdate{Name: e.Key(), Revision: e.Revision()}
		if e.Operation() == jetstream.KeyValuePut {
			if u.List, u.Err = decodeList(e); u.Err != nil {
				b.bad("decode_list", u.Name, u.Err)
			}
		}
		h(u)
	})
}
