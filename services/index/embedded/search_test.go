package embedded_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"

	"github.com/leafmill/leafmill/events"
	"github.com/leafmill/leafmill/services/index"
	"github.com/leafmill/leafmill/services/index/embedded"
)

// note is a document of one unit with the given chunks, without vectors.
func note(collection, document string, version uint64, texts ...string) index.Segment {
	s := index.Segment{Job: fmt.Sprintf("job-%s-%d", document, version), Collection: collection, Document: document, Name: document + ".txt",
		Version: version, Run: version, Units: []index.Unit{{Number: 1, Page: 1, Length: 1000}}, TotalUnits: 1}
	for n, text := range texts {
		s.Chunks = append(s.Chunks, index.Chunk{ID: fmt.Sprintf("%s@%d/1.%d", document, version, n), Unit: 1, N: n, Page: 1, Start: 100 * n,
			End: 100*n + len([]rune(text)), Text: text})
	}
	return s
}

// put stores segments, in no order.
func put(t testing.TB, b *embedded.Backend, segments ...index.Segment) {
	t.Helper()
	var group errgroup.Group
	group.SetLimit(64)
	for _, s := range segments {
		group.Go(func() error {
			_, err := b.Upsert(context.Background(), s)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
}

func search(t testing.TB, b *embedded.Backend, q index.Query) []index.Hit {
	t.Helper()
	a, err := b.Search(context.Background(), q)
	if err != nil {
		t.Fatal(err)
	}
	return a.Hits
}

// TestScoresAreBM25 compares the keyword leg with the formula, written down plainly.
func TestScoresAreBM25(t *testing.T) {
	b := open(t, t.TempDir())
	r := rand.New(rand.NewPCG(1, 2))
	words := strings.Fields("zorb quix vand mell trop hisk jund wexo") // no language has them
	var texts []string
	var notes []index.Segment
	for i := range 200 {
		var text []string
		for range 1 + r.IntN(12) {
			text = append(text, words[min(r.IntN(8), r.IntN(8))])
		}
		texts = append(texts, strings.Join(text, " "))
		notes = append(notes, note("c", fmt.Sprintf("d%d", i), 1, texts[i]))
	}
	put(t, b, notes...)
	average := 0.
	for _, text := range texts {
		average += float64(len(strings.Fields(text))) / float64(len(texts))
	}
	for _, query := range []string{"wexo", "zorb wexo", "mell trop trop unseen"} {
		want := map[string]float64{}
		for _, word := range strings.Fields(query) {
			df := 0.
			for _, text := range texts {
				if strings.Contains(text, word) {
					df++
				}
			}
			idf := math.Log(1 + (200-df+.5)/(df+.5))
			for i, text := range texts {
				if tf := float64(strings.Count(text, word)); tf > 0 {
					length := float64(len(strings.Fields(text)))
					want[fmt.Sprintf("d%d@1/1.0", i)] += idf * tf * 2.2 / (tf + 1.2*(.25+.75*length/average))
				}
			}
		}
		hits := search(t, b, index.Query{Text: query, Mode: index.Keyword, K: index.MaxK})
		if len(hits) != len(want) {
			t.Fatalf("%q: %d hits, want %d", query, len(hits), len(want))
		}
		last := math.Inf(1)
		for _, h := range hits {
			if math.Abs(h.Score-want[h.ChunkID]) > 1e-4 || h.Score != *h.Keyword || h.Vector != nil {
				t.Errorf("%q: %s has %f, want %f", query, h.ChunkID, h.Score, want[h.ChunkID])
			}
			if h.Score > last {
				t.Errorf("%q: %s is out of order", query, h.ChunkID)
			}
			last = h.Score
		}
	}
}

func TestLanguages(t *testing.T) {
	b := open(t, t.TempDir())
	put(t, b,
		note("c", "en", 1, "The companies were running their largest factories for the whole of the year, and all of them reported earnings in FY2018."),
		note("c", "de", 1, "Die Häuser der Stadt wurden in den letzten Jahren von der Gemeinde erneuert, und die Straßen sind nun auch in einem guten Zustand."),
		note("c", "es", 1, "Las compañías de la región han publicado sus cuentas y los resultados son mejores que los del año pasado, según el informe."),
		note("c", "fr", 1, "L'économie de la région s'est améliorée cette année, et les entreprises ont publié des résultats qui sont meilleurs que prévu."),
		note("c", "ru", 1, "В этом году компании опубликовали отчёты, которые показывают, что результаты лучше, чем в прошлом году."),
		note("c", "cjk", 1, "日本の会社は今年の報告書を発表しました。"),
		note("c", "xx", 1, "Zürich 4711"),
	)
	given := note("c", "given", 1, "Katzen")
	given.Language = "de-CH"
	put(t, b, given)
	for query, want := range map[string]string{
		"company run":          "en", // stems
		"what was the FACTORY": "en", // stop words out, case folded
		"2018":                 "en", // letters and digits split
		"fy 2018 earning":      "en",
		"Haus erneuern":        "de", // umlaut and ending
		"strasse":              "de",
		"ano pasado":           "es", // accents off
		"economie":             "fr", // elision
		"отчёт":                "ru",
		"報告書":                  "cjk",
		"zurich":               "xx",
		"Katze":                "given",
	} {
		hits := search(t, b, index.Query{Text: query, Mode: index.Keyword, K: 1})
		if len(hits) != 1 || hits[0].Document != want {
			t.Errorf("%q finds %v, want %s", query, ids(hits), want)
			continue
		}
		if len(hits[0].Highlights) == 0 {
			t.Errorf("%q: nothing highlighted", query)
		}
	}
	if hits := search(t, b, index.Query{Text: "the of was", Mode: index.Keyword}); len(hits) != 0 {
		t.Errorf("stop words find %v", ids(hits))
	}
}

func TestHighlightsAreCodePoints(t *testing.T) {
	b := open(t, t.TempDir())
	text := "🌱 Ünder FY2018 xyz 'Straße' xyz under; straße"
	put(t, b, note("c", "d", 1, text))
	hits := search(t, b, index.Query{Text: "under 2018 fy straße", Mode: index.Keyword})
	if len(hits) != 1 {
		t.Fatal(hits)
	}
	var got []string
	for _, r := range hits[0].Highlights {
		got = append(got, string([]rune(text)[r[0]:r[1]]))
	}
	if diff := cmp.Diff([]string{"Ünder", "FY", "2018", "Straße", "under", "straße"}, got); diff != "" {
		t.Error(diff)
	}
}

// TestSwitchIsAtomic replaces a document again and again under searches in all modes: each
// must see all chunks of exactly one version.
func TestSwitchIsAtomic(t *testing.T) {
	b := open(t, t.TempDir())
	const chunks = 6
	version := func(n uint64) index.Segment {
		var texts []string
		for i := range chunks {
			texts = append(texts, fmt.Sprintf("common part%d of edition%d", i, n))
		}
		s := note("c", "d", n, texts...)
		s.Space = modelSpace
		for i := range s.Chunks {
			s.Chunks[i].Vector = vectorOf(s.Chunks[i].Text)
		}
		return s
	}
	complete := func(s index.Segment) {
		if err := b.Complete(context.Background(), index.Completion{Job: s.Job, Collection: "c", Document: "d", Version: s.Version, Run: s.Run,
			Succeeded: true, TotalUnits: 1}); err != nil {
			t.Error(err)
		}
	}
	put(t, b, version(1))
	complete(version(1))
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for _, mode := range []index.Mode{index.Hybrid, index.Keyword, index.Dense} {
		wg.Go(func() {
			for ctx.Err() == nil {
				a, err := b.Search(context.Background(), index.Query{Text: "common", Vector: vectorOf("q"), Space: modelSpace, Mode: mode, K: 50})
				if err != nil {
					t.Error(err)
					return
				}
				seen := map[uint64]int{}
				for _, h := range a.Hits {
					seen[h.Version]++
				}
				if len(seen) != 1 || len(a.Hits) != chunks {
					t.Errorf("%s saw chunks by version %v", mode, seen)
					return
				}
			}
		})
	}
	for n := uint64(2); n < 50; n++ {
		s := version(n)
		put(t, b, s)
		complete(s)
	}
	stop()
	wg.Wait()
	agree(t, b)
}

// TestConcurrentWriters has many writers and searchers at once, for the race detector.
func TestConcurrentWriters(t *testing.T) {
	b := open(t, t.TempDir())
	c := newCorpus(3, 32, .3)
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 15 {
				s := c.segment(w*100+i, 3, 30)
				put(t, b, s)
				hits, err := b.Search(context.Background(), index.Query{Text: s.Chunks[0].Text[:40], Vector: s.Chunks[1].Vector, Space: "corpus",
					K: 5, Filter: index.Filter{Document: s.Document}})
				if err != nil || len(hits.Hits) == 0 || hits.Hits[0].Document != s.Document {
					t.Errorf("%s is not searchable when stored: %v %v", s.Document, hits, err)
				}
				if i%5 == 0 {
					if err := b.Delete(context.Background(), s.Collection, s.Document, s.Version); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	agree(t, b)
	stats, err := b.Stats(context.Background())
	if err != nil || stats.Documents != 8*12 || stats.Chunks != 8*12*3 || stats.Vectors != stats.Chunks || stats.Visible != stats.Chunks || stats.DiskBytes == 0 {
		t.Errorf("%+v, %v", stats, err)
	}
}

// TestFiltersAreExact asks for small and large parts of an index in which others rank higher.
func TestFiltersAreExact(t *testing.T) {
	b := open(t, t.TempDir())
	var notes []index.Segment
	for i := range 400 {
		collection := "large"
		text := "common common common" // ranks above
		if i%100 == 7 {
			collection, text = "small", "common and a good many other words that make it longer"
		}
		s := note(collection, fmt.Sprintf("d%d", i%200), uint64(i+1), text)
		s.Space, s.Chunks[0].Vector = modelSpace, vectorOf(fmt.Sprint(i))
		notes = append(notes, s)
	}
	put(t, b, notes...)
	for _, mode := range []index.Mode{index.Hybrid, index.Keyword, index.Dense} {
		for _, f := range []struct {
			filter index.Filter
			want   []string
		}{
			{index.Filter{Collection: "small"}, []string{"d107@108/1.0", "d107@308/1.0", "d7@208/1.0", "d7@8/1.0"}},
			{index.Filter{Document: "d8"}, []string{"d8@209/1.0"}}, // the newer version of the two
			{index.Filter{Collection: "small", Document: "d7"}, []string{"d7@208/1.0"}},
			{index.Filter{Collection: "large", Document: "d7"}, nil},
			{index.Filter{Collection: "none"}, nil},
		} {
			hits := search(t, b, index.Query{Text: "common", Vector: vectorOf("q"), Space: modelSpace, Mode: mode, K: 10, Filter: f.filter})
			want := f.want
			if f.filter == (index.Filter{Collection: "small"}) { // d7 and d107 have a newer version each
				want = []string{"d107@308/1.0", "d7@208/1.0"}
			}
			if diff := cmp.Diff(want, slices.Clip(ids(hits)), cmp.Transformer("empty", func(s []string) string { return strings.Join(s, " ") })); diff != "" {
				t.Errorf("%s %+v:\n%s", mode, f.filter, diff)
			}
		}
		if hits := search(t, b, index.Query{Text: "common", Vector: vectorOf("q"), Space: modelSpace, Mode: mode, K: index.MaxK,
			Filter: index.Filter{Collection: "large"}}); len(hits) != 198 {
			t.Errorf("%s finds %d of the large collection's 198", mode, len(hits))
		}
	}
}

// TestSpaces: vectors of another space are refused until it is the active one; those of the
// old one then count no more, and count again when it returns.
func TestSpaces(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	b := open(t, dir)
	a := note("c", "a", 1, "ant")
	a.Space, a.Chunks[0].Vector = "old", []float32{3, 4}
	put(t, b, a)
	other := note("c", "b", 2, "bee")
	other.Space, other.Chunks[0].Vector = "new", []float32{1, 0, 0}
	if _, err := b.Upsert(ctx, other); events.ClassOf(err) != events.Invalid {
		t.Fatalf("a vector of another space: %v", err)
	}
	if hits := search(t, b, index.Query{Text: "bee"}); len(hits) != 0 {
		t.Fatal("what was refused is there")
	}
	if _, err := b.Search(ctx, index.Query{Text: "ant", Vector: []float32{1, 0, 0}, Space: "new"}); !errors.Is(err, index.ErrSpace) {
		t.Fatalf("a query of another space: %v", err)
	}
	if err := b.UseSpace(ctx, "new"); err != nil {
		t.Fatal(err)
	}
	out, err := b.Upsert(ctx, other)
	if err != nil || out.Vectors != 1 {
		t.Fatal(out, err)
	}
	if diff := cmp.Diff(index.Space{Name: "new", Dimensions: 3}, b.Space()); diff != "" {
		t.Error(diff)
	}
	out, err = b.Upsert(ctx, note("c", "a", 1, "ant")) // degraded: its vector is of the old space
	if err != nil || out.Chunks != 1 || out.Vectors != 0 {
		t.Errorf("%+v, %v", out, err)
	}
	if hits := search(t, b, index.Query{Mode: index.Dense, Vector: []float32{0, 1, 1}, Space: "new"}); len(hits) != 1 || hits[0].Document != "b" {
		t.Error(ids(hits))
	}
	if err := b.UseSpace(ctx, "old"); err != nil {
		t.Fatal(err)
	}
	hits := search(t, b, index.Query{Mode: index.Dense, Vector: []float32{3, 4}, Space: "old"})
	if len(hits) != 1 || hits[0].Document != "a" || math.Abs(hits[0].Score-1) > 1e-6 {
		t.Error(hits)
	}
}

func TestRefusals(t *testing.T) {
	ctx := context.Background()
	b := open(t, t.TempDir())
	for name, change := range map[string]func(*index.Segment){
		"no job":             func(s *index.Segment) { s.Job = "" },
		"no version":         func(s *index.Segment) { s.Version = 0 },
		"unit twice":         func(s *index.Segment) { s.Units = append(s.Units, s.Units[0]) },
		"unit out of range":  func(s *index.Segment) { s.Units[0].Number = 1 << 30 },
		"chunk of no unit":   func(s *index.Segment) { s.Chunks[0].Unit = 2 },
		"chunk twice":        func(s *index.Segment) { s.Chunks = append(s.Chunks, s.Chunks[0]) },
		"span":               func(s *index.Segment) { s.Chunks[0].End = -1 },
		"zero vector":        func(s *index.Segment) { s.Space, s.Chunks[0].Vector = "s", []float32{0, 0} },
		"infinite vector":    func(s *index.Segment) { s.Space, s.Chunks[0].Vector = "s", []float32{1, float32(math.Inf(1))} },
		"vector of no space": func(s *index.Segment) { s.Chunks[0].Vector = []float32{1} },
	} {
		s := note("c", "d", 1, "text")
		change(&s)
		if _, err := b.Upsert(ctx, s); events.ClassOf(err) != events.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, q := range map[string]index.Query{
		"k":             {Text: "a", K: 301},
		"mode":          {Text: "a", Mode: "best"},
		"dense, no vec": {Text: "a", Mode: index.Dense},
		"long":          {Text: strings.Repeat("a", 10_000)},
	} {
		if _, err := b.Search(ctx, q); events.ClassOf(err) != events.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := b.Complete(ctx, index.Completion{Job: "j", Collection: "c", Document: "d", Version: 1, Run: 1, Succeeded: true, Cancelled: true}); events.ClassOf(err) != events.Invalid {
		t.Error(err)
	}
	if a, err := b.Search(ctx, index.Query{Text: "text", Vector: []float32{1}, Space: "s"}); err != nil || a.Mode != index.Keyword || len(a.Hits) != 0 {
		t.Errorf("an empty index answers %+v, %v", a, err)
	}
}

func TestClosedAndLocked(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	b := open(t, dir)
	if _, err := embedded.Open(ctx, embedded.Options{Dir: dir}); events.ClassOf(err) != events.Unavailable {
		t.Errorf("a second process: %v", err)
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := b.Search(cancelled, index.Query{Text: "a"}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled search: %v", err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Upsert(ctx, note("c", "d", 1, "text")); events.ClassOf(err) != events.Unavailable {
		t.Errorf("upsert when closed: %v", err)
	}
	if _, err := b.Search(ctx, index.Query{Text: "a"}); events.ClassOf(err) != events.Unavailable {
		t.Errorf("search when closed: %v", err)
	}
}

// TestOneUnitLate: positions behind a missing unit are null, and right once it comes.
func TestOneUnitLate(t *testing.T) {
	b := open(t, t.TempDir())
	page := func(n int) index.Segment {
		s := note("c", "d", 1, fmt.Sprintf("common page%d", n))
		s.Units[0] = index.Unit{Number: n, Page: n, Length: 100}
		s.Chunks[0].Unit, s.Chunks[0].ID = n, fmt.Sprintf("d@1/%d.0", n)
		return s
	}
	const pages = 5000
	for n := pages; n > pages-3; n-- {
		put(t, b, page(n))
	}
	var segment index.Segment
	for n := 2; n <= pages-3; n++ {
		p := page(n)
		segment.Job, segment.Collection, segment.Document, segment.Version, segment.Run = p.Job, p.Collection, p.Document, p.Version, p.Run
		segment.Units = append(segment.Units, p.Units...)
	}
	put(t, b, segment)
	if h := search(t, b, index.Query{Text: "page5000"}); len(h) == 0 || h[0].Start != nil || h[0].End != nil {
		t.Fatalf("%+v", h)
	}
	put(t, b, page(1))
	if h := search(t, b, index.Query{Text: "page5000"}); len(h) == 0 || h[0].Start == nil || *h[0].Start != (pages-1)*101 || *h[0].End != (pages-1)*101+15 {
		t.Fatalf("%+v", h)
	}
}
