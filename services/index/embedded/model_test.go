package embedded_test

import (
	"context"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"sort"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/leafmill/leafmill/services/index"
	"github.com/leafmill/leafmill/services/index/embedded"
)

// The reference: what the rules say, as plainly as they can be said, of one collection.
type reference struct {
	docs    map[string]*refDocument
	cancels map[string]uint64
}

type refDocument struct {
	fence, completed uint64
	versions         map[uint64]*refVersion
}

type refVersion struct {
	job   string
	run   uint64 // highest completed
	total int
	units map[int]*refUnit
}

type refUnit struct {
	run          uint64
	page, length int
	failed       bool
	chunks       []index.Chunk
}

func (r *reference) doc(name string) *refDocument {
	if r.docs[name] == nil {
		r.docs[name] = &refDocument{versions: map[uint64]*refVersion{}}
	}
	return r.docs[name]
}

func (d *refDocument) version(number uint64, job string) *refVersion {
	if d.versions[number] == nil {
		d.versions[number] = &refVersion{job: job, units: map[int]*refUnit{}}
	}
	return d.versions[number]
}

func (r *reference) upsert(s index.Segment) (out index.Outcome) {
	d := r.doc(s.Document)
	out.Fenced = s.Version <= d.fence || s.Run <= r.cancels[s.Job]
	out.Superseded = !out.Fenced && s.Version < d.completed
	if out.Fenced || out.Superseded {
		for _, u := range s.Units {
			out.Units = append(out.Units, index.UnitCount{Unit: u.Number})
		}
		return out
	}
	v := d.version(s.Version, s.Job)
	for _, u := range s.Units {
		old := v.units[u.Number]
		beyond := s.Run < v.run && v.total > 0 && u.Number > v.total
		if !beyond && (old == nil || s.Run >= old.run) {
			now := &refUnit{run: s.Run, page: u.Page, length: u.Length}
			for _, c := range s.Chunks {
				if c.Unit != u.Number {
					continue
				}
				if c.Vector == nil && old != nil {
					for _, o := range old.chunks {
						if o.Text == c.Text && o.Vector != nil { // texts of a unit differ in this test
							c.Vector = o.Vector
						}
					}
				}
				now.chunks = append(now.chunks, c)
			}
			v.units[u.Number] = now
		}
		count := index.UnitCount{Unit: u.Number}
		if have := v.units[u.Number]; have != nil {
			for _, c := range have.chunks {
				count.Chunks++
				if c.Vector != nil {
					count.Vectors++
				}
			}
		}
		out.Units = append(out.Units, count)
		out.Chunks += count.Chunks
		out.Vectors += count.Vectors
	}
	return out
}

func (r *reference) complete(c index.Completion) {
	if c.Cancelled {
		r.cancels[c.Job] = max(r.cancels[c.Job], c.Run)
	}
	d := r.doc(c.Document)
	if c.Version <= d.fence || c.Version < d.completed {
		return
	}
	v := d.versions[c.Version]
	switch {
	case c.Succeeded:
		v = d.version(c.Version, c.Job)
		d.completed = c.Version
		for n := range d.versions {
			if n < c.Version {
				delete(d.versions, n)
			}
		}
		if c.Run >= v.run {
			v.run, v.total = c.Run, c.TotalUnits
		}
		for n, u := range v.units {
			if u.run < v.run && n > v.total {
				delete(v.units, n)
			}
		}
	case v == nil || v.run > 0:
		return
	case c.Cancelled:
		for n, u := range v.units {
			if u.run == c.Run {
				delete(v.units, n)
			}
		}
		if len(v.units) == 0 {
			delete(d.versions, c.Version)
		}
		return
	}
	for _, f := range c.Failed {
		u := v.units[f.Number]
		if v.total > 0 && c.Run < v.run && f.Number > v.total ||
			u != nil && (c.Run < u.run || c.Run == u.run && !u.failed) {
			continue
		}
		now := &refUnit{run: c.Run, page: f.Page, length: f.Length, failed: true}
		if u != nil {
			now.chunks = u.chunks
		}
		v.units[f.Number] = now
	}
}

func (r *reference) delete(name string, fence uint64) {
	d := r.doc(name)
	d.fence = max(d.fence, fence)
	if d.completed <= fence {
		d.completed = 0
	}
	for n := range d.versions {
		if n <= fence {
			delete(d.versions, n)
		}
	}
}

// visible is what a search for everything must find.
func (r *reference) visible() map[string]string {
	found := map[string]string{}
	for name, d := range r.docs {
		shown := d.completed
		if shown == 0 {
			for n := range d.versions {
				shown = max(shown, n)
			}
		}
		v := d.versions[shown]
		if v == nil {
			continue
		}
		for number, u := range v.units {
			start, known := 0, !u.failed
			for n := 1; n < number; n++ {
				before, after := v.units[n], v.units[n+1]
				if before == nil || after == nil {
					known = false
					break
				}
				start += before.length
				if before.page != after.page {
					start++
				}
			}
			for _, c := range u.chunks {
				at := "nil"
				if known {
					at = fmt.Sprint(start+c.Start, "-", start+c.End)
				}
				found[c.ID] = fmt.Sprintf("%s %s page %d at %s vector %t: %s", name, v.job, c.Page, at, c.Vector != nil, c.Text)
			}
		}
	}
	return found
}

const modelSpace = "model"

// seen is the same, by a search.
func seen(t rapid.TB, b *embedded.Backend, collection string) map[string]string {
	a, err := b.Search(context.Background(), index.Query{Text: "common", Vector: vectorOf("query"), Space: modelSpace,
		K: index.MaxK, Filter: index.Filter{Collection: collection}})
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	for _, h := range a.Hits {
		if h.Keyword == nil {
			t.Fatalf("%s is not found by its word", h.ChunkID)
		}
		at := "nil"
		if h.Start != nil {
			at = fmt.Sprint(*h.Start, "-", *h.End)
		}
		if _, twice := found[h.ChunkID]; twice {
			t.Fatalf("%s is found twice", h.ChunkID)
		}
		found[h.ChunkID] = fmt.Sprintf("%s %s page %d at %s vector %t: %s", h.Document, h.Job, h.Page, at, h.Vector != nil, h.Text)
	}
	return found
}

func vectorOf(text string) []float32 {
	h := fnv.New64a()
	h.Write([]byte(text))
	r := rand.New(rand.NewPCG(h.Sum64(), 1))
	v := make([]float32, 16)
	for i := range v {
		v[i] = float32(r.NormFloat64())
	}
	return v
}

// drawSegment draws units of a version; contents repeat often, so that vectors are kept.
func drawSegment(t *rapid.T, collection, document string) index.Segment {
	version := rapid.SampledFrom([]uint64{10, 20, 30}).Draw(t, "version")
	s := index.Segment{
		Job: fmt.Sprintf("%s-%s-%d", collection, document, version), Collection: collection, Document: document, Name: document + ".txt",
		Version: version, Run: version + rapid.Uint64Range(0, 3).Draw(t, "run"), Space: modelSpace,
	}
	first := rapid.IntRange(1, 4).Draw(t, "first")
	for u := first; u < first+rapid.IntRange(1, 3).Draw(t, "units"); u++ {
		page := (u + 1) / 2
		s.Units = append(s.Units, index.Unit{Number: u, Page: page, Length: rapid.IntRange(50, 60).Draw(t, "length")})
		words := rapid.Permutation([]string{"ant", "bee", "cow"}).Draw(t, "words")
		for n := range rapid.IntRange(0, 3).Draw(t, "chunks") {
			text := "common " + words[n]
			c := index.Chunk{ID: fmt.Sprintf("%s@%d/%d.%d", document, version, u, n), Unit: u, N: n, Page: page,
				Start: 10 * n, End: 10*n + len(text), Text: text, Tokens: 2}
			if rapid.IntRange(0, 2).Draw(t, "vector") > 0 {
				c.Vector = vectorOf(text)
			}
			s.Chunks = append(s.Chunks, c)
		}
	}
	return s
}

func drawCompletion(t *rapid.T, collection, document string) index.Completion {
	version := rapid.SampledFrom([]uint64{10, 20, 30}).Draw(t, "version")
	c := index.Completion{
		Job: fmt.Sprintf("%s-%s-%d", collection, document, version), Collection: collection, Document: document,
		Version: version, Run: version + rapid.Uint64Range(0, 3).Draw(t, "run"), TotalUnits: rapid.IntRange(1, 7).Draw(t, "total"),
	}
	switch rapid.IntRange(0, 3).Draw(t, "end") {
	case 0:
		c.Cancelled = true
	case 1:
	default:
		c.Succeeded = true
	}
	if rapid.Bool().Draw(t, "some failed") {
		n := rapid.IntRange(1, c.TotalUnits).Draw(t, "failed")
		c.Failed = []index.Unit{{Number: n, Page: (n + 1) / 2, Length: rapid.IntRange(5, 6).Draw(t, "failed length")}}
	}
	return c
}

// TestModel plays random messages, in any order and any number of times, to a backend and
// to the reference, and compares what searches see after every step.
func TestModel(t *testing.T) {
	b := open(t, t.TempDir())
	runs := 0
	rapid.Check(t, func(t *rapid.T) {
		runs++
		collection := fmt.Sprintf("c%d", runs)
		ref := &reference{docs: map[string]*refDocument{}, cancels: map[string]uint64{}}
		play(t, b, ref, collection, rapid.IntRange(1, 25).Draw(t, "steps"))
	})
}

// play makes steps and compares after each; before them it repeats some at random.
func play(t *rapid.T, b *embedded.Backend, ref *reference, collection string, steps int) {
	ctx := context.Background()
	var past []func()
	var log []string
	for range steps {
		document := rapid.SampledFrom([]string{"a", "b"}).Draw(t, "document")
		var step func()
		switch what := rapid.IntRange(0, 11).Draw(t, "what"); {
		case what < 6:
			s := drawSegment(t, collection, document)
			step = func() {
				log = append(log, fmt.Sprintf("upsert %+v", s))
				got, err := b.Upsert(ctx, s)
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(ref.upsert(s), got); diff != "" {
					t.Fatalf("outcome (-want +got):\n%s\nafter:\n%s", diff, strings.Join(log, "\n"))
				}
			}
		case what < 9:
			c := drawCompletion(t, collection, document)
			step = func() {
				log = append(log, fmt.Sprintf("complete %+v", c))
				if err := b.Complete(ctx, c); err != nil {
					t.Fatal(err)
				}
				ref.complete(c)
			}
		case what == 9:
			fence := rapid.SampledFrom([]uint64{5, 10, 20, 25}).Draw(t, "fence")
			step = func() {
				log = append(log, fmt.Sprintf("delete %s up to %d", document, fence))
				if err := b.Delete(ctx, collection, document, fence); err != nil {
					t.Fatal(err)
				}
				ref.delete(document, fence)
			}
		case what == 10 || len(past) == 0:
			job, fence := fmt.Sprintf("%s-%s-20", collection, document), rapid.Uint64Range(20, 22).Draw(t, "fence")
			step = func() {
				log = append(log, fmt.Sprintf("cancel %s up to %d", job, fence))
				if err := b.Cancel(ctx, job, fence); err != nil {
					t.Fatal(err)
				}
				ref.cancels[job] = max(ref.cancels[job], fence)
			}
		default:
			step = rapid.SampledFrom(past).Draw(t, "again")
		}
		step()
		past = append(past, step)
		if diff := cmp.Diff(ref.visible(), seen(t, b, collection)); diff != "" {
			t.Fatalf("seen (-want +got):\n%s\nafter:\n%s", diff, strings.Join(log, "\n"))
		}
	}
}

// TestModelReopened is the same with a new process now and then: what memory and Bleve
// know must come back from SQLite.
func TestModelReopened(t *testing.T) {
	dir := t.TempDir()
	runs := 0
	b := open(t, dir)
	defer func() { _ = b.Close() }()
	rapid.Check(t, func(t *rapid.T) {
		if runs++; runs > 8 {
			return
		}
		collection := fmt.Sprintf("c%d", runs)
		ref := &reference{docs: map[string]*refDocument{}, cancels: map[string]uint64{}}
		play(t, b, ref, collection, 20)
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		var err error
		if b, err = embedded.Open(context.Background(), embedded.Options{Dir: dir, Sync: embedded.SyncInterval}); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(ref.visible(), seen(t, b, collection)); diff != "" {
			t.Fatalf("after a restart (-want +got):\n%s", diff)
		}
		play(t, b, ref, collection, 5)
	})
}

func open(t testing.TB, dir string) *embedded.Backend {
	t.Helper()
	b, err := embedded.Open(context.Background(), embedded.Options{Dir: dir, Sync: embedded.SyncInterval})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

func ids(hits []index.Hit) []string {
	all := make([]string, len(hits))
	for i, h := range hits {
		all[i] = h.ChunkID
	}
	sort.Strings(all)
	return all
}
