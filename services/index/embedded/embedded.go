// Package embedded is the index of one machine: SQLite holds the truth (chunks, vectors,
// versions, fences), and two indexes are derived from it, Bleve for keywords and binary
// codes in memory for vectors.
//
// Guarantees, beyond those of [index.Backend]:
//
//   - What was acknowledged survives kill -9; with SyncAlways also a power cut.
//   - The derived indexes agree with SQLite whenever Open has returned: what is missing,
//     left over or damaged in them is found and made anew.
//   - A search sees each committed batch whole or not at all, in both legs.
//   - Filters and visibility are applied before ranking; nothing is cut off first.
//
// One process owns a folder; Open refuses a second one. Writes go through one goroutine,
// which commits all that waits as one transaction, so that many writers share an fsync.
package embedded

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/leafmill/leafmill/events"
	"github.com/leafmill/leafmill/services/index"
)

// Sync is when a commit reaches the disk.
type Sync string

const (
	SyncAlways   Sync = "always"   // before it is acknowledged: survives a power cut
	SyncInterval Sync = "interval" // soon after: survives kill -9, not a power cut
)

// Options configure the backend; only Dir is needed.
type Options struct {
	Dir  string // owned by the backend; made when it is not there
	Sync Sync   // "" means SyncAlways
}

// Backend is the index of one folder.
type Backend struct {
	dir       string
	writing   *sql.DB // one connection, the writer's
	reading   *sql.DB
	lock      *os.File
	analyzers *analyzers
	keywords  *keywords
	memory    *memory

	queue   chan *operation
	closing chan struct{}
	closed  chan struct{} // the writer has ended
	once    sync.Once
	space   atomic.Pointer[space]
	// life is held for reading by what uses the files, and for writing to close them.
	life sync.RWMutex
	// commits is held from a commit until memory shows it, and by a search that lost its
	// rows to a commit too often.
	commits sync.RWMutex
}

var _ index.Backend = (*Backend)(nil)

// Open opens or makes the index in a folder and brings the derived indexes up to date. On
// two cores that takes about three seconds for 100,000 chunks, and half a minute when the
// keyword index has to be built anew.
func Open(ctx context.Context, o Options) (_ *Backend, err error) {
	synchronous := "synchronous(FULL)"
	switch o.Sync {
	case "", SyncAlways:
	case SyncInterval:
		synchronous = "synchronous(NORMAL)"
	default:
		return nil, events.Fail(events.Invalid, "sync is %q; it must be always or interval", o.Sync)
	}
	b := &Backend{dir: o.Dir, queue: make(chan *operation, queued), closing: make(chan struct{}), closed: make(chan struct{})}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("index: open %s: %w", o.Dir, err), b.release())
		}
	}()
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, err
	}
	if b.lock, err = lockDir(o.Dir); err != nil {
		return nil, err
	}
	scratch, _ := filepath.Glob(filepath.Join(o.Dir, scratchPattern))
	for _, name := range scratch {
		_ = os.Remove(name)
	}
	path := filepath.Join(o.Dir, "index.db")
	if b.writing, err = openSQLite(path, 1, synchronous); err != nil {
		return nil, err
	}
	if err := migrate(ctx, b.writing); err != nil {
		return nil, err
	}
	if b.reading, err = openSQLite(path, 8, "query_only(1)"); err != nil {
		return nil, err
	}
	if b.analyzers, err = newAnalyzers(); err != nil {
		return nil, err
	}
	b.memory = newMemory(newVectors(o.Dir), len(b.analyzers.languages))
	active, err := b.load(ctx)
	if err != nil {
		return nil, err
	}
	b.space.Store(&active)
	if err := b.openKeywords(ctx); err != nil {
		return nil, err
	}
	go b.write()
	return b, nil
}

// Close finishes the batch at work, refuses the operations that wait, and closes the files.
func (b *Backend) Close() error {
	var err error
	b.once.Do(func() {
		close(b.closing)
		<-b.closed
		err = b.release()
	})
	return err
}

func (b *Backend) release() error {
	b.life.Lock()
	defer b.life.Unlock()
	var errs []error
	if b.keywords != nil {
		errs = append(errs, b.keywords.close())
	}
	if b.memory != nil {
		b.memory.mu.Lock()
		errs = append(errs, b.memory.vectors.close())
		b.memory.mu.Unlock()
	}
	if b.reading != nil {
		errs = append(errs, b.reading.Close())
	}
	if b.writing != nil {
		errs = append(errs, b.writing.Close())
	}
	if b.lock != nil {
		errs = append(errs, b.lock.Close())
	}
	return errors.Join(errs...)
}

// Upsert implements index.Backend.
func (b *Backend) Upsert(ctx context.Context, s index.Segment) (index.Outcome, error) {
	m, err := b.prepare(s)
	if err != nil {
		return index.Outcome{}, err
	}
	var out index.Outcome
	err = b.do(ctx, func(t *transaction) (err error) {
		out, err = t.upsert(&m)
		return err
	})
	if err != nil {
		return index.Outcome{}, err
	}
	return out, nil
}

// Complete implements index.Backend.
func (b *Backend) Complete(ctx context.Context, c index.Completion) error {
	if err := errors.Join(checkNames(c.Job, c.Collection, c.Document), checkSequences(c.Version, c.Run)); err != nil {
		return err
	}
	if c.Succeeded && c.Cancelled || c.TotalUnits < 0 || c.TotalUnits > maxUnit {
		return events.Fail(events.Invalid, "a completion has at most %d units and cannot be both a success and cancelled", maxUnit)
	}
	for _, u := range c.Failed {
		if err := checkUnit(u); err != nil {
			return err
		}
	}
	return b.do(ctx, func(t *transaction) error { return t.complete(c) })
}

// Delete implements index.Backend.
func (b *Backend) Delete(ctx context.Context, collection, document string, fence uint64) error {
	if err := errors.Join(checkNames(collection, document), checkSequences(fence)); err != nil {
		return err
	}
	return b.do(ctx, func(t *transaction) error { return t.delete(collection, document, fence) })
}

// Cancel implements index.Backend.
func (b *Backend) Cancel(ctx context.Context, job string, fence uint64) error {
	if err := errors.Join(checkNames(job), checkSequences(fence)); err != nil {
		return err
	}
	return b.do(ctx, func(t *transaction) error { return t.cancel(job, fence) })
}

// Space implements index.Backend.
func (b *Backend) Space() index.Space {
	s := b.space.Load()
	return index.Space{Name: s.name, Dimensions: s.dimensions}
}

// UseSpace implements index.Backend. Searches wait while the vectors are loaded, about half
// a second for 100,000.
func (b *Backend) UseSpace(ctx context.Context, name string) error {
	if err := checkNames(name); err != nil {
		return err
	}
	return b.do(ctx, func(t *transaction) error {
		if t.space.name == name {
			return nil
		}
		if err := t.activate(name, 0); err != nil {
			return err
		}
		if id := t.space.id; t.space.dimensions > 0 {
			t.effects = append(t.effects, func(m *memory) error {
				return each(background, b.reading, vectorsOf, m.loadVector, id)
			})
		}
		return nil
	})
}

// Stats implements index.Backend.
func (b *Backend) Stats(context.Context) (index.Stats, error) {
	b.life.RLock()
	defer b.life.RUnlock()
	s := index.Stats{Space: b.Space()}
	b.memory.mu.RLock()
	s.Chunks, s.Visible, s.Vectors = b.memory.chunks, b.memory.visible.count(), b.memory.vectors.count
	for _, d := range b.memory.documents {
		if len(d.versions) > 0 {
			s.Documents++
		}
	}
	b.memory.mu.RUnlock()
	err := filepath.WalkDir(b.dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return ignoreMissing(err)
		}
		info, err := e.Info()
		if err != nil {
			return ignoreMissing(err)
		}
		s.DiskBytes += info.Size()
		return nil
	})
	return s, err
}

// ignoreMissing forgives files that were merged away during the walk.
func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
