package bus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

const (
	flowsBytes         = 8 << 30
	flowsBytesEmbedded = 1 << 30
	eventsBytes        = 1 << 30
	duplicateFlows     = 2 * time.Minute
	duplicateEvents    = 5 * time.Minute // events are retried longer
	nodeTTL            = 30 * time.Second
)

// EnsureStreams creates what is missing of the streams and buckets, adds the subjects that a stream of an older
// version lacks, and sets the limits that the configuration names; a limit of 0 leaves an existing one. It may be
// called by every service at every start.
func (b *Bus) EnsureStreams(ctx context.Context) error {
	err := b.ensure(ctx)
	b.mu.Lock()
	b.setupErr, b.setupAt = err, time.Now()
	b.mu.Unlock()
	return err
}

func (b *Bus) ensure(ctx context.Context) error {
	flows := int64(flowsBytes)
	if b.cfg.Embedded != nil {
		flows = flowsBytesEmbedded
	}
	for _, s := range []struct {
		def      jetstream.StreamConfig
		maxBytes int64
	}{
		{jetstream.StreamConfig{
			Name: StreamFlows, Description: "classified flow records, oldest discarded", Subjects: []string{SubjectFlows + ">"},
			Storage: jetstream.FileStorage, Retention: jetstream.LimitsPolicy, Discard: jetstream.DiscardOld,
			MaxBytes: flows, Duplicates: duplicateFlows, Replicas: 1,
		}, b.cfg.FlowsMaxBytes},
		{jetstream.StreamConfig{
			Name: StreamEvents, Description: "attacks, verdicts, enforcement events and audits, never discarded before every durable consumer has them",
			Subjects: []string{AllAttacks, AllVerdicts, AllEnforcements, AllAudits},
			Storage:  jetstream.FileStorage, Retention: jetstream.LimitsPolicy, Discard: jetstream.DiscardNew,
			MaxBytes: eventsBytes, Duplicates: duplicateEvents, Replicas: 1,
		}, b.cfg.EventsMaxBytes},
	} {
		if err := b.ensureStream(ctx, s.def, s.maxBytes); err != nil {
			return fmt.Errorf("stream %s: %w", s.def.Name, unavailable(err))
		}
	}
	for _, k := range []jetstream.KeyValueConfig{
		{Bucket: BucketRules, Description: "desired state: one leased rule a key", History: 1, Storage: jetstream.FileStorage},
		{Bucket: BucketControl, Description: "states of the whole mesh: panic", History: 1, Storage: jetstream.FileStorage},
		{Bucket: BucketLists, Description: "address lists: one list a key", History: 1, Storage: jetstream.FileStorage},
		{Bucket: BucketNodes, Description: "heartbeats", History: 1, TTL: nodeTTL, Storage: jetstream.FileStorage},
		{Bucket: BucketRequests, Description: "answers to requests with an Idempotency-Key", History: 1, TTL: requestTTL, Storage: jetstream.FileStorage},
	} {
		if err := b.ensureBucket(ctx, k); err != nil {
			return fmt.Errorf("bucket %s: %w", k.Bucket, unavailable(err))
		}
	}
	if err := b.ensureObjects(ctx); err != nil {
		return fmt.Errorf("bucket %s: %w", BucketListEntries, unavailable(err))
	}
	return nil
}

func (b *Bus) ensureStream(ctx context.Context, def jetstream.StreamConfig, maxBytes int64) error {
	s, err := b.js.Stream(ctx, def.Name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		if maxBytes > 0 {
			def.MaxBytes = maxBytes
		}
		if b.cfg.Replicas > 0 {
			def.Replicas = b.cfg.Replicas
		}
		_, err = b.js.CreateStream(ctx, def)
		if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
			return nil // another service was faster
		}
		return sizeHint(err, def.MaxBytes)
	}
	if err != nil {
		return err
	}
	c, changed := s.CachedInfo().Config, false
	if maxBytes > 0 && c.MaxBytes != maxBytes {
		c.MaxBytes, changed = maxBytes, true
	}
	if b.cfg.Replicas > 0 && c.Replicas != b.cfg.Replicas {
		c.Replicas, changed = b.cfg.Replicas, true
	}
	for _, subject := range def.Subjects {
		if !slices.Contains(c.Subjects, subject) { // what a newer version added stays
			c.Subjects, changed = append(c.Subjects, subject), true
		}
	}
	if !changed {
		return nil
	}
	_, err = b.js.UpdateStream(ctx, c)
	return sizeHint(err, c.MaxBytes)
}

// errInsufficientStorage is the server's code when a stream's limit is above the storage that is left.
const errInsufficientStorage = 10047

func sizeHint(err error, maxBytes int64) error {
	var api *jetstream.APIError
	if errors.As(err, &api) && api.ErrorCode == errInsufficientStorage {
		return fmt.Errorf("the server has less than %d MiB of storage left: set a smaller limit: %w", maxBytes>>20, err)
	}
	return err
}

func (b *Bus) ensureBucket(ctx context.Context, def jetstream.KeyValueConfig) error {
	kv, err := b.js.KeyValue(ctx, def.Bucket)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		def.Replicas = max(b.cfg.Replicas, 1)
		_, err = b.js.CreateKeyValue(ctx, def)
		if errors.Is(err, jetstream.ErrBucketExists) {
			return nil
		}
		return err
	}
	if err != nil || b.cfg.Replicas == 0 {
		return err
	}
	st, err := kv.Status(ctx)
	if err != nil {
		return err
	}
	if s, ok := st.(*jetstream.KeyValueBucketStatus); ok && s.StreamInfo().Config.Replicas != b.cfg.Replicas {
		def.Replicas = b.cfg.Replicas
		_, err = b.js.UpdateKeyValue(ctx, def)
	}
	return err
}

// Backlog is how many messages of a stream a durable consumer has not acknowledged yet.
func (b *Bus) Backlog(ctx context.Context, stream, durable string) (uint64, error) {
	c, err := b.js.Consumer(ctx, stream, durable)
	if err != nil {
		return 0, fmt.Errorf("backlog of %s on %s: %w", durable, stream, unavailable(err))
	}
	i := c.CachedInfo()
	if i.NumAckPending > 0 {
		return i.NumPending + uint64(i.NumAckPending), nil
	}
	return i.NumPending, nil
}

// StreamState is what a stream holds.
type StreamState struct {
	Messages, Bytes   uint64
	FirstSeq, LastSeq uint64 // FirstSeq-1 messages were removed so far
}

// State reads the counters of a stream.
func (b *Bus) State(ctx context.Context, stream string) (StreamState, error) {
	s, err := b.js.Stream(ctx, stream)
	if err != nil {
		return StreamState{}, fmt.Errorf("state of %s: %w", stream, unavailable(err))
	}
	st := s.CachedInfo().State
	return StreamState{Messages: st.Msgs, Bytes: st.Bytes, FirstSeq: st.FirstSeq, LastSeq: st.LastSeq}, nil
}

const reclaimEvery = 2 * time.Second

// reclaim makes room in the full event stream: it removes what every durable consumer has acknowledged. Without
// any durable consumer nobody waits for events; then the older half goes. A consumer that is behind keeps its
// messages, and publishers wait for it: that is what discard-new means here. Hooks are the exception: they lose what is
// removed before they had it, and count it.
func (b *Bus) reclaim(ctx context.Context) error {
	b.reclaimMu.Lock()
	defer b.reclaimMu.Unlock()
	if time.Since(b.reclaimed) < reclaimEvery {
		return nil
	}
	b.reclaimed = time.Now()
	s, err := b.js.Stream(ctx, StreamEvents)
	if err != nil {
		return fmt.Errorf("make room in %s: %w", StreamEvents, unavailable(err))
	}
	st := s.CachedInfo().State
	until, durable := st.LastSeq, false
	hooks := map[string]uint64{}
	list := s.ListConsumers(ctx)
	for c := range list.Info() {
		if isHook(c.Config.Durable) {
			hooks[c.Config.Durable] = c.AckFloor.Stream
		}
		if c.Config.Durable != "" && !isHook(c.Config.Durable) {
			durable, until = true, min(until, c.AckFloor.Stream)
		}
	}
	if err := list.Err(); err != nil {
		return fmt.Errorf("make room in %s: %w", StreamEvents, unavailable(err))
	}
	if !durable {
		until = st.FirstSeq + (st.LastSeq-st.FirstSeq)/2
	}
	if until < st.FirstSeq {
		return nil
	}
	if err := s.Purge(ctx, jetstream.WithPurgeSequence(until+1)); err != nil {
		return fmt.Errorf("make room in %s: %w", StreamEvents, unavailable(err))
	}
	for name, floor := range hooks {
		if had := max(floor, st.FirstSeq-1); had < until {
			b.t.ErrorCounter("hook_lost").Add(float64(until - had))
			b.t.Log.Error("the event stream was full: messages were removed that a hook did not have", "hook", name, "messages", until-had)
		}
	}
	return nil
}
