package embedded

import (
	"cmp"
	"context"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/blevesearch/bleve/v2/analysis"
	bleveindex "github.com/blevesearch/bleve_index_api"

	"github.com/leafmill/leafmill/services/index"
)

// BM25 over Bleve's postings. Bleve 2.6.1's own "BM25" takes the square root of the term
// frequency, the number of distinct terms for the average length, and multiplies the idf
// in twice; it also cannot tell the query's idf, which the fusion needs.
const (
	bm25K1 = 1.2
	bm25B  = .75
)

// maxWords bounds the distinct words of a query; those beyond it are not looked up.
const maxWords = 64

// word is a word of the query: its terms in the languages of the index, as one with one
// idf, so that a chunk whose language was guessed wrong is not ranked by a rare stem.
type word struct {
	terms  []string // by language; "" where it is a stop word
	weight float64  // how often the query has it
}

// words analyses a query in every language that the index has chunks of. Stop words of the
// language that the query has most of are dropped in all.
func (a *analyzers) words(text string, chunks []int) []word {
	type span struct{ start, end int }
	stops, best := 0, -1
	for l := range a.languages {
		if chunks[l] == 0 || a.languages[l].stop == nil {
			continue
		}
		n := 0
		for _, t := range a.terms(unknown, text) {
			if a.languages[l].stop[lower(text, t)] {
				n++
			}
		}
		if n > stops || n == stops && n > 0 && chunks[l] > chunks[best] {
			stops, best = n, l
		}
	}
	var found []word
	bySpan := map[span]int{}
	for l := range a.languages {
		if chunks[l] == 0 {
			continue
		}
		for _, t := range a.terms(l, text) {
			if len(t.Term) == 0 || best >= 0 && a.languages[best].stop[lower(text, t)] {
				continue
			}
			i, ok := bySpan[span{t.Start, t.End}]
			if !ok {
				i = len(found)
				bySpan[span{t.Start, t.End}] = i
				found = append(found, word{terms: make([]string, len(a.languages)), weight: 1})
			}
			found[i].terms[l] = string(t.Term)
		}
	}
	// The same word again weighs more and is looked up once.
	distinct := found[:0]
	for _, w := range found {
		if i := slices.IndexFunc(distinct, func(d word) bool { return slices.Equal(d.terms, w.terms) }); i >= 0 {
			distinct[i].weight++
		} else if len(distinct) < maxWords {
			distinct = append(distinct, w)
		}
	}
	return distinct
}

// lower is the word of a token as the text has it, in lower case.
func lower(text string, t *analysis.Token) string {
	if t.Start < 0 || t.End > len(text) || t.Start > t.End {
		return ""
	}
	return strings.ToLower(text[t.Start:t.End])
}

// ranking is what the keyword leg found.
type ranking struct {
	slots  []uint32
	scores []float64
	idf    float64 // sum over the query's words, in the language of the best hit
}

// accumulators are the scores of one search, by Bleve's document number.
type accumulators struct {
	scores  []float32
	touched []uint32
}

var pool = sync.Pool{New: func() any { return new(accumulators) }}

// rank scores all chunks that have a word of the query, and returns the best n of those
// chosen. The memory's read lock must be held.
func (k *keywords) rank(ctx context.Context, m *memory, q index.Query, words []word, chosen selection, n int) (ranking, error) {
	if len(words) == 0 || m.chunks == 0 {
		return ranking{}, nil
	}
	r, err := k.reader()
	if err != nil {
		return ranking{}, err
	}
	defer func() { _ = r.Close() }()
	acc := pool.Get().(*accumulators)
	defer func() {
		for _, d := range acc.touched {
			acc.scores[d] = 0
		}
		acc.touched = acc.touched[:0]
		pool.Put(acc)
	}()
	var only bitset
	if chosen.rare {
		if only, err = k.filtered(ctx, r, q.Filter); err != nil {
			return ranking{}, err
		}
	}
	average := float64(m.terms64) / float64(m.chunks)
	weights := make([]float64, len(words))
	for i, w := range words {
		if err := ctx.Err(); err != nil {
			return ranking{}, err
		}
		if weights[i], err = k.score(ctx, r, acc, w, float64(m.chunks), average, only); err != nil {
			return ranking{}, err
		}
	}
	found, err := acc.best(r, m, chosen.slots, n)
	if err != nil || len(found.slots) == 0 {
		return found, err
	}
	language := m.lang[found.slots[0]]
	for i, w := range words {
		if w.terms[language] != "" {
			found.idf += weights[i]
		}
	}
	return found, nil
}

// score adds what one word is worth to every document that has it, and returns its idf.
func (k *keywords) score(ctx context.Context, r bleveindex.IndexReader, acc *accumulators, w word,
	chunks, average float64, only bitset) (float64, error) {
	readers := make([]bleveindex.TermFieldReader, 0, 4)
	defer func() {
		for _, t := range readers {
			_ = t.Close()
		}
	}()
	count := 0.
	for l, term := range w.terms {
		if term == "" {
			continue
		}
		t, err := r.TermFieldReader(ctx, []byte(term), k.fields[l], true, true, false)
		if err != nil {
			return 0, err
		}
		readers = append(readers, t)
		count += float64(t.Count())
	}
	// Chunks that are gone but not swept out yet may make count larger than chunks.
	idf := w.weight * math.Log(1+(max(0, chunks-count)+.5)/(count+.5))
	var doc bleveindex.TermFieldDoc
	for _, t := range readers {
		for {
			p, err := t.Next(&doc)
			if err != nil {
				return 0, err
			}
			if p == nil {
				break
			}
			d := uint32(p.ID.Value())
			if only != nil && (int(d) >= 64*len(only) || !only.has(d)) {
				continue
			}
			tf, length := float64(p.Freq), 1/(p.Norm*p.Norm)
			acc.addTo(d, float32(idf*tf*(bm25K1+1)/(tf+bm25K1*(1-bm25B+bm25B*length/average))))
		}
	}
	return idf, nil
}

func (a *accumulators) addTo(d uint32, score float32) {
	if int(d) >= len(a.scores) {
		a.scores = append(a.scores, make([]float32, int(d)+1+len(a.scores)/2-len(a.scores)+1024)...)
	}
	if a.scores[d] == 0 {
		a.touched = append(a.touched, d)
	}
	a.scores[d] += score
}

// filtered is the set of Bleve documents that pass a filter, whichever version they are of.
func (k *keywords) filtered(ctx context.Context, r bleveindex.IndexReader, f index.Filter) (bitset, error) {
	var set bitset
	for _, by := range []struct{ field, term string }{{documentField, f.Document}, {collectionField, f.Collection}} {
		if by.term == "" {
			continue
		}
		t, err := r.TermFieldReader(ctx, []byte(by.term), by.field, false, false, false)
		if err != nil {
			return nil, err
		}
		found := bitset{}
		var doc bleveindex.TermFieldDoc
		for {
			p, err := t.Next(&doc)
			if err != nil {
				_ = t.Close()
				return nil, err
			}
			if p == nil {
				break
			}
			d := uint32(p.ID.Value())
			found.grow(int(d) + 1)
			if set == nil || int(d) < 64*len(set) && set.has(d) {
				found.set(d)
			}
		}
		if err := t.Close(); err != nil {
			return nil, err
		}
		set = found
	}
	return set, nil
}

// best returns the n best documents whose slots are chosen, best first. Whether one is
// chosen is asked in order of score, so that few names are looked up and none is cut off.
func (a *accumulators) best(r bleveindex.IndexReader, m *memory, chosen bitset, n int) (ranking, error) {
	var out ranking
	from := 0
	for take := 2 * n; ; take *= 4 {
		top := a.top(take)
		for _, d := range top[from:] {
			name, err := r.ExternalID(bleveindex.NewIndexInternalID(nil, uint64(d)))
			if err != nil {
				return out, err
			}
			row, err := strconv.ParseInt(name, 10, 64)
			if err != nil {
				return out, err
			}
			slot, ok := m.slots[row]
			if !ok || !chosen.has(slot) {
				continue
			}
			out.slots = append(out.slots, slot)
			out.scores = append(out.scores, float64(a.scores[d]))
			if len(out.slots) == n {
				return out, nil
			}
		}
		if len(top) == len(a.touched) {
			return out, nil
		}
		from = len(top)
	}
}

// top returns the n documents of the highest scores, best first, equal ones by number.
func (a *accumulators) top(n int) []uint32 {
	better := func(x, y uint32) int {
		return cmp.Or(cmp.Compare(a.scores[y], a.scores[x]), cmp.Compare(x, y))
	}
	if n >= len(a.touched) {
		all := slices.Clone(a.touched)
		slices.SortFunc(all, better)
		return all
	}
	// Keep twice as many as asked, and halve whenever they are full.
	top := make([]uint32, 0, 2*n)
	var least float32
	for _, d := range a.touched {
		if a.scores[d] < least {
			continue
		}
		if top = append(top, d); len(top) == 2*n {
			slices.SortFunc(top, better)
			top = top[:n]
			least = a.scores[top[n-1]]
		}
	}
	slices.SortFunc(top, better)
	return top[:min(n, len(top))]
}
