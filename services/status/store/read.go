package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/leafmill/leafmill/events"
	"github.com/leafmill/leafmill/services/status/view"
)

// ErrNoJob says that the views have no such job.
var ErrNoJob = errors.New("store: no such job")

// Get is a job's view, an api.Job as JSON, or ErrNoJob.
func (s *Store) Get(ctx context.Context, job string) (json.RawMessage, error) {
	doc, _, err := s.Status(ctx, job)
	return doc, err
}

// Status is Get with the job's status.
func (s *Store) Status(ctx context.Context, job string) (json.RawMessage, string, error) {
	var doc []byte
	var status int
	err := s.read.QueryRowContext(ctx, `SELECT view, status FROM jobs WHERE job = ?`, job).Scan(&doc, &status)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, "", ErrNoJob
	}
	if err != nil {
		return nil, "", explain(err)
	}
	if status < 0 || status >= len(Statuses) {
		return nil, "", ErrDamaged
	}
	return doc, Statuses[status], nil
}

// Query of a page of jobs, newest first.
type Query struct {
	Status     string // of all when empty
	Collection string // of all when empty
	Cursor     string // Next of the page before
	Limit      int    // jobs, at least 1
	Bytes      int    // of JSON in all; a page has one job at least
}

// Page of views, each an api.Job as JSON. Next is empty on the last page.
type Page struct {
	Jobs []json.RawMessage
	Next string
}

// row of a list.
type row struct {
	created int64
	job     string
	doc     []byte
}

// List reads a page by key: its cost is that of the page, wherever it lies.
func (s *Store) List(ctx context.Context, q Query) (Page, error) {
	created, job, err := parseCursor(q.Cursor)
	if err != nil {
		return Page{}, err
	}
	var parts []string
	var args []any
	// Each part is one range of one index, read backwards.
	part := func(where string, values ...any) {
		parts = append(parts, `SELECT * FROM (SELECT created, job, view FROM jobs WHERE `+where+
			` (created, job) < (?, ?) ORDER BY created DESC, job DESC LIMIT ?)`)
		args = append(append(args, values...), created, job, q.Limit+1)
	}
	status := -1
	if q.Status != "" {
		if status = statusNumber(q.Status); status < 0 {
			return Page{}, events.Fail(events.Invalid, "There is no status %q; use one of %s.", q.Status, strings.Join(Statuses, ", "))
		}
	}
	switch {
	case status < 0 && q.Collection == "":
		part("")
	case q.Collection == "":
		part("status = ? AND", status)
	case status >= 0:
		part("collection = ? AND status = ? AND", q.Collection, status)
	default: // an index less: the statuses' ranges are merged
		for i := range Statuses {
			part("collection = ? AND status = ? AND", q.Collection, i)
		}
	}
	args = append(args, q.Limit+1)
	rows, err := s.rows(ctx, strings.Join(parts, ` UNION ALL `)+` ORDER BY created DESC, job DESC LIMIT ?`, args...)
	if err != nil {
		return Page{}, err
	}
	return cut(rows, q.Limit, q.Bytes), nil
}

// Find lists the jobs of a document, newest first.
func (s *Store) Find(ctx context.Context, collection, document string, limit, bytes int) (Page, error) {
	rows, err := s.rows(ctx, `SELECT created, job, view FROM jobs WHERE collection = ? AND document = ? ORDER BY created DESC LIMIT ?`,
		collection, document, limit+1)
	if err != nil {
		return Page{}, err
	}
	return cut(rows, limit, bytes), nil
}

func (s *Store) rows(ctx context.Context, query string, args ...any) ([]row, error) {
	rs, err := s.read.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, explain(err)
	}
	defer func() { _ = rs.Close() }()
	var out []row
	for rs.Next() {
		var r row
		if err := rs.Scan(&r.created, &r.job, &r.doc); err != nil {
			return nil, explain(err)
		}
		out = append(out, r)
	}
	return out, explain(rs.Err())
}

// cut ends a page at limit jobs or at bytes, and says where the next begins.
func cut(rows []row, limit, bytes int) Page {
	p := Page{Jobs: make([]json.RawMessage, 0, min(limit, len(rows)))}
	for i, r := range rows {
		bytes -= len(r.doc) + 1
		if i == limit || i > 0 && bytes < 0 {
			p.Next = rows[i-1].cursor()
			break
		}
		p.Jobs = append(p.Jobs, r.doc)
	}
	return p
}

func (r row) cursor() string { return fmt.Sprintf("%d.%s", r.created, r.job) }

func parseCursor(c string) (created int64, job string, err error) {
	if c == "" {
		return 1<<63 - 1, "", nil
	}
	n, job, ok := strings.Cut(c, ".")
	created, err = strconv.ParseInt(n, 10, 64)
	if !ok || err != nil || !events.ValidJob(job) {
		return 0, "", events.Fail(events.Invalid, "The cursor is not one that a list gave as next.")
	}
	return created, job, nil
}

// Due is a job of which something has to be published.
type Due struct {
	Job  string
	Fact *view.Fact
}

// Due lists what has to be published, of at most limit jobs and of none that skip names.
func (s *Store) Due(ctx context.Context, skip func(job string) bool, limit int) ([]Due, error) {
	var out []Due
	for after := int64(0); ; {
		ids, jobs, err := s.dueRows(ctx, after)
		if err != nil || len(ids) == 0 {
			return out, err
		}
		after = ids[len(ids)-1]
		for i, id := range ids {
			if skip(jobs[i]) {
				continue
			}
			d, err := s.dueOf(ctx, id, jobs[i])
			if err != nil {
				return nil, err
			}
			if d.Fact != nil {
				out = append(out, d)
			}
			if len(out) == limit {
				return out, nil
			}
		}
	}
}

const duePage = 256

func (s *Store) dueRows(ctx context.Context, after int64) (ids []int64, jobs []string, err error) {
	rs, err := s.read.QueryContext(ctx, `SELECT id, job FROM jobs WHERE due = 1 AND id > ? ORDER BY id LIMIT ?`, after, duePage)
	if err != nil {
		return nil, nil, explain(err)
	}
	defer func() { _ = rs.Close() }()
	for rs.Next() {
		var id int64
		var job string
		if err := rs.Scan(&id, &job); err != nil {
			return nil, nil, explain(err)
		}
		ids, jobs = append(ids, id), append(jobs, job)
	}
	return ids, jobs, explain(rs.Err())
}

func (s *Store) dueOf(ctx context.Context, id int64, job string) (Due, error) {
	var blob []byte
	err := s.read.QueryRowContext(ctx, `SELECT state FROM jobs WHERE id = ?`, id).Scan(&blob)
	if errors.Is(err, sql.ErrNoRows) {
		return Due{}, nil
	}
	var st view.State
	if err == nil {
		err = st.UnmarshalBinary(blob)
	}
	if err != nil {
		return Due{}, explain(err)
	}
	return Due{Job: job, Fact: st.Due()}, nil
}
