package sqlstore

import (
	"context"
	"fmt"
	"time"
)

// Maintain removes rows that are past their retention, and what classifiers learned that none asks for any more, enforces the size cap and makes the partitions of
// the coming days. Call it about once a minute; one call at a time works, others wait.
func (s *Store) Maintain(ctx context.Context) error {
	now := s.cfg.Now()
	if err := s.d.ahead(ctx, now); err != nil {
		return err
	}
	s.pruning.Lock()
	defer s.pruning.Unlock()
	for _, t := range Tables {
		keep := s.cfg.EventRetention
		if t == Flows {
			keep = s.cfg.FlowRetention
		}
		if keep < 0 {
			continue
		}
		if err := s.d.prune(ctx, t, now.Add(-keep).UnixNano(), s.removed(PrunedByAge)); err != nil {
			return fmt.Errorf("retention of %s (%s): %w", t, keep.Round(time.Second), err)
		}
	}
	if err := s.pruneUsual(ctx, now); err != nil {
		return err
	}
	return s.shrink(ctx)
}

// capSize enforces the size cap unless a pruner is at work already.
func (s *Store) capSize(ctx context.Context) error {
	if !s.pruning.TryLock() {
		return nil
	}
	defer s.pruning.Unlock()
	return s.shrink(ctx)
}

func (s *Store) shrink(ctx context.Context) error {
	if s.cfg.MaxBytes <= 0 {
		return nil
	}
	if err := s.d.shrink(ctx, s.cfg.MaxBytes, s.removed(PrunedBySize)); err != nil {
		return fmt.Errorf("size cap of %d bytes: %w", s.cfg.MaxBytes, err)
	}
	return nil
}

func (s *Store) removed(reason string) func(Table, int64) {
	return func(t Table, n int64) {
		if n > 0 && s.cfg.OnPrune != nil {
			s.cfg.OnPrune(t, n, reason)
		}
	}
}
