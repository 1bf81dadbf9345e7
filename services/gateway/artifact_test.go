package gateway_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"

	"github.com/leafmill/leafmill/events"
	"github.com/leafmill/leafmill/internal/api"
	"github.com/leafmill/leafmill/internal/bus"
	"github.com/leafmill/leafmill/services/gateway"
)

// fataler is a test or a rapid check.
type fataler interface {
	Helper()
	Fatal(...any)
	Fatalf(string, ...any)
}

// unit is what one event says of a unit.
type unit struct {
	n, page int
	text    string
	failed  bool
}

func (e *env) publish(t fataler, name events.Name, job string, body any) uint64 {
	t.Helper()
	seq, err := e.conn.Publish(e.t.Context(), name, job, body, bus.PublishOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return seq
}

// extracted publishes the text of consecutive units.
func (e *env) extracted(t fataler, job string, p events.Pass, units ...unit) uint64 {
	t.Helper()
	b := events.Extracted{Pass: p}
	texts := []events.UnitText{}
	for _, u := range units {
		eu := events.Unit{Unit: u.n, Page: u.page, Length: utf8.RuneCountInString(u.text), Method: "parser"}
		if u.failed {
			eu.Length, eu.Problem = 0, &events.Problem{Code: "ocr.timeout", Stage: "ocr", Message: "Too slow."}
		} else {
			texts = append(texts, events.UnitText{Unit: u.n, Text: u.text})
		}
		b.Units = append(b.Units, eu)
	}
	b.Segment = events.RangeOf(b.Units).String()
	var err error
	if b.Content, err = e.store.Put(e.t.Context(), job, texts); err != nil {
		t.Fatal(err)
	}
	return e.publish(t, events.NameExtracted, job, b)
}

// chunked publishes chunks of at most size code points of the units.
func (e *env) chunked(t fataler, job string, p events.Pass, size int, units ...unit) {
	t.Helper()
	b := events.Chunked{Pass: p}
	chunks := []events.Chunk{}
	for _, u := range units {
		text := []rune(u.text)
		eu := events.Unit{Unit: u.n, Page: u.page, Length: len(text)}
		for at := 0; at < len(text); at += size {
			eu.Chunks++
			end := min(at+size, len(text))
			chunks = append(chunks, events.Chunk{ID: events.ChunkID(p.DocumentID, p.Version, u.n, eu.Chunks), Unit: u.n, N: eu.Chunks, Page: u.page,
				Start: at, End: end, Text: string(text[at:end]), Tokens: end - at})
		}
		b.Units = append(b.Units, eu)
	}
	b.Segment = events.RangeOf(b.Units).String()
	var err error
	if b.Content, err = e.store.Put(e.t.Context(), job, chunks); err != nil {
		t.Fatal(err)
	}
	e.publish(t, events.NameChunked, job, b)
}

func pass(job string, run uint64, units int) events.Pass {
	return events.Pass{Run: run, Version: 1, Collection: "default", DocumentID: job, Units: units}
}

func TestTextAndChunks(t *testing.T) {
	e := newEnv(t, gateway.Config{})
	for _, path := range []string{"/jobs/unknown/artifacts/text", "/jobs/unknown/artifacts/chunks", "/jobs/a.b/artifacts/text"} {
		if a := e.get(path); a.status != 404 || a.problem(t).Code != "gateway.not_found" {
			t.Errorf("%s: %d %s", path, a.status, a.body)
		}
	}
	e.submit("j", "whatever")
	text := func(want string) {
		t.Helper()
		if a := e.get("/jobs/j/artifacts/text"); a.status != 200 || a.body != want || a.header.Get("Content-Type") != "text/plain; charset=utf-8" {
			t.Errorf("%d %q %s, want %q", a.status, a.body, a.header.Get("Content-Type"), want)
		}
	}
	text("")
	if a := e.get("/jobs/j/artifacts/chunks"); a.body != `{"chunks":[]}`+"\n" {
		t.Error(a.body)
	}
	p := pass("j", 1, 5)
	e.extracted(t, "j", p, unit{4, 2, "Würfel", false}, unit{5, 3, "", true})
	text("Würfel\f")
	e.extracted(t, "j", p, unit{1, 1, "ab", false}, unit{2, 1, "cd", false})
	text("abcd\fWürfel\f")
	four := []unit{{4, 2, "Würfel", false}}
	e.chunked(t, "j", p, 4, four...)
	e.chunked(t, "j", p, 4, unit{1, 1, "ab", false}, unit{2, 1, "cd", false})
	golden(t, "chunks-early.json", e.get("/jobs/j/artifacts/chunks").body) // unit 3 is missing
	e.extracted(t, "j", p, unit{3, 1, "", false})
	golden(t, "chunks.json", e.get("/jobs/j/artifacts/chunks").body)
	// A later run replaces what it has, and ends the document after its own last unit.
	e.extracted(t, "j", pass("j", 9, 3), unit{2, 2, "<&>\f", false})
	text("ab\f<&>\f\f")
	golden(t, "chunks-later.json", e.get("/jobs/j/artifacts/chunks").body) // those of unit 2 are stale
	e.extracted(t, "j", p, unit{1, 1, "of an earlier run, but later", false}, unit{2, 1, "too late", false})
	text("of an earlier run, but later\f<&>\f\f")
}

func TestLargeTextsComeFromTheBucket(t *testing.T) {
	e := newEnv(t, gateway.Config{})
	e.submit("big", "x")
	const units = 40
	var want strings.Builder
	for n := 1; n <= units; n += 2 {
		a := unit{n, n, strings.Repeat(fmt.Sprintf("Seite %d – ", n), 8000), false}
		b := unit{n + 1, n + 1, "short", false}
		e.extracted(t, "big", pass("big", 1, units), a, b)
		e.chunked(t, "big", pass("big", 1, units), 1000, a, b)
		if n > 1 {
			want.WriteString("\f")
		}
		want.WriteString(a.text + "\f" + b.text)
	}
	if a := e.get("/jobs/big/artifacts/text"); a.body != want.String() {
		t.Errorf("%d bytes, want %d", len(a.body), want.Len())
	}
	checkPositions(t, e, "big", want.String(), func(api.ArtifactChunk) bool { return true })
}

// checkPositions says whether text sliced by a chunk's position is the chunk, and whether
// those have a position that should.
func checkPositions(t fataler, e *env, job, text string, known func(api.ArtifactChunk) bool) int {
	t.Helper()
	a := e.get("/jobs/" + job + "/artifacts/chunks")
	var got api.ArtifactChunks
	if err := json.Unmarshal([]byte(a.body), &got); a.status != 200 || err != nil {
		t.Fatalf("%d %v %.200s", a.status, err, a.body)
	}
	runes := []rune(text)
	for _, c := range got.Chunks {
		if (c.Start != nil) != known(c) || (c.Start == nil) != (c.End == nil) {
			t.Fatalf("chunk %s: start %v, end %v", c.ID, c.Start, c.End)
		}
		if c.Start != nil && string(runes[*c.Start:*c.End]) != c.Text {
			t.Fatalf("chunk %s at %d-%d is %q, not %q", c.ID, *c.Start, *c.End, string(runes[*c.Start:*c.End]), c.Text)
		}
	}
	return len(got.Chunks)
}

// TestArtifactsOfAnyStory publishes segments of several runs in any order, with failed and
// missing units, and compares with a model that keeps everything in memory.
func TestArtifactsOfAnyStory(t *testing.T) {
	e := newEnv(t, gateway.Config{})
	type said struct {
		unit
		run, seq uint64
	}
	texts := rapid.StringOfN(rapid.RuneFrom([]rune("ab ü–漢😀\f\n<&")), 0, 12, -1)
	jobs := 0
	rapid.Check(t, func(rt *rapid.T) {
		jobs++
		job := fmt.Sprint("story", jobs)
		e.publish(rt, events.NameSubmitted, job, events.Submitted{Text: "x"})
		total := rapid.IntRange(1, 8).Draw(rt, "units")
		best := map[int]said{}
		fresh := map[int]bool{} // the unit's latest chunks are of its latest text
		chunkRun := map[int]uint64{}
		chunks := map[int]int{}
		top := false
		for range rapid.IntRange(0, 12).Draw(rt, "segments") {
			run := rapid.SampledFrom([]uint64{1, 1, 5}).Draw(rt, "run")
			first := rapid.IntRange(1, total).Draw(rt, "first")
			last := min(total, first+rapid.IntRange(0, 3).Draw(rt, "more"))
			var units, whole []unit
			for n := first; n <= last; n++ {
				u := unit{n: n, page: (n + 1) / 2, failed: rapid.IntRange(0, 5).Draw(rt, "failed") == 0}
				if !u.failed {
					u.text = texts.Draw(rt, "text")
					whole = append(whole, u)
				}
				units = append(units, u)
			}
			seq := e.extracted(rt, job, pass(job, run, total), units...)
			top = true
			for _, u := range units {
				if run >= best[u.n].run {
					best[u.n], fresh[u.n] = said{u, run, seq}, false
				}
			}
			if len(whole) == len(units) && rapid.Bool().Draw(rt, "chunked") {
				size := rapid.IntRange(1, 5).Draw(rt, "size")
				e.chunked(rt, job, pass(job, run, total), size, whole...)
				for _, u := range whole {
					if run >= chunkRun[u.n] {
						chunkRun[u.n], fresh[u.n] = run, best[u.n].seq == seq
						chunks[u.n] = (utf8.RuneCountInString(u.text) + size - 1) / size
					}
				}
			}
		}
		var want strings.Builder
		page, missing := 0, total+1 // the first missing unit
		if !top {
			missing = 1
		}
		for n := 1; n <= total; n++ {
			s, ok := best[n]
			if !ok {
				missing = min(missing, n)
				continue
			}
			if page != 0 && page != s.page {
				want.WriteString("\f")
			}
			page = s.page
			want.WriteString(s.text)
		}
		if a := e.get("/jobs/" + job + "/artifacts/text"); a.status != 200 || a.body != want.String() {
			rt.Fatalf("%d: %q, want %q", a.status, a.body, want.String())
		}
		wantChunks := 0
		for _, n := range chunks {
			wantChunks += n
		}
		n := checkPositions(rt, e, job, want.String(), func(c api.ArtifactChunk) bool {
			var unit, k int
			if _, err := fmt.Sscanf(c.ID[strings.Index(c.ID, "/")+1:], "%d.%d", &unit, &k); err != nil {
				rt.Fatal(err)
			}
			return unit < missing && fresh[unit]
		})
		if n != wantChunks {
			rt.Fatalf("%d chunks, want %d", n, wantChunks)
		}
	})
}
