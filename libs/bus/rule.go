package bus

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/tidegate-mesh/tidegate/libs/policy"
)

// RuleEntry is a rule and the revision of its key.
type RuleEntry struct {
	Rule     policy.Rule
	Revision uint64
}

// RuleUpdate is a change of the desired state.
type RuleUpdate struct {
	ID       string
	Rule     *policy.Rule // nil: deleted, or unreadable when Err is set
	Revision uint64
	Err      error // why the value cannot be read as a rule
	// Restarted comes alone, before a full repetition of the state: at the start and after each reconnect.
	Restarted bool
	// Synced comes alone: all that was there at the start of the repetition has been handed over.
	Synced bool
}

const markersEvery = 512 // deletions between two clean-ups of their markers

// bucket is the handle of a bucket, looked up once: a handle names the bucket only and outlives its server.
func (b *Bus) bucket(ctx context.Context, name string) (jetstream.KeyValue, error) {
	if kv, ok := b.buckets.Load(name); ok {
		return kv.(jetstream.KeyValue), nil
	}
	kv, err := b.js.KeyValue(ctx, name)
	if err != nil {
		return nil, unavailable(err)
	}
	b.buckets.Store(name, kv)
	return kv, nil
}

const keyRunes = "-_.=/abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"

// ValidKey is ErrInvalidKey when the id of a rule cannot be its key.
func ValidKey(id string) error {
	if id == "" || id[0] == '.' || id[len(id)-1] == '.' || strings.Trim(id, keyRunes) != "" {
		return fmt.Errorf("rule %q: %w", id, ErrInvalidKey)
	}
	return nil
}

// PutRule writes a rule, whatever was there.
func (b *Bus) PutRule(ctx context.Context, r policy.Rule) error {
	_, err := b.putRule(ctx, r, func(kv jetstream.KeyValue, value []byte) (uint64, error) { return kv.Put(ctx, r.ID, value) })
	return err
}

// UpdateRule writes a rule if its key still has the revision, and returns the new one; revision 0 means that the
// key must not exist. ErrConflict otherwise.
func (b *Bus) UpdateRule(ctx context.Context, r policy.Rule, revision uint64) (uint64, error) {
	return b.putRule(ctx, r, func(kv jetstream.KeyValue, value []byte) (uint64, error) {
		if revision == 0 {
			return kv.Create(ctx, r.ID, value)
		}
		return kv.Update(ctx, r.ID, value, revision)
	})
}

func (b *Bus) putRule(ctx context.Context, r policy.Rule, put func(jetstream.KeyValue, []byte) (uint64, error)) (uint64, error) {
	if err := r.Validate(); err != nil {
		return 0, err
	}
	value, err := policy.Marshal(&r)
	if err != nil {
		return 0, err
	}
	kv, err := b.bucket(ctx, BucketRules)
	if err != nil {
		return 0, fmt.Errorf("write rule %s: %w", r.ID, err)
	}
	rev, err := put(kv, value)
	if err != nil {
		return 0, fmt.Errorf("write rule %s: %w", r.ID, conflict(err))
	}
	return rev, nil
}

// DeleteRule removes a rule; one that is not there is not an error.
func (b *Bus) DeleteRule(ctx context.Context, id string) error {
	return b.deleteRule(ctx, id)
}

// DeleteRuleRevision removes a rule if its key still has the revision, else ErrConflict.
func (b *Bus) DeleteRuleRevision(ctx context.Context, id string, revision uint64) error {
	return b.deleteRule(ctx, id, jetstream.LastRevision(revision))
}

func (b *Bus) deleteRule(ctx context.Context, id string, opts ...jetstream.KVDeleteOpt) error {
	kv, err := b.bucket(ctx, BucketRules)
	if err != nil {
		return fmt.Errorf("delete rule %s: %w", id, err)
	}
	if err := kv.Delete(ctx, id, opts...); err != nil {
		return fmt.Errorf("delete rule %s: %w", id, conflict(err))
	}
	if b.deletes.Add(1)%markersEvery == 0 {
		// A deletion leaves a marker for watchers that were away; half an hour is enough for those.
		if err := kv.PurgeDeletes(ctx, jetstream.DeleteMarkersOlderThan(30*time.Minute)); err != nil {
			b.t.CountError("purge_rule_markers")
		}
	}
	return nil
}

func conflict(err error) error {
	var api *jetstream.APIError
	if errors.Is(err, jetstream.ErrKeyExists) || errors.As(err, &api) && api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence {
		return fmt.Errorf("%w (%w)", ErrConflict, err)
	}
	return unavailable(err)
}

// Rules reads the whole desired state, by id. Values that cannot be read are reported to Config.OnBad and left out.
func (b *Bus) Rules(ctx context.Context) (map[string]RuleEntry, error) {
	kv, err := b.bucket(ctx, BucketRules)
	if err != nil {
		return nil, fmt.Errorf("read rules: %w", err)
	}
	out := make(map[string]RuleEntry)
	err = snapshot(ctx, kv, func(e jetstream.KeyValueEntry) {
		r, err := policy.Unmarshal(e.Value())
		if err != nil {
			b.bad("decode_rule", e.Key(), err)
			return
		}
		out[e.Key()] = RuleEntry{Rule: r, Revision: e.Revision()}
	})
	if err != nil {
		return nil, fmt.Errorf("read rules: %w", err)
	}
	return out, nil
}

// snapshot hands over each present key once.
func snapshot(ctx context.Context, kv jetstream.KeyValue, h func(jetstream.KeyValueEntry)) error {
	ctx, cancel := context.WithTimeout(ctx, 2*ackTimeout)
	defer cancel()
	w, err := kv.WatchAll(ctx, jetstream.IgnoreDeletes())
	if err != nil {
		return unavailable(err)
	}
	defer func() { _ = w.Stop() }() // fails only when the connection took the watch with it
	for {
		select {
		case e, ok := <-w.Updates():
			if !ok {
				return fmt.Errorf("%w: the watch ended", ErrUnavailable)
			}
			if e == nil {
				return nil
			}
			h(e)
		case <-ctx.Done():
			return unavailable(ctx.Err())
		}
	}
}

// WatchRules calls h for each rule there is, then with Synced, then for each change, one call at a time in the
// bucket's order. After a reconnect it starts over (Restarted, all rules, Synced), because deletions may have been
// missed. It returns when ctx ends (nil).
func (b *Bus) WatchRules(ctx context.Context, h func(RuleUpdate)) error {
	return b.again(ctx, "watch_rules", func(alive func()) error {
		return b.watchRules(ctx, func(u RuleUpdate) { alive(); h(u) })
	})
}

func (b *Bus) watchRules(ctx context.Context, h func(RuleUpdate)) error {
	return b.watchKeys(ctx, BucketRules, jetstream.AllKeys, func() { h(RuleUpdate{Restarted: true}) }, func(e jetstream.KeyValueEntry) {
		if e == nil {
			h(RuleUpdate{Synced: true})
			return
		}
		u := RuleUpdate{ID: e.Key(), Revision: e.Revision()}
		if e.Operation() == jetstream.KeyValuePut {
			r, err := policy.Unmarshal(e.Value())
			if err == nil && r.ID != u.ID {
				err = fmt.Errorf("the key is %q, the rule's id %q", u.ID, r.ID)
			}
			if err != nil {
				b.bad("decode_rule", u.ID, err)
				u.Err = err
			} else {
				u.Rule = &r
			}
		}
		h(u)
	})
}
