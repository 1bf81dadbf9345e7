package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/leafmill/leafmill/events"
	"github.com/leafmill/leafmill/internal/api"
	"github.com/leafmill/leafmill/internal/bus"
)

var quiet = slog.New(slog.DiscardHandler)

func begin(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := Open(context.Background(), dir, quiet)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func read(seq uint64, name events.Name, job string, body any) bus.Read {
	data, err := json.Marshal(body)
	if err != nil {
		panic(err)
	}
	var r bus.Read
	r.Message, r.Err = events.Decode(events.Stored{Sequence: seq, Subject: name.Subject(job),
		Time: time.UnixMilli(1_700_000_000_000 + int64(seq)), Data: data})
	return r
}

// story is a small job's events from sequence seq on, its completed included.
func story(seq uint64, job, collection string) []bus.Read {
	pass := events.Pass{Run: seq, Version: seq, Collection: collection, DocumentID: job, Units: 1}
	u := events.Unit{Unit: 1, Page: 1, Length: 100, Method: "parser"}
	out := []bus.Read{read(seq, events.NameSubmitted, job, events.Submitted{Text: "x", Name: "a.txt", Collection: collection}),
		read(seq+1, events.NameExtracted, job, events.Extracted{Pass: pass, Segment: "1-1", Units: []events.Unit{u}, Preview: "x"})}
	u.Chunks = 2
	out = append(out, read(seq+2, events.NameChunked, job, events.Chunked{Pass: pass, Segment: "1-1", Units: []events.Unit{u}}))
	u.Vectors = 2
	return append(out,
		read(seq+3, events.NameEmbedded, job, events.Embedded{Pass: pass, Segment: "1-1", Units: []events.Unit{u}}),
		read(seq+4, events.NameIndexed, job, events.Indexed{Pass: pass, Segment: "1-1", Units: []events.Unit{u}}),
		read(seq+5, events.NameCompleted, job, events.Completed{Pass: pass, Status: "succeeded", Mode: "full_rag", Chunks: 2, Vectors: 2}))
}

func fold(t testing.TB, s *Store, batch []bus.Read) Folded {
	t.Helper()
	out, err := s.Fold(batch)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func ids(t testing.TB, docs []json.RawMessage) (out []string) {
	t.Helper()
	for _, d := range docs {
		var j api.Job
		if err := json.Unmarshal(d, &j); err != nil {
			t.Fatal(err)
		}
		out = append(out, j.ID)
	}
	return out
}

func TestListsAgreeWithAPlainFilter(t *testing.T) {
	s := begin(t, t.TempDir())
	type job struct{ id, collection, status string }
	var jobs []job // newest first
	seq := uint64(1)
	for i := range 120 {
		j := job{fmt.Sprintf("j%d", i), []string{"a", "b"}[i%2], "succeeded"}
		st := story(seq, j.id, j.collection)
		switch i % 3 {
		case 1:
			st, j.status = st[:1], "queued"
		case 2:
			st, j.status = st[:3], "running"
		}
		fold(t, s, st)
		seq += 10
		jobs = append([]job{j}, jobs...)
	}
	rapid.Check(t, func(rt *rapid.T) {
		q := Query{Status: rapid.SampledFrom([]string{"", "queued", "running", "succeeded", "failed"}).Draw(rt, "status"),
			Collection: rapid.SampledFrom([]string{"", "a", "b", "none"}).Draw(rt, "collection"),
			Limit:      rapid.IntRange(1, 50).Draw(rt, "limit"), Bytes: rapid.SampledFrom([]int{1, 4000, 1 << 20}).Draw(rt, "bytes")}
		var want, got []string
		for _, j := range jobs {
			if (q.Status == "" || q.Status == j.status) && (q.Collection == "" || q.Collection == j.collection) {
				want = append(want, j.id)
			}
		}
		for {
			p, err := s.List(context.Background(), q)
			if err != nil {
				rt.Fatal(err)
			}
			if len(p.Jobs) > q.Limit || len(p.Jobs) == 0 && p.Next != "" {
				rt.Fatalf("a page of %d jobs", len(p.Jobs))
			}
			got = append(got, ids(t, p.Jobs)...)
			if q.Cursor = p.Next; q.Cursor == "" {
				break
			}
		}
		if d := cmp.Diff(want, got); d != "" {
			rt.Fatal(d)
		}
	})
	if c := s.Counts(); c["queued"] != 40 || c["running"] != 40 || c["succeeded"] != 40 || s.Jobs() != 120 {
		t.Errorf("counts %v", c)
	}
}

// No list reads more than its page: every part is a search in an index, none sorts a table.
func TestListsAreReadByKey(t *testing.T) {
	s := begin(t, t.TempDir())
	for _, where := range []string{"", "status = 1 AND", "collection = 'a' AND status = 1 AND"} {
		rows, err := s.read.Query(`EXPLAIN QUERY PLAN SELECT created, job, view FROM jobs WHERE ` + where +
			` (created, job) < (5, 'x') ORDER BY created DESC, job DESC LIMIT 10`)
		if err != nil {
			t.Fatal(err)
		}
		for rows.Next() {
			var a, b, c int
			var detail string
			if err := rows.Scan(&a, &b, &c, &detail); err != nil {
				t.Fatal(err)
			}
			if !strings.HasPrefix(detail, "SEARCH jobs USING INDEX") {
				t.Errorf("%q: %s", where, detail)
			}
		}
		if err := rows.Err(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestWhatIsFoldedIsThereAfterReopening(t *testing.T) {
	dir := t.TempDir()
	s := begin(t, dir)
	out := fold(t, s, story(1, "whole", "c"))
	if len(out.Ended) != 1 || out.Due {
		t.Errorf("%+v", out)
	}
	if out := fold(t, s, story(11, "due", "c")[:5]); !out.Due || len(out.Ended) != 0 {
		t.Errorf("%+v", out)
	}
	fold(t, s, []bus.Read{{Message: events.Message{Sequence: 17, Subject: "docs.submitted.a b"}, Err: errors.New("no job")}})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = begin(t, dir)
	if s.Checkpoint() != 17 || s.Jobs() != 2 {
		t.Errorf("checkpoint %d, jobs %d", s.Checkpoint(), s.Jobs())
	}
	due, err := s.Due(context.Background(), func(string) bool { return false }, 10)
	if err != nil || len(due) != 1 || due[0].Job != "due" || due[0].Fact.Event != events.NameCompleted {
		t.Errorf("due: %+v, %v", due, err)
	}
	fold(t, s, story(11, "due", "c")[5:])
	if due, err := s.Due(context.Background(), func(string) bool { return false }, 10); err != nil || len(due) != 0 {
		t.Errorf("due: %+v, %v", due, err)
	}
	if _, err := s.Get(context.Background(), "other"); !errors.Is(err, ErrNoJob) {
		t.Errorf("unknown: %v", err)
	}
}

func TestAFailedBatchChangesNothing(t *testing.T) {
	s := begin(t, t.TempDir())
	fold(t, s, story(1, "a", "c")[:2])
	if _, err := s.conn.ExecContext(context.Background(), `CREATE TEMP TRIGGER no BEFORE UPDATE ON jobs WHEN old.job = 'a' BEGIN SELECT RAISE(ABORT, 'no'); END`); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Fold(append(story(1, "a", "c")[2:], story(20, "b", "c")...)); err == nil {
		t.Fatal("no error")
	}
	if _, err := s.conn.ExecContext(context.Background(), `DROP TRIGGER temp.no`); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(context.Background(), "b"); !errors.Is(err, ErrNoJob) || s.Checkpoint() != 2 || s.Jobs() != 1 {
		t.Errorf("%v, checkpoint %d, jobs %d", err, s.Checkpoint(), s.Jobs())
	}
	fold(t, s, story(1, "a", "c")[2:])
	if doc, status, err := s.Status(context.Background(), "a"); err != nil || status != "succeeded" {
		t.Errorf("%s, %v", doc, err)
	}
}

func TestDamageIsFoundAtOpen(t *testing.T) {
	for name, damage := range map[string]func(t *testing.T, path string){
		"not a database": func(t *testing.T, path string) { write(t, path, []byte(strings.Repeat("noise", 5000))) },
		"a page gone bad": func(t *testing.T, path string) {
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			for i := 4096 * 2; i < len(data); i++ {
				data[i] ^= 0xff
			}
			write(t, path, data)
		},
		"cut short": func(t *testing.T, path string) {
			if err := os.Truncate(path, 4096*3); err != nil {
				t.Fatal(err)
			}
		},
		"another schema": func(t *testing.T, path string) {
			db, err := sqlOpen(path, 1)
			if err == nil {
				_, err = db.Exec("PRAGMA user_version = 99")
			}
			if err = errors.Join(err, db.Close()); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := begin(t, dir)
			for i := range 50 {
				fold(t, s, story(uint64(1+10*i), fmt.Sprintf("j%d", i), "c"))
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			damage(t, s.path)
			s = begin(t, dir)
			if s.Checkpoint() != 0 || s.Jobs() != 0 {
				t.Errorf("checkpoint %d, jobs %d", s.Checkpoint(), s.Jobs())
			}
			fold(t, s, story(1, "j", "c"))
		})
	}
}

func write(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestAnInterruptedRebuildLeavesTheOldViews(t *testing.T) {
	dir := t.TempDir()
	s := begin(t, dir)
	fold(t, s, story(1, "old", "c"))
	next, err := s.Next(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	fold(t, next, story(1, "half", "c")[:2])
	if err := errors.Join(next.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
	s = begin(t, dir)
	if _, err := s.Get(context.Background(), "old"); err != nil {
		t.Error(err)
	}
	// After the promotion it is the other way round, even when nobody removed the old file.
	if next, err = s.Next(context.Background()); err != nil {
		t.Fatal(err)
	}
	fold(t, next, story(1, "new", "c"))
	if next, err = next.Promote(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(next.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
	s = begin(t, dir)
	if _, err := s.Get(context.Background(), "new"); err != nil {
		t.Error(err)
	}
	left, _ := filepath.Glob(filepath.Join(dir, "views.*.db"))
	if len(left) != 1 {
		t.Errorf("files: %v", left)
	}
}

// A batch cut anywhere, states evicted in between: the views are the same.
func TestBatchesDoNotMatter(t *testing.T) {
	var all []bus.Read
	for i := range 40 {
		for k, r := range story(uint64(1+10*i), fmt.Sprintf("j%d", i), "c") {
			_ = k
			all = append(all, r)
		}
	}
	whole := begin(t, t.TempDir())
	fold(t, whole, all)
	one := begin(t, t.TempDir())
	for i := range all {
		fold(t, one, all[i:i+1])
		if i%7 == 0 {
			one.hot.clear()
		}
	}
	q := Query{Limit: 100, Bytes: 1 << 20}
	a, err1 := whole.List(context.Background(), q)
	b, err2 := one.List(context.Background(), q)
	if d := cmp.Diff(a, b); err1 != nil || err2 != nil || d != "" {
		t.Error(err1, err2, d)
	}
	if d := cmp.Diff(whole.Counts(), one.Counts()); d != "" {
		t.Error(d)
	}
}

// BenchmarkFold folds the events of small jobs at work side by side, as they come from the
// stream, in batches of 512. Its unit of work is an event.
func BenchmarkFold(b *testing.B) {
	for _, batch := range []int{1, 64, 512} {
		b.Run(fmt.Sprintf("batch=%d", batch), func(b *testing.B) {
			s := begin(b, b.TempDir())
			all := interleaved(b.N, 64)
			b.ResetTimer()
			for i := 0; i < b.N; i += batch {
				fold(b, s, all[i:min(i+batch, b.N)])
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
		})
	}
}

// interleaved are n events of jobs of which width are at work at a time.
func interleaved(n, width int) []bus.Read {
	out := make([]bus.Read, 0, n+6*width)
	seq := uint64(1)
	for len(out) < n {
		for step := range 6 {
			for k := range width {
				st := story(seq+uint64(k), fmt.Sprintf("job-%d", seq+uint64(k)), "default")
				out = append(out, st[step])
			}
		}
		seq += uint64(6 * width)
	}
	for i := range out {
		out[i].Sequence = max(out[i].Sequence, uint64(i+1))
	}
	return out[:n]
}

// BenchmarkFoldLargeJob folds the events of one scan of 5,000 pages, 512 a batch.
func BenchmarkFoldLargeJob(b *testing.B) {
	const units = 5000
	pass := events.Pass{Run: 1, Version: 1, Collection: "c", DocumentID: "d", Units: units}
	var all []bus.Read
	for n := 1; n <= units; n++ {
		u := events.Unit{Unit: n, Page: n, Length: 2000, Method: "ocr"}
		seg := fmt.Sprintf("%d-%d", n, n)
		seq := uint64(4*n - 2)
		all = append(all, read(seq, events.NameExtracted, "scan", events.Extracted{Pass: pass, Segment: seg, Units: []events.Unit{u}}))
		u.Chunks = 3
		all = append(all, read(seq+1, events.NameChunked, "scan", events.Chunked{Pass: pass, Segment: seg, Units: []events.Unit{u}}))
		u.Vectors = 3
		all = append(all, read(seq+2, events.NameEmbedded, "scan", events.Embedded{Pass: pass, Segment: seg, Units: []events.Unit{u}}),
			read(seq+3, events.NameIndexed, "scan", events.Indexed{Pass: pass, Segment: seg, Units: []events.Unit{u}}))
	}
	for b.Loop() {
		s := begin(b, b.TempDir())
		for i := 0; i < len(all); i += 64 {
			fold(b, s, all[i:min(i+64, len(all))])
		}
		_ = s.Close()
	}
	b.ReportMetric(float64(len(all)*b.N)/b.Elapsed().Seconds(), "events/s")
}
