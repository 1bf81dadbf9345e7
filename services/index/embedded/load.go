package embedded

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"runtime"

	"golang.org/x/sync/errgroup"
)

// load fills memory from SQLite and returns the active space.
func (b *Backend) load(ctx context.Context) (space, error) {
	m := b.memory
	var active space
	err := b.writing.QueryRowContext(ctx, "SELECT id, name, dimensions FROM spaces WHERE active = 1").
		Scan(&active.id, &active.name, &active.dimensions)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return active, err
	}
	if err := m.vectors.reset(active.dimensions); err != nil {
		return active, err
	}
	if err := each(ctx, b.writing, "SELECT id, collection, document, completed FROM documents", func(scan scanner) error {
		var id int64
		var collection, name string
		var completed uint64
		if err := scan(&id, &collection, &name, &completed); err != nil {
			return err
		}
		m.addDocument(id, collection, name, completed)
		return nil
	}); err != nil {
		return active, err
	}
	if err := each(ctx, b.writing, "SELECT id, document, version, job, name FROM versions", func(scan scanner) error {
		var id, document int64
		var number uint64
		var job, name string
		if err := scan(&id, &document, &number, &job, &name); err != nil {
			return err
		}
		m.addVersion(id, document, number, job, name)
		return nil
	}); err != nil {
		return active, err
	}
	if err := each(ctx, b.writing, "SELECT version, number, page, length, failed FROM units", func(scan scanner) error {
		var version int64
		var number, page, length int
		var failed bool
		if err := scan(&version, &number, &page, &length, &failed); err != nil {
			return err
		}
		m.setUnit(version, number, page, length, failed)
		return nil
	}); err != nil {
		return active, err
	}
	if err := each(ctx, b.writing, "SELECT row, version, unit, language, terms FROM chunks ORDER BY row", func(scan scanner) error {
		var row, version int64
		var code string
		var unit, terms int
		if err := scan(&row, &version, &unit, &code, &terms); err != nil {
			return err
		}
		language, ok := b.analyzers.byCode(code)
		if !ok {
			return fmt.Errorf("chunk row %d is of language %q, which this program does not know", row, code)
		}
		m.addChunk(row, version, unit, language, terms)
		return nil
	}); err != nil {
		return active, err
	}
	m.settle()
	if active.dimensions == 0 {
		return active, nil
	}
	return active, each(ctx, b.writing, vectorsOf, m.loadVector, active.id)
}

const vectorsOf = "SELECT row, vector FROM vectors WHERE space = ? ORDER BY row"

type scanner func(into ...any) error

func (m *memory) loadVector(scan scanner) error {
	var row int64
	var raw sql.RawBytes
	if err := scan(&row, &raw); err != nil {
		return err
	}
	slot, ok := m.slots[row]
	if !ok || len(raw) != 4*m.vectors.dims {
		return fmt.Errorf("the vector of row %d has %d bytes, or no chunk", row, len(raw))
	}
	vector := make([]float32, m.vectors.dims)
	decode(vector, raw)
	return m.vectors.set(slot, vector)
}

// openKeywords opens the keyword index and makes it agree with memory, that is SQLite: a
// row is a text for ever, so that comparing the rows' numbers is enough.
func (b *Backend) openKeywords(ctx context.Context) error {
	var highest int64
	err := b.writing.QueryRowContext(ctx, "SELECT seq FROM sqlite_sequence WHERE name = 'chunks'").Scan(&highest)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	dir := b.dir + "/keywords"
	if b.keywords, err = openKeywords(dir, b.analyzers, highest); err != nil {
		return err
	}
	have, err := b.keywords.rows(ctx)
	if err != nil {
		return err
	}
	var missing []int64
	for _, row := range b.memory.row {
		if !have[row] {
			missing = append(missing, row)
		}
		delete(have, row)
	}
	for row := range have {
		b.keywords.dead = append(b.keywords.dead, row)
	}
	if len(missing)+len(have) > 0 {
		slog.Info("the keyword index catches up with the store", "missing", len(missing), "left_over", len(have))
	}
	if err := b.keywords.sweep(); err != nil {
		return err
	}
	const step = 512
	for start := 0; start < len(missing); start += step {
		postings, err := b.analyze(ctx, missing[start:min(start+step, len(missing))])
		if err != nil {
			return err
		}
		if err := b.keywords.apply(postings, nil); err != nil {
			return err
		}
	}
	return nil
}

// analyze makes the postings of stored rows.
func (b *Backend) analyze(ctx context.Context, rows []int64) ([]posting, error) {
	postings := make([]posting, len(rows))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(runtime.GOMAXPROCS(0))
	for i, row := range rows {
		slot := b.memory.slots[row]
		p := &postings[i]
		d := b.memory.owner[slot].doc
		*p = posting{row: row, language: int(b.memory.lang[slot]), collection: d.collectionName, document: d.name}
		group.Go(func() error {
			var text string
			if err := b.reading.QueryRowContext(ctx, "SELECT text FROM chunks WHERE row = ?", row).Scan(&text); err != nil {
				return err
			}
			p.terms = b.analyzers.terms(p.language, text)
			return nil
		})
	}
	return postings, group.Wait()
}

type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

// each calls f for every row of a query.
func each(ctx context.Context, db querier, query string, f func(scanner) error, args ...any) error {
	rows, err := db.QueryContext(ctx, query, args...)
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		if err := f(rows.Scan); err != nil {
			return err
		}
	}
	return rows.Err()
}
