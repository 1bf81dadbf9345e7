package embedded_test

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/leafmill/leafmill/services/index"
	"github.com/leafmill/leafmill/services/index/embedded"
)

// corpus makes documents that behave like real ones: words by Zipf's law (the commonest
// are English stop words), vectors in clusters around a common centre.
type corpus struct {
	seed    uint64
	dims    int
	words   []string
	centers [][]float32
	offset  []float32 // of all vectors, as e5 has it
}

func newCorpus(seed uint64, dims int, offset float64) *corpus {
	r := rand.New(rand.NewPCG(seed, 0))
	c := &corpus{seed: seed, dims: dims, words: strings.Fields("the of and to in a is that for it as was with be by on not he his but at are this have from or had an they which one you were all her she there would their we him been has when who will no more if out so")}
	syllables := strings.Fields("ka lo mi ne pu ra si to ve xi bor den fal gim hut jen")
	for len(c.words) < 40_000 {
		w := ""
		for range 2 + r.IntN(3) {
			w += syllables[r.IntN(len(syllables))]
		}
		c.words = append(c.words, w)
	}
	for range 300 {
		c.centers = append(c.centers, gauss(r, dims, 1))
	}
	c.offset = gauss(r, dims, offset)
	return c
}

func gauss(r *rand.Rand, n int, scale float64) []float32 {
	v := make([]float32, n)
	for i := range v {
		v[i] = float32(r.NormFloat64() * scale)
	}
	return v
}

// vector is near one of the clusters.
func (c *corpus) vector(r *rand.Rand) []float32 {
	center := c.centers[r.IntN(len(c.centers))]
	v := gauss(r, c.dims, .9)
	for i := range v {
		v[i] += center[i] + c.offset[i]
	}
	return v
}

// text of n words. Their ranks follow Zipf's law (s = 1) over the vocabulary.
func (c *corpus) text(r *rand.Rand, n int) string {
	var b strings.Builder
	for i := range n {
		if i > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(c.word(r))
	}
	return b.String()
}

func (c *corpus) word(r *rand.Rand) string {
	rank := int(math.Pow(float64(len(c.words)), r.Float64())) - 1
	return c.words[min(rank, len(c.words)-1)]
}

// segment is the i-th document: per chunks of words words.
func (c *corpus) segment(i, per, words int) index.Segment {
	r := rand.New(rand.NewPCG(c.seed, uint64(i)+1))
	name := fmt.Sprintf("doc%d", i)
	s := index.Segment{Job: name, Collection: fmt.Sprintf("c%d", i%10), Document: name, Name: name + ".txt",
		Version: uint64(i) + 1, Run: uint64(i) + 1, Space: "corpus", TotalUnits: 1}
	length := 0
	for n := range per {
		t := c.text(r, words)
		s.Chunks = append(s.Chunks, index.Chunk{ID: fmt.Sprintf("%s@%d/1.%d", name, s.Version, n), Unit: 1, N: n, Page: 1,
			Start: length, End: length + len(t), Text: t, Tokens: words, Vector: c.vector(r)})
		length += len(t) + 1
	}
	s.Units = []index.Unit{{Number: 1, Page: 1, Length: length}}
	return s
}

// fill stores documents from as many writers as the index service would have.
func (c *corpus) fill(t testing.TB, b *embedded.Backend, from, to, per, words int) {
	t.Helper()
	var wg sync.WaitGroup
	next := make(chan int)
	for range 32 {
		wg.Go(func() {
			for i := range next {
				s := c.segment(i, per, words)
				if _, err := b.Upsert(context.Background(), s); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for i := from; i < to; i++ {
		next <- i
	}
	close(next)
	wg.Wait()
}

func (c *corpus) query(r *rand.Rand, words int) index.Query {
	return index.Query{Text: c.text(r, words), Vector: c.vector(r), Space: "corpus"}
}
