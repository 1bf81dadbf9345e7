package embedded

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/leafmill/leafmill/events"
	"github.com/leafmill/leafmill/services/index"
)

const (
	maxQuery = 8 << 10 // bytes of a query's text
	attempts = 3       // of a search whose rows went away under it; the last keeps the writer out
)

// request is a query checked and completed.
type request struct {
	index.Query
	vector []float32 // of unit length; nil: no dense leg
}

// Search implements index.Backend.
func (b *Backend) Search(ctx context.Context, q index.Query) (index.Answer, error) {
	b.life.RLock()
	defer b.life.RUnlock()
	select {
	case <-b.closing:
		return index.Answer{}, errClosed()
	default:
	}
	r, err := b.request(q)
	if err != nil {
		return index.Answer{}, err
	}
	for attempt := 1; ; attempt++ {
		if attempt == attempts {
			b.commits.RLock()
			defer b.commits.RUnlock()
		}
		picks, words, err := b.rank(ctx, r)
		if err != nil {
			return index.Answer{}, searchError(ctx, err)
		}
		hits, whole, err := b.fetch(ctx, picks, words)
		if err != nil {
			return index.Answer{}, searchError(ctx, err)
		}
		if whole || attempt == attempts {
			return index.Answer{Mode: r.Mode, Hits: hits[:min(r.K, len(hits))]}, nil
		}
	}
}

func searchError(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, index.ErrSpace):
		return err
	}
	return unavailable(err)
}

func (b *Backend) request(q index.Query) (request, error) {
	r := request{Query: q}
	if r.Mode == "" {
		r.Mode = index.Hybrid
	}
	if r.K == 0 {
		r.K = 10
	}
	if r.Fusion == (index.Fusion{}) {
		r.Fusion = index.DefaultFusion()
	}
	switch {
	case r.K < 1 || r.K > index.MaxK:
		return r, events.Fail(events.Invalid, "k is %d; it must be 1 to %d", r.K, index.MaxK)
	case len(r.Text) > maxQuery:
		return r, events.Fail(events.Invalid, "the query has %d bytes; at most %d are searched", len(r.Text), maxQuery)
	case r.Mode == index.Keyword:
		return r, nil
	case r.Mode != index.Hybrid && r.Mode != index.Dense:
		return r, events.Fail(events.Invalid, "mode is %q; it must be hybrid, keyword or dense", r.Mode)
	case r.Vector == nil && r.Mode == index.Dense:
		return r, events.Fail(events.Invalid, "a dense search needs the query's vector")
	case r.Vector == nil:
		r.Mode = index.Keyword
		return r, nil
	}
	active := b.space.Load()
	if active.dimensions == 0 { // no vector to be near to
		if r.Mode == index.Hybrid {
			r.Mode = index.Keyword
		}
		return r, nil
	}
	if active.name != q.Space || active.dimensions != len(q.Vector) {
		return r, fmt.Errorf("%w: the query's is of %q with %d dimensions, the index has %q with %d",
			index.ErrSpace, q.Space, len(q.Vector), active.name, active.dimensions)
	}
	var err error
	if r.vector, err = normalized(q.Vector); err != nil {
		return r, events.Fail(events.Invalid, "the query's vector cannot be used: %v", err)
	}
	return r, nil
}

// pick is a ranked chunk with what memory knows of it.
type pick struct {
	index.Candidate
	language int
	hit      index.Hit
	unit     int
	start    int // of the unit in the document's text
	placed   bool
}

// rank walks both legs and returns the K best, with all that tie with the last of them.
func (b *Backend) rank(ctx context.Context, r request) ([]pick, []word, error) {
	m := b.memory
	m.mu.RLock()
	defer m.mu.RUnlock()
	if r.vector != nil && len(r.vector) != m.vectors.dims { // the space was switched just now
		return nil, nil, fmt.Errorf("%w: it was switched during the search", index.ErrSpace)
	}
	chosen := m.choose(r.Filter.Collection, r.Filter.Document)
	var words []word
	var keyword ranking
	var slots []uint32
	var cosines []float64
	var group errgroup.Group
	if r.Mode != index.Dense {
		words = b.analyzers.words(r.Text, m.languages)
		group.Go(func() (err error) {
			keyword, err = b.keywords.rank(ctx, m, r.Query, words, chosen, index.Candidates)
			return err
		})
	}
	if r.vector != nil {
		group.Go(func() (err error) {
			slots, cosines, err = m.vectors.nearest(r.vector, chosen.slots, index.Candidates)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, nil, err
	}
	candidates, err := m.join(r, keyword, slots, cosines)
	if err != nil {
		return nil, nil, err
	}
	switch r.Mode {
	case index.Hybrid:
		r.Fusion.Fuse(candidates, keyword.idf)
	default:
		index.Sort(candidates)
	}
	n := min(r.K, len(candidates))
	for n > 0 && n < len(candidates) && candidates[n].Score == candidates[n-1].Score {
		n++
	}
	picks := make([]pick, n)
	for i, c := range candidates[:n] {
		picks[i] = m.pick(c)
	}
	return picks, words, nil
}

// join makes one list of both legs, with exact cosines for what only keywords found.
func (m *memory) join(r request, keyword ranking, slots []uint32, cosines []float64) ([]index.Candidate, error) {
	candidates := make([]index.Candidate, 0, len(slots)+len(keyword.slots))
	at := make(map[uint32]int, len(slots))
	for i, s := range slots {
		at[s] = len(candidates)
		candidates = append(candidates, index.Candidate{Key: uint64(m.row[s]), Vector: cosines[i], HasVector: true, Score: cosines[i]})
	}
	var alone []uint32
	first := len(candidates)
	for i, s := range keyword.slots {
		if j, ok := at[s]; ok {
			candidates[j].Keyword, candidates[j].HasKeyword = keyword.scores[i], true
			continue
		}
		alone = append(alone, s)
		candidates = append(candidates, index.Candidate{Key: uint64(m.row[s]), Keyword: keyword.scores[i], HasKeyword: true, Score: keyword.scores[i]})
	}
	if r.vector == nil {
		return candidates, nil
	}
	cos, ok, err := m.vectors.cosines(r.vector, alone)
	if err != nil {
		return nil, err
	}
	for i := range alone {
		candidates[first+i].Vector, candidates[first+i].HasVector = cos[i], ok[i]
	}
	return candidates, nil
}

func (m *memory) pick(c index.Candidate) pick {
	slot := m.slots[int64(c.Key)]
	v := m.owner[slot]
	p := pick{Candidate: c, language: int(m.lang[slot]), unit: int(m.unit[slot]), hit: index.Hit{
		Document: v.doc.name, Collection: v.doc.collectionName, Job: v.job, Name: v.name, Version: v.version, Score: c.Score,
	}}
	p.start, p.placed = v.start(p.unit)
	if c.HasKeyword {
		p.hit.Keyword = &c.Keyword
	}
	if c.HasVector {
		p.hit.Vector = &c.Vector
	}
	return p
}

// fetch reads the picks' texts. It is not whole when a row has gone, or moved, since.
func (b *Backend) fetch(ctx context.Context, picks []pick, words []word) (hits []index.Hit, whole bool, err error) {
	rows := make([]uint64, len(picks))
	at := make(map[uint64]int, len(picks))
	for i, p := range picks {
		rows[i] = p.Key
		at[p.Key] = i
	}
	list, err := json.Marshal(rows)
	if err != nil {
		return nil, false, err
	}
	hits = make([]index.Hit, 0, len(picks)) // never grows: goroutines write into it
	var group errgroup.Group
	group.SetLimit(runtime.GOMAXPROCS(0))
	err = each(ctx, b.reading, `SELECT c.row, c.id, c.unit, c.page, c.start, c."end", c.text
		FROM json_each(?) AS j CROSS JOIN chunks AS c ON c.row = j.value`, func(scan scanner) error {
		var row uint64
		var h index.Hit
		var start, end int
		if err := scan(&row, &h.ChunkID, &h.Unit, &h.Page, &start, &end, &h.Text); err != nil {
			return err
		}
		p := &picks[at[row]]
		if h.Unit != p.unit {
			return nil
		}
		id, unit, page, text := h.ChunkID, h.Unit, h.Page, h.Text
		h = p.hit
		h.ChunkID, h.Unit, h.Page, h.Text = id, unit, page, text
		if p.placed {
			start, end = p.start+start, p.start+end
			h.Start, h.End = &start, &end
		}
		hits = append(hits, h)
		hit := &hits[len(hits)-1]
		group.Go(func() error {
			hit.Highlights = b.analyzers.highlights(p.language, text, words)
			return nil
		})
		return nil
	}, string(list))
	if err := errors.Join(err, group.Wait()); err != nil {
		return nil, false, err
	}
	slices.SortStableFunc(hits, func(x, y index.Hit) int {
		return cmp.Or(cmp.Compare(y.Score, x.Score), cmp.Compare(x.ChunkID, y.ChunkID))
	})
	return hits, len(hits) == len(picks), nil
}
