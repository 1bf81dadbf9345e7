package status

import (
	"context"
	"errors"
	"time"

	"github.com/leafmill/leafmill/events"
	"github.com/leafmill/leafmill/internal/bus"
	"github.com/leafmill/leafmill/services/status/store"
)

const (
	idle     = 10 * time.Second      // without an event, until the stream's bounds are looked at again
	settling = time.Second           // without an event at the start, until the end counts as reached
	busy     = 16                    // events at once, from which on a batch is gathered
	gather   = 25 * time.Millisecond // for so long
	minDelay = 250 * time.Millisecond
	maxDelay = 15 * time.Second
)

// loop follows the stream for ever: through outages, rebuilds and damaged files.
func (s *Service) loop(ctx context.Context) error {
	delay, damaged := minDelay, false
	for ctx.Err() == nil {
		began := time.Now()
		var err error
		if damaged {
			err = s.reopen(ctx)
		} else {
			err = s.round(ctx)
		}
		damaged = damaged && err != nil || errors.Is(err, store.ErrDamaged)
		if ctx.Err() != nil {
			break
		}
		if err == nil {
			continue
		}
		if time.Since(began) > time.Minute {
			delay = minDelay
		}
		s.log.Warn("the job views wait", "error", err, "retry_in", delay)
		pause(ctx, delay)
		delay = min(2*delay, maxDelay)
	}
	return nil
}

// round takes over a rebuild if there is one and follows the stream until the next, or until
// an error.
func (s *Service) round(ctx context.Context) error {
	rctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.mu.Lock()
	s.interrupt = cancel
	next := s.next
	s.mu.Unlock()
	if next != nil {
		return s.takeOver(ctx, next)
	}
	err := s.follow(rctx)
	if rctx.Err() != nil {
		return nil
	}
	return err
}

// follow folds from the checkpoint on until ctx ends.
func (s *Service) follow(ctx context.Context) error {
	s.mu.RLock()
	st := s.store // exchanged only by this loop
	s.mu.RUnlock()
	first, last, err := s.conn.Bounds(ctx)
	if err != nil {
		return err
	}
	if st.Checkpoint() > last {
		return s.refuse(ctx, st.Checkpoint(), last)
	}
	if st.Checkpoint() == last || first > last {
		s.caughtUp()
	}
	r, err := s.conn.Read(ctx, st.Checkpoint()+1)
	if err != nil {
		return err
	}
	defer r.Close()
	quiet := settling
	for {
		batch, err := s.nextBatch(ctx, r, quiet)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, context.DeadlineExceeded):
			s.caughtUp()
			quiet = idle
			if _, last, err = s.conn.Bounds(ctx); err == nil && st.Checkpoint() > last {
				return s.refuse(ctx, st.Checkpoint(), last)
			}
			continue
		case err != nil:
			return err
		}
		if err := s.fold(st, batch); err != nil {
			return err
		}
		if batch[len(batch)-1].Pending == 0 {
			s.caughtUp()
			quiet = idle
		}
	}
}

func (s *Service) nextBatch(ctx context.Context, r *bus.Reader, wait time.Duration) ([]bus.Read, error) {
	first, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	batch, err := r.Next(first, s.cfg.Batch)
	if err != nil || len(batch) < busy {
		return batch, err
	}
	// The stream is busy: a moment more brings later events of the same jobs, and each job
	// is written once a batch.
	more, cancel := context.WithTimeout(ctx, gather)
	defer cancel()
	for len(batch) < s.cfg.Batch {
		next, err := r.Next(more, s.cfg.Batch-len(batch))
		if err != nil {
			break // the moment is over; an error of the reader comes again
		}
		batch = append(batch, next...)
	}
	return batch, nil
}

// fold folds a batch and tells who waits for it.
func (s *Service) fold(st *store.Store, batch []bus.Read) error {
	out, err := st.Fold(batch)
	if err != nil {
		return err
	}
	s.metrics.folded.Add(float64(len(batch)))
	s.metrics.lag.Set(float64(batch[len(batch)-1].Pending))
	s.watch.ended(out.Ended)
	if out.Due {
		s.wake()
	}
	return nil
}

// caughtUp notes that the stream's end was reached: from now on facts are published.
func (s *Service) caughtUp() {
	s.metrics.lag.Set(0)
	s.mu.Lock()
	first := !s.live
	s.live = true
	s.mu.Unlock()
	if first {
		s.wake()
	}
}

// refuse answers no request until a rebuild: the views are of events that are no more.
func (s *Service) refuse(ctx context.Context, checkpoint, last uint64) error {
	err := events.Fail(events.Unavailable, "The job views are at event %d, but the stream ends at %d: it was lost or made anew. "+
		"Run `leafmill status rebuild` to build the views from the stream as it is now.", checkpoint, last)
	s.log.Error("the job views are refused", "checkpoint", checkpoint, "stream_end", last, "remedy", "leafmill status rebuild")
	s.mu.Lock()
	s.refused, s.live = err, false
	s.mu.Unlock()
	<-ctx.Done()
	return ctx.Err()
}

// reopen begins anew when the file is damaged.
func (s *Service) reopen(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.live = false
	if err := s.store.Remove(); err != nil {
		s.log.Warn("removing the damaged job views", "error", err)
	}
	st, err := store.Open(ctx, s.cfg.Dir, s.log)
	if err != nil {
		return err
	}
	s.store = st
	return nil
}
