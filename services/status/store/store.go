// Package store keeps the job views of one replica of status in SQLite.
//
// Guarantees:
//   - A batch of events and the checkpoint behind it are one transaction: after a crash the
//     views are exactly those of the events up to the checkpoint.
//   - Everything here is derived. A file that is damaged or of another schema is set aside
//     and the views begin anew from the stream.
//   - Lists are read by key, in time that does not depend on how many jobs there are.
//   - A rebuild writes a file of its own; Promote makes it the one that Open finds. A crash
//     at any point leaves one of the two.
//
// One goroutine folds; any number read.
package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/leafmill/leafmill/events"
	"github.com/leafmill/leafmill/services/status/view"
)

// ErrDamaged says that the file cannot be trusted: begin anew from the stream.
var ErrDamaged = errors.New("store: the file of job views is damaged")

// schemaVersion is SQLite's user_version. Another one is rebuilt, not migrated.
const schemaVersion = 1

const schema = `
CREATE TABLE jobs (
	id         INTEGER PRIMARY KEY,
	job        TEXT NOT NULL UNIQUE,
	created    INTEGER NOT NULL, -- sequence of the submission: lists are sorted by it
	status     INTEGER NOT NULL,
	collection TEXT NOT NULL,
	document   TEXT NOT NULL,
	due        INTEGER NOT NULL, -- completed or healed has to be published
	view       BLOB NOT NULL,    -- api.Job as JSON
	state      BLOB NOT NULL     -- last: lists never read over it
) STRICT;
CREATE INDEX jobs_created  ON jobs (created, job);
CREATE INDEX jobs_status   ON jobs (status, created, job);
CREATE INDEX jobs_where    ON jobs (collection, status, created, job);
CREATE INDEX jobs_document ON jobs (collection, document, created);
CREATE INDEX jobs_due      ON jobs (id) WHERE due = 1;
CREATE TABLE counters (status INTEGER PRIMARY KEY, jobs INTEGER NOT NULL) STRICT;
CREATE TABLE checkpoint (id INTEGER PRIMARY KEY CHECK (id = 1), sequence INTEGER NOT NULL) STRICT;
INSERT INTO checkpoint VALUES (1, 0);
`

// Statuses in the order of their numbers in the table.
var Statuses = []string{events.StatusQueued, events.StatusRunning, events.StatusSucceeded, events.StatusWarnings,
	events.StatusFailed, events.StatusCancelled}

func statusNumber(s string) int { return slices.Index(Statuses, s) }

// Store is an open file of job views.
type Store struct {
	dir, path  string
	generation int
	log        *slog.Logger

	write      *sql.DB // one connection: only Fold writes
	conn       *sql.Conn
	read       *sql.DB
	stmt       statements
	hot        *hot
	checkpoint atomic.Uint64
	counts     [6]atomic.Int64
	buf        []byte
}

type statements struct{ load, insert, rekey, update, counter, checkpoint *sql.Stmt }

var fileName = regexp.MustCompile(`^views\.(\d+)\.db$`)

// Open opens the views in a folder, or begins them. What an interrupted rebuild left is removed.
func Open(ctx context.Context, dir string, log *slog.Logger) (*Store, error) {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	generation := 1
	for _, e := range entries {
		if m := fileName.FindStringSubmatch(e.Name()); m != nil {
			n, _ := strconv.Atoi(m[1])
			generation = max(generation, n)
		}
	}
	keep := file(generation)
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "views.") && !strings.HasPrefix(e.Name(), keep) {
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
				return nil, fmt.Errorf("store: %w", err)
			}
		}
	}
	s, err := open(ctx, dir, keep, generation, log)
	if errors.Is(err, ErrDamaged) {
		log.Warn("the job views are rebuilt from the stream", "file", keep, "error", err)
		if err := remove(filepath.Join(dir, keep)); err != nil {
			return nil, err
		}
		s, err = open(ctx, dir, keep, generation, log)
	}
	return s, err
}

func file(generation int) string { return fmt.Sprintf("views.%06d.db", generation) }

const building = ".building"

// Next begins the file of a rebuild beside this one.
func (s *Store) Next(ctx context.Context) (*Store, error) {
	name := file(s.generation+1) + building
	if err := remove(filepath.Join(s.dir, name)); err != nil {
		return nil, err
	}
	return open(ctx, s.dir, name, s.generation+1, s.log)
}

// Promote makes a store that Next began the one that Open finds, and returns it open. The
// one it replaces is still open and usable until it is removed.
func (s *Store) Promote(ctx context.Context) (*Store, error) {
	if err := s.Close(); err != nil {
		return nil, err
	}
	name := file(s.generation)
	if err := os.Rename(s.path, filepath.Join(s.dir, name)); err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	return open(ctx, s.dir, name, s.generation, s.log)
}

// Remove closes the store and deletes its file.
func (s *Store) Remove() error {
	return errors.Join(s.Close(), remove(s.path))
}

func remove(path string) error {
	for _, suffix := range []string{"-wal", "-shm", ""} {
		if err := os.Remove(path + suffix); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("store: %w", err)
		}
	}
	return nil
}

func open(ctx context.Context, dir, name string, generation int, log *slog.Logger) (*Store, error) {
	s := &Store{dir: dir, path: filepath.Join(dir, name), generation: generation, log: log, hot: newHot()}
	if err := s.open(ctx); err != nil {
		return nil, errors.Join(explain(err), s.Close())
	}
	return s, nil
}

func (s *Store) open(ctx context.Context) (err error) {
	// NORMAL: a power cut may take the last transactions, and their events are folded again.
	if s.write, err = sqlOpen(s.path, 1, "journal_mode(WAL)", "synchronous(NORMAL)", "cache_size(-32000)", "wal_autocheckpoint(4000)"); err != nil {
		return err
	}
	if s.conn, err = s.write.Conn(ctx); err != nil {
		return err
	}
	if err = s.migrate(ctx); err != nil {
		return err
	}
	if s.read, err = sqlOpen(s.path, 4, "query_only(1)"); err != nil {
		return err
	}
	for _, p := range []struct {
		stmt **sql.Stmt
		text string
	}{
		{&s.stmt.load, `SELECT id, created, status, collection, document, due, state FROM jobs WHERE job = ?`},
		{&s.stmt.insert, `INSERT INTO jobs (job, created, status, collection, document, due, view, state) VALUES (?, ?, ?, ?, ?, ?, ?, ?)`},
		{&s.stmt.rekey, `UPDATE jobs SET created = ?, status = ?, collection = ?, document = ?, due = ?, view = ?, state = ? WHERE id = ?`},
		{&s.stmt.update, `UPDATE jobs SET view = ?, state = ? WHERE id = ?`},
		{&s.stmt.counter, `INSERT INTO counters VALUES (?, ?) ON CONFLICT DO UPDATE SET jobs = excluded.jobs`},
		{&s.stmt.checkpoint, `UPDATE checkpoint SET sequence = ?`},
	} {
		if *p.stmt, err = s.conn.PrepareContext(ctx, p.text); err != nil {
			return err
		}
	}
	return s.reload(ctx)
}

// migrate makes the tables of a new file and refuses a file that is not ours or not whole.
func (s *Store) migrate(ctx context.Context) error {
	var version, tables int
	if err := s.conn.QueryRowContext(ctx, `PRAGMA user_version`).Scan(&version); err != nil {
		return err
	}
	if err := s.conn.QueryRowContext(ctx, `SELECT count(*) FROM sqlite_schema`).Scan(&tables); err != nil {
		return err
	}
	if version == 0 && tables == 0 {
		_, err := s.conn.ExecContext(ctx, "BEGIN;"+schema+fmt.Sprintf("PRAGMA user_version = %d; COMMIT", schemaVersion))
		return err
	}
	if version != schemaVersion {
		return fmt.Errorf("%w: it has schema %d, this release %d", ErrDamaged, version, schemaVersion)
	}
	var verdict string
	if err := s.conn.QueryRowContext(ctx, `PRAGMA quick_check(1)`).Scan(&verdict); err != nil {
		return err
	}
	if verdict != "ok" {
		return fmt.Errorf("%w: %s", ErrDamaged, verdict)
	}
	return nil
}

// reload reads what the store keeps in memory of its tables.
func (s *Store) reload(ctx context.Context) error {
	var seq int64
	if err := s.conn.QueryRowContext(ctx, `SELECT sequence FROM checkpoint`).Scan(&seq); err != nil {
		return err
	}
	s.checkpoint.Store(uint64(seq))
	s.hot.clear()
	rows, err := s.conn.QueryContext(ctx, `SELECT status, jobs FROM counters`)
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }()
	for i := range s.counts {
		s.counts[i].Store(0)
	}
	for rows.Next() {
		var status int
		var n int64
		if err := rows.Scan(&status, &n); err != nil {
			return err
		}
		if status < 0 || status >= len(s.counts) {
			return ErrDamaged
		}
		s.counts[status].Store(n)
	}
	return rows.Err()
}

func sqlOpen(path string, n int, pragmas ...string) (*sql.DB, error) {
	q := url.Values{"_pragma": append([]string{"busy_timeout(10000)", "temp_store(MEMORY)"}, pragmas...)}
	db, err := sql.Open("sqlite", (&url.URL{Scheme: "file", Opaque: (&url.URL{Path: path}).EscapedPath(), RawQuery: q.Encode()}).String())
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(n)
	db.SetMaxIdleConns(n)
	return db, nil
}

// explain turns what SQLite and the states' decoder say of a damaged file into ErrDamaged.
func explain(err error) error {
	if err == nil || errors.Is(err, ErrDamaged) {
		return err
	}
	if errors.Is(err, view.ErrCorrupt) {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if e, ok := errors.AsType[*sqlite.Error](err); ok {
		switch e.Code() & 0xff {
		case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
			return fmt.Errorf("%w: %w", ErrDamaged, err)
		case sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH:
			// Our statements fit our schema: a missing table or a double row is damage.
			return fmt.Errorf("%w: %w", ErrDamaged, err)
		}
	}
	return fmt.Errorf("store: %w", err)
}

// Close closes the file. Reads in hand end first.
func (s *Store) Close() error {
	var errs []error
	if s.read != nil {
		errs = append(errs, s.read.Close())
	}
	if s.conn != nil {
		errs = append(errs, s.conn.Close())
	}
	if s.write != nil {
		errs = append(errs, s.write.Close())
	}
	return errors.Join(errs...)
}

// Checkpoint is the sequence of the last event folded in; 0: none.
func (s *Store) Checkpoint() uint64 { return s.checkpoint.Load() }

// Counts are the jobs by status.
func (s *Store) Counts() map[string]int {
	out := make(map[string]int, len(Statuses))
	for i, name := range Statuses {
		out[name] = int(s.counts[i].Load())
	}
	return out
}

// Jobs is how many jobs there are.
func (s *Store) Jobs() int {
	n := 0
	for i := range s.counts {
		n += int(s.counts[i].Load())
	}
	return n
}
