package status

import (
	"context"
	"errors"
	"math"
	"time"

	"github.com/leafmill/leafmill/events"
	"github.com/leafmill/leafmill/internal/api"
	"github.com/leafmill/leafmill/services/status/store"
)

// Rebuild builds the views from the stream's beginning into a new file while the old one
// answers, and exchanges them. Nothing is published meanwhile by the new one.
func (s *Service) Rebuild(ctx context.Context) (api.RebuildAnswer, error) {
	if !s.rebuild.TryLock() {
		return api.RebuildAnswer{}, events.Fail(events.Unavailable, "A rebuild is under way already.")
	}
	defer s.rebuild.Unlock()
	began := time.Now()
	s.mu.RLock()
	next, err := s.store.Next(ctx)
	s.mu.RUnlock()
	if err != nil {
		return api.RebuildAnswer{}, err
	}
	n, err := s.fill(ctx, next, 0)
	if err != nil {
		return api.RebuildAnswer{}, errors.Join(err, next.Remove())
	}
	if err := s.handOver(ctx, next); err != nil {
		return api.RebuildAnswer{}, err
	}
	s.mu.RLock()
	jobs := s.store.Jobs()
	s.mu.RUnlock()
	answer := api.RebuildAnswer{Replica: s.conn.Instance(), Events: n, Jobs: jobs, Seconds: time.Since(began).Seconds()}
	s.log.Info("the job views were rebuilt", "events", n, "jobs", jobs, "took", time.Since(began).Round(time.Millisecond))
	return answer, nil
}

// fill folds the stream into a store that nobody uses yet, up to its end and at least to
// the sequence to. It returns how many events that were.
func (s *Service) fill(ctx context.Context, st *store.Store, to uint64) (n int, err error) {
	first, last, err := s.conn.Bounds(ctx)
	if err != nil || first > last || st.Checkpoint() >= max(last, to) {
		return 0, err
	}
	r, err := s.conn.Read(ctx, st.Checkpoint()+1)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	for {
		batch, err := s.nextBatch(ctx, r, idle)
		if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil && st.Checkpoint() > 0 {
			return n, nil // the last events were purged meanwhile
		}
		if err != nil {
			return n, err
		}
		if _, err := st.Fold(batch); err != nil {
			return n, err
		}
		n += len(batch)
		if e := batch[len(batch)-1]; e.Pending == 0 && e.Sequence >= to {
			return n, nil
		}
	}
}

// handOver gives the new store to the loop and waits until it is in use.
func (s *Service) handOver(ctx context.Context, next *store.Store) error {
	taken := make(chan error, 1)
	s.mu.Lock()
	s.next, s.taken = next, taken
	if s.interrupt != nil {
		s.interrupt()
	}
	s.mu.Unlock()
	select {
	case err := <-taken:
		return err
	case <-ctx.Done():
	}
	s.mu.Lock()
	mine := s.next == next
	if mine {
		s.next = nil
	}
	s.mu.Unlock()
	if mine {
		return errors.Join(ctx.Err(), next.Remove())
	}
	return <-taken // the loop has it in hand
}

// takeOver exchanges the stores, between two batches. The new one first gets what the old
// one has folded meanwhile, so that no view goes back in time.
func (s *Service) takeOver(ctx context.Context, next *store.Store) error {
	s.mu.Lock()
	if s.next != next { // withdrawn
		s.mu.Unlock()
		return nil
	}
	s.next = nil
	old, refused, taken := s.store, s.refused, s.taken
	s.mu.Unlock()
	promoted, err := s.promote(ctx, next, old, refused == nil)
	if err != nil {
		taken <- err
		return err
	}
	s.mu.Lock()
	s.store, s.refused = promoted, nil
	s.mu.Unlock()
	if refused != nil {
		s.said.forget(math.MaxUint64) // those were facts of the lost stream
	}
	if err := old.Remove(); err != nil {
		s.log.Warn("removing the old job views", "error", err)
	}
	s.wake()
	taken <- nil
	return nil
}

func (s *Service) promote(ctx context.Context, next, old *store.Store, level bool) (*store.Store, error) {
	if level {
		if _, err := s.fill(ctx, next, old.Checkpoint()); err != nil {
			return nil, errors.Join(err, next.Remove())
		}
	}
	return next.Promote(ctx)
}
