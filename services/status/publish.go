package status

import (
	"context"
	"errors"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/leafmill/leafmill/events"
	"github.com/leafmill/leafmill/internal/bus"
	"github.com/leafmill/leafmill/services/status/store"
)

const (
	publishers   = 16  // facts on their way at once
	dueLimit     = 256 // facts asked for at a time
	conflictsMax = 8   // of one fact, until the views are asked again
)

// publisher publishes what is due, whenever a batch may have made something due.
func (s *Service) publisher(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.due:
		}
		for delay := minDelay; ; delay = min(2*delay, maxDelay) {
			err := s.publishDue(ctx)
			if err == nil || ctx.Err() != nil {
				break
			}
			s.log.Warn("a fact could not be published", "error", err, "retry_in", delay)
			pause(ctx, delay)
		}
	}
}

// said remembers which facts are stored, here or elsewhere, until the views have folded them.
type said struct {
	mu  sync.Mutex
	seq map[string]uint64
}

func (p *said) note(job string, seq uint64) {
	p.mu.Lock()
	if p.seq == nil {
		p.seq = map[string]uint64{}
	}
	p.seq[job] = seq
	p.mu.Unlock()
}

// forget drops what the views have.
func (p *said) forget(checkpoint uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for job, seq := range p.seq {
		if seq <= checkpoint {
			delete(p.seq, job)
		}
	}
}

func (p *said) has(job string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.seq[job] > 0
}

// publishDue publishes until the views know of nothing that is due.
func (s *Service) publishDue(ctx context.Context) error {
	for ctx.Err() == nil {
		var due []store.Due
		err := s.use(func(st *store.Store) (err error) {
			if s.live { // use holds mu
				s.said.forget(st.Checkpoint())
				due, err = st.Due(ctx, s.said.has, dueLimit)
			}
			return err
		})
		if err != nil || len(due) == 0 {
			return err
		}
		var g errgroup.Group
		g.SetLimit(publishers)
		for _, d := range due {
			g.Go(func() error { return s.publish(ctx, d) })
		}
		if err := g.Wait(); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// publish stores one fact, unless the stream has one of this run or a later one already.
func (s *Service) publish(ctx context.Context, d store.Due) error {
	f := d.Fact
	last := f.Last
	count := func(outcome string) { s.metrics.published.WithLabelValues(string(f.Event), outcome).Inc() }
	for range conflictsMax {
		seq, err := s.conn.Publish(ctx, f.Event, d.Job, f.Body, bus.PublishOptions{Last: &last})
		switch {
		case err == nil:
			s.said.note(d.Job, seq)
			count("published")
			if f.Event == events.NameCompleted {
				s.metrics.duration.Observe(time.Since(f.Submitted).Seconds())
			}
			return nil
		case !errors.Is(err, bus.ErrConflict):
			count("failed")
			return err
		}
		m, err := s.conn.Last(ctx, f.Event.Subject(d.Job))
		switch {
		case errors.Is(err, bus.ErrNotFound): // purged meanwhile
			last = 0
		case m.Sequence == 0:
			return err
		case err == nil && m.Pass.Run >= f.Run:
			// Another replica was faster. Of healed there may be more to say: the views tell
			// once they have this one.
			s.said.note(d.Job, m.Sequence)
			count("conflict")
			return nil
		default: // of an earlier run, or not readable
			last = m.Sequence
		}
	}
	count("failed")
	return events.Fail(events.Unavailable, "The %s event of job %s meets others all the time.", f.Event, d.Job)
}
