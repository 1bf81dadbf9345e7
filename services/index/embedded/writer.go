package embedded

import (
	"context"
	"database/sql"
	"errors"
	"log/slog"

	"github.com/leafmill/leafmill/events"
)

const (
	queued  = 256 // operations that wait; more callers wait to be let in
	batched = 64  // operations in one transaction
)

// operation is one change on its way through the writer.
type operation struct {
	apply func(*transaction) error
	done  chan error // buffered: the caller may have gone
}

// do hands a change to the writer and waits until it is durable and searchable. When the
// context ends first the change may still be made.
func (b *Backend) do(ctx context.Context, apply func(*transaction) error) error {
	op := &operation{apply: apply, done: make(chan error, 1)}
	select {
	case b.queue <- op:
	case <-ctx.Done():
		return ctx.Err()
	case <-b.closing:
		return errClosed()
	}
	select {
	case err := <-op.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-b.closed:
		select {
		case err := <-op.done:
			return err
		default:
			return errClosed()
		}
	}
}

func errClosed() error {
	return events.Fail(events.Unavailable, "the index is shutting down; the message will be tried again")
}

// write is the writer: it takes what waits, commits it at once, and answers.
func (b *Backend) write() {
	defer close(b.closed)
	for {
		var ops []*operation
		select {
		case op := <-b.queue:
			ops = append(ops, op)
		case <-b.closing:
			return
		}
	more:
		for len(ops) < batched {
			select {
			case op := <-b.queue:
				ops = append(ops, op)
			default:
				break more
			}
		}
		b.batch(ops)
		if len(b.queue) == 0 {
			b.sweep()
		}
	}
}

// batch makes the changes in one transaction. A change that is wrong by itself
// (events.Invalid) has written nothing, and the others go on without it; anything else
// undoes the batch, so that all its callers try again.
func (b *Backend) batch(ops []*operation) {
	results := make([]error, len(ops))
	err := b.attempt(ops, results)
	for i, op := range ops {
		if err != nil {
			results[i] = err
		}
		op.done <- results[i]
	}
}

func (b *Backend) attempt(ops []*operation, results []error) error {
	// Postings that an earlier batch could not apply come first: what a caller is told to
	// be searchable must be.
	if err := b.keywords.flush(); err != nil {
		return unavailable(err)
	}
	tx, err := b.writing.BeginTx(background, nil)
	if err != nil {
		return unavailable(err)
	}
	t := &transaction{tx: tx, analyzers: b.analyzers, space: *b.space.Load()}
	for i, op := range ops {
		err := op.apply(t)
		if events.ClassOf(err) == events.Invalid {
			results[i] = err
			continue
		}
		if err != nil {
			return errors.Join(unavailable(err), tx.Rollback())
		}
	}
	return b.commit(t)
}

// commit makes a transaction durable, then searchable: new postings first, then memory in
// one step, and what is gone leaves the keyword index with a later batch, unseen.
func (b *Backend) commit(t *transaction) error {
	b.commits.Lock()
	defer b.commits.Unlock()
	if err := t.tx.Commit(); err != nil {
		return unavailable(err)
	}
	active := t.space
	b.space.Store(&active)
	b.keywords.pending = append(b.keywords.pending, t.add...)
	failed := b.keywords.flush()
	m := b.memory
	m.mu.Lock()
	for _, e := range t.effects {
		if err := e(m); err != nil {
			failed = errors.Join(failed, err)
		}
	}
	m.settle()
	b.keywords.dead = append(b.keywords.dead, m.dead...)
	m.dead = m.dead[:0]
	m.mu.Unlock()
	if failed != nil {
		return unavailable(failed)
	}
	return nil
}

// sweep takes dead rows out of the keyword index. Until then they are only not seen.
func (b *Backend) sweep() {
	if err := b.keywords.sweep(); err != nil {
		slog.Warn("the keyword index could not be swept; it will be tried again", "error", err)
	}
}

// unavailable is the class of all that goes wrong in the store.
func unavailable(err error) error {
	if _, ok := errors.AsType[*events.Failure](err); ok {
		return err
	}
	if errors.Is(err, sql.ErrConnDone) || errors.Is(err, context.Canceled) {
		return err
	}
	return events.Fail(events.Unavailable, "the index store cannot be written or read; check its disk (space, permissions)").Because(err)
}
