package embedded

import (
	"context"
	"database/sql"
	"errors"

	"github.com/leafmill/leafmill/events"
	"github.com/leafmill/leafmill/services/index"
)

// transaction is one batch of the writer: SQL that commits together, and what searches must
// see of it afterwards. Its statements read what earlier operations of the batch wrote.
type transaction struct {
	tx        *sql.Tx
	analyzers *analyzers
	space     space // the active one, as this batch leaves it

	effects []func(*memory) error // on memory, in order
	add     []posting             // into the keyword index, before the effects
}

// space is a row of spaces. The zero one is none.
type space struct {
	id         int64
	name       string
	dimensions int
}

// documentRow is a row of documents.
type documentRow struct {
	id               int64 // 0: not there yet
	completed, fence uint64
}

// versionRow is a row of versions.
type versionRow struct {
	id    int64 // 0: not there
	run   uint64
	total int
}

// Statements cannot be cancelled: a batch is short, and belongs to several callers.
var background = context.Background()

func (t *transaction) exec(query string, args ...any) (sql.Result, error) {
	return t.tx.ExecContext(background, query, args...)
}

// one scans the only row of a query; false when there is none.
func (t *transaction) one(query string, args []any, into ...any) (bool, error) {
	err := t.tx.QueryRowContext(background, query, args...).Scan(into...)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	return err == nil, err
}

func (t *transaction) effect(f func(*memory)) {
	t.effects = append(t.effects, func(m *memory) error { f(m); return nil })
}

func (t *transaction) document(collection, name string) (d documentRow, err error) {
	_, err = t.one("SELECT id, completed, fence FROM documents WHERE collection = ? AND document = ?",
		[]any{collection, name}, &d.id, &d.completed, &d.fence)
	return d, err
}

// created makes sure that the document has a row.
func (t *transaction) created(d documentRow, collection, name string) (documentRow, error) {
	if d.id != 0 {
		return d, nil
	}
	if _, err := t.one("INSERT INTO documents (collection, document) VALUES (?, ?) RETURNING id",
		[]any{collection, name}, &d.id); err != nil {
		return d, err
	}
	id := d.id
	t.effect(func(m *memory) { m.addDocument(id, collection, name, 0) })
	return d, nil
}

func (t *transaction) version(document int64, number uint64) (v versionRow, err error) {
	_, err = t.one("SELECT id, run, total FROM versions WHERE document = ? AND version = ?",
		[]any{document, int64(number)}, &v.id, &v.run, &v.total)
	return v, err
}

func (t *transaction) createdVersion(v versionRow, document int64, number uint64, job, name string) (versionRow, error) {
	if v.id != 0 {
		return v, nil
	}
	if _, err := t.one("INSERT INTO versions (document, version, job, name) VALUES (?, ?, ?, ?) RETURNING id",
		[]any{document, int64(number), job, name}, &v.id); err != nil {
		return v, err
	}
	id := v.id
	t.effect(func(m *memory) { m.addVersion(id, document, number, job, name) })
	return v, nil
}

// dropVersions removes what is stored of the document's versions below a number.
func (t *transaction) dropVersions(document int64, below uint64) error {
	rows, err := t.tx.QueryContext(background, "SELECT id FROM versions WHERE document = ? AND version < ?", document, int64(below))
	if err != nil {
		return err
	}
	ids, err := scanAll[int64](rows)
	if err != nil {
		return err
	}
	for _, id := range ids {
		if err := t.dropVersion(id); err != nil {
			return err
		}
	}
	return nil
}

func (t *transaction) dropVersion(id int64) error {
	for _, q := range []string{
		"DELETE FROM vectors WHERE row IN (SELECT row FROM chunks WHERE version = ?)",
		"DELETE FROM chunks WHERE version = ?",
		"DELETE FROM units WHERE version = ?",
		"DELETE FROM versions WHERE id = ?",
	} {
		if _, err := t.exec(q, id); err != nil {
			return err
		}
	}
	t.effect(func(m *memory) { m.dropVersion(id) })
	return nil
}

// dropUnits removes the units of a version that a condition on units names.
func (t *transaction) dropUnits(version int64, where string, args ...any) error {
	rows, err := t.tx.QueryContext(background, "SELECT number FROM units WHERE version = ? AND "+where, append([]any{version}, args...)...)
	if err != nil {
		return err
	}
	numbers, err := scanAll[int](rows)
	if err != nil {
		return err
	}
	for _, n := range numbers {
		rows, err := t.tx.QueryContext(background, "SELECT row FROM chunks WHERE version = ? AND unit = ?", version, n)
		if err != nil {
			return err
		}
		chunks, err := scanAll[int64](rows)
		if err != nil {
			return err
		}
		for _, row := range chunks {
			if err := t.dropChunk(row); err != nil {
				return err
			}
		}
		if _, err := t.exec("DELETE FROM units WHERE version = ? AND number = ?", version, n); err != nil {
			return err
		}
		t.effect(func(m *memory) { m.dropUnit(version, n) })
	}
	return nil
}

func (t *transaction) dropChunk(row int64) error {
	if _, err := t.exec("DELETE FROM vectors WHERE row = ?", row); err != nil {
		return err
	}
	if _, err := t.exec("DELETE FROM chunks WHERE row = ?", row); err != nil {
		return err
	}
	t.effect(func(m *memory) { m.dropChunk(row) })
	return nil
}

func (t *transaction) setUnit(version int64, u index.Unit, run uint64, failed bool, hash []byte) error {
	if _, err := t.exec(`INSERT INTO units (version, number, run, page, length, failed, hash) VALUES (?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT DO UPDATE SET run = excluded.run, page = excluded.page, length = excluded.length,
			failed = excluded.failed, hash = excluded.hash`,
		version, u.Number, int64(run), u.Page, u.Length, failed, hash); err != nil {
		return err
	}
	t.effect(func(m *memory) { m.setUnit(version, u.Number, u.Page, u.Length, failed) })
	return nil
}

// useVectors makes sure that vectors of a space and length can be taken: the first ones
// make their space the active one and tell its dimensions.
func (t *transaction) useVectors(name string, dimensions int) error {
	switch {
	case t.space.id == 0:
		return t.activate(name, dimensions)
	case t.space.name != name:
		return events.Fail(events.Invalid, "the index holds vectors of %q and takes none of %q; make the other space active with `leafmill space use`, which embeds everything again", t.space.name, name)
	case t.space.dimensions == 0:
		return t.activate(name, dimensions)
	case t.space.dimensions != dimensions:
		return events.Fail(events.Invalid, "a vector of space %q has %d dimensions, the others have %d", name, dimensions, t.space.dimensions)
	}
	return nil
}

// activate makes a space the active one; dimensions 0 means those it had, or none yet.
func (t *transaction) activate(name string, dimensions int) error {
	if _, err := t.exec("UPDATE spaces SET active = 0 WHERE active = 1"); err != nil {
		return err
	}
	s := space{name: name}
	if _, err := t.one(`INSERT INTO spaces (name, dimensions, active) VALUES (?, ?, 1)
		ON CONFLICT DO UPDATE SET active = 1, dimensions = max(dimensions, excluded.dimensions)
		RETURNING id, dimensions`, []any{name, dimensions}, &s.id, &s.dimensions); err != nil {
		return err
	}
	t.space = s
	t.effects = append(t.effects, func(m *memory) error { return m.vectors.reset(s.dimensions) })
	return nil
}

func scanAll[T any](rows *sql.Rows) ([]T, error) {
	defer func() { _ = rows.Close() }()
	var all []T
	for rows.Next() {
		var v T
		if err := rows.Scan(&v); err != nil {
			return nil, err
		}
		all = append(all, v)
	}
	return all, rows.Err()
}
