package index

import (
	"cmp"
	"slices"
)

// Fusion is how two legs become one ranking: a convex sum of both scores, each over its
// leg's best, with fixed zero points (BM25 zero; Floor for cosines). The keyword leg weighs
// less when it has little to say: its weight is scaled by
// min(1, best / (KeywordFull * sum of the query's idf)).
type Fusion struct {
	VectorWeight  float64
	KeywordWeight float64
	Floor         float64 // the cosine of unrelated texts: 0 for MiniLM, .75 for multilingual-e5
	KeywordFull   float64 // share of the query's idf that makes the keyword leg count in full; 0: always
}

// DefaultFusion is the best of an ablation over eight test sets.
func DefaultFusion() Fusion {
	return Fusion{VectorWeight: .4, KeywordWeight: .6, KeywordFull: .35}
}

// Candidates is how many hits each leg brings to the fusion.
const Candidates = 300

// Candidate is one passage with the scores of the legs that know it.
type Candidate struct {
	Key        uint64 // the backend's own name of the chunk
	Keyword    float64
	Vector     float64
	HasKeyword bool
	HasVector  bool
	Score      float64 // set by Fuse
}

// Fuse sets the candidates' scores and sorts them, best first, equal ones by key.
// idf is the sum of the idf of the query's words, as the keyword leg weighs them.
func (f Fusion) Fuse(candidates []Candidate, idf float64) {
	var bestKeyword, bestVector float64
	for _, c := range candidates {
		if c.HasKeyword {
			bestKeyword = max(bestKeyword, c.Keyword)
		}
		if c.HasVector {
			bestVector = max(bestVector, c.Vector-f.Floor)
		}
	}
	wk := f.KeywordWeight
	if full := f.KeywordFull * idf; full > 0 {
		wk *= min(1, bestKeyword/full)
	}
	for i := range candidates {
		c := &candidates[i]
		c.Score = 0
		if c.HasVector && bestVector > 0 {
			c.Score += f.VectorWeight * max(0, c.Vector-f.Floor) / bestVector
		}
		if c.HasKeyword && bestKeyword > 0 {
			c.Score += wk * c.Keyword / bestKeyword
		}
	}
	Sort(candidates)
}

// Sort puts the best candidates first, equal ones by key.
func Sort(candidates []Candidate) {
	slices.SortFunc(candidates, func(a, b Candidate) int {
		return cmp.Or(cmp.Compare(b.Score, a.Score), cmp.Compare(a.Key, b.Key))
	})
}
