package index_test

import (
	"math"
	"testing"

	"github.com/leafmill/leafmill/services/index"
)

func TestFuse(t *testing.T) {
	candidates := []index.Candidate{
		{Key: 1, Keyword: 5, HasKeyword: true, Vector: .4, HasVector: true},
		{Key: 2, Keyword: 10, HasKeyword: true},                              // not embedded yet
		{Key: 3, Vector: .8, HasVector: true},                                // no word in common
		{Key: 4, Keyword: 5, HasKeyword: true, Vector: -.5, HasVector: true}, // below the floor
		{Key: 5, Keyword: 5, HasKeyword: true, Vector: -.9, HasVector: true}, // the same score
	}
	f := index.Fusion{VectorWeight: .4, KeywordWeight: .6, KeywordFull: .35}
	f.Fuse(candidates, 20) // full at 7: the best has 10
	check(t, candidates, map[uint64]float64{1: .4*.5 + .6*.5, 2: .6, 3: .4, 4: .3, 5: .3}, []uint64{2, 1, 3, 4, 5})

	f.Fuse(candidates, 100) // full at 35: keywords say little
	w := .6 * 10 / 35
	check(t, candidates, map[uint64]float64{1: .2 + w/2, 2: w, 3: .4, 4: w / 2, 5: w / 2}, []uint64{3, 1, 2, 4, 5})

	f.Floor = .6
	f.KeywordFull = 0
	f.Fuse(candidates, 100)
	check(t, candidates, map[uint64]float64{1: .3, 2: .6, 3: .4, 4: .3, 5: .3}, []uint64{2, 3, 1, 4, 5})
}

func TestFuseOneLegOrNone(t *testing.T) {
	index.DefaultFusion().Fuse(nil, 0)
	only := []index.Candidate{{Key: 1, Vector: .2, HasVector: true}, {Key: 2, Vector: .4, HasVector: true}}
	index.DefaultFusion().Fuse(only, 3)
	check(t, only, map[uint64]float64{1: .2, 2: .4}, []uint64{2, 1})
}

func check(t *testing.T, got []index.Candidate, scores map[uint64]float64, order []uint64) {
	t.Helper()
	for i, c := range got {
		if c.Key != order[i] || math.Abs(c.Score-scores[c.Key]) > 1e-9 {
			t.Errorf("rank %d: %d with %f; want %d with %f", i, c.Key, c.Score, order[i], scores[order[i]])
		}
	}
}
