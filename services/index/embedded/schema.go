package embedded

import (
	"context"
	"database/sql"
	"fmt"
	"net/url"
	"strconv"

	_ "modernc.org/sqlite" // the driver, without cgo
)

// migrations are the steps from an empty file to today's schema; PRAGMA user_version counts
// those taken. A step that was released is never changed.
//
// A row of chunks is a text for ever: another text is another row, whose number was never
// used before. The keyword index, which knows rows only by number, relies on it.
var migrations = []string{`
CREATE TABLE spaces (
	id         INTEGER PRIMARY KEY,
	name       TEXT NOT NULL UNIQUE,
	dimensions INTEGER NOT NULL DEFAULT 0,
	active     INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE TABLE documents (
	id         INTEGER PRIMARY KEY,
	collection TEXT NOT NULL,
	document   TEXT NOT NULL,
	completed  INTEGER NOT NULL DEFAULT 0, -- highest completed version
	fence      INTEGER NOT NULL DEFAULT 0, -- versions up to it are deleted
	UNIQUE (collection, document)
) STRICT;

CREATE TABLE cancels (
	job   TEXT PRIMARY KEY,
	fence INTEGER NOT NULL -- runs up to it are cancelled
) STRICT, WITHOUT ROWID;

CREATE TABLE versions (
	id       INTEGER PRIMARY KEY AUTOINCREMENT,
	document INTEGER NOT NULL REFERENCES documents,
	version  INTEGER NOT NULL,
	job      TEXT NOT NULL,
	name     TEXT NOT NULL,
	run      INTEGER NOT NULL DEFAULT 0, -- highest completed run
	total    INTEGER NOT NULL DEFAULT 0, -- its units
	UNIQUE (document, version)
) STRICT;

CREATE TABLE units (
	version INTEGER NOT NULL REFERENCES versions,
	number  INTEGER NOT NULL,
	run     INTEGER NOT NULL,
	page    INTEGER NOT NULL,
	length  INTEGER NOT NULL,
	failed  INTEGER NOT NULL, -- 1: the run got no text of it; older chunks have no position
	hash    BLOB NOT NULL,    -- of the message's content for it
	PRIMARY KEY (version, number)
) STRICT, WITHOUT ROWID;

CREATE TABLE chunks (
	row      INTEGER PRIMARY KEY AUTOINCREMENT,
	version  INTEGER NOT NULL REFERENCES versions,
	unit     INTEGER NOT NULL,
	n        INTEGER NOT NULL,
	id       TEXT NOT NULL,
	page     INTEGER NOT NULL,
	start    INTEGER NOT NULL,
	"end"    INTEGER NOT NULL,
	tokens   INTEGER NOT NULL,
	language TEXT NOT NULL,
	terms    INTEGER NOT NULL, -- the text's length for BM25
	text     TEXT NOT NULL
) STRICT;
CREATE INDEX chunks_unit ON chunks (version, unit, n);

CREATE TABLE vectors (
	row    INTEGER PRIMARY KEY REFERENCES chunks,
	space  INTEGER NOT NULL REFERENCES spaces,
	vector BLOB NOT NULL -- float32, little-endian, unit length
) STRICT;
`}

// openSQLite opens the file with at most n connections.
func openSQLite(path string, n int, pragmas ...string) (*sql.DB, error) {
	q := url.Values{"_txlock": {"immediate"}, "_pragma": append([]string{
		"busy_timeout(10000)", "journal_mode(WAL)", "temp_store(MEMORY)",
	}, pragmas...)}
	db, err := sql.Open("sqlite", (&url.URL{Scheme: "file", Opaque: (&url.URL{Path: path}).EscapedPath(), RawQuery: q.Encode()}).String())
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(n)
	db.SetMaxIdleConns(n)
	return db, nil
}

func migrate(ctx context.Context, db *sql.DB) error {
	var have int
	if err := db.QueryRowContext(ctx, "PRAGMA user_version").Scan(&have); err != nil {
		return err
	}
	if have > len(migrations) {
		return fmt.Errorf("the index was written by a newer program (schema %d, this one knows %d)", have, len(migrations))
	}
	for ; have < len(migrations); have++ {
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		if _, err = tx.ExecContext(ctx, migrations[have]); err == nil {
			_, err = tx.ExecContext(ctx, "PRAGMA user_version = "+strconv.Itoa(have+1))
		}
		if err != nil {
			_ = tx.Rollback()
			return err
		}
		if err := tx.Commit(); err != nil {
			return err
		}
	}
	return nil
}
