package embedded

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// TestRecall compares the dense leg with brute force, on clustered vectors around the
// origin as MiniLM's, and all in one corner as e5's.
func TestRecall(t *testing.T) {
	for name, offset := range map[string]float64{"centred": .1, "cornered": 8} {
		t.Run(name, func(t *testing.T) {
			const n, dims, queries, k = 10_000, 384, 20, 10
			r := rand.New(rand.NewPCG(5, 5))
			gauss := func(scale float64) []float32 {
				v := make([]float32, dims)
				for i := range v {
					v[i] = float32(r.NormFloat64() * scale)
				}
				return v
			}
			corner := gauss(offset)
			var centers [][]float32
			for range 200 {
				centers = append(centers, gauss(1))
			}
			draw := func() []float32 {
				v, c := gauss(.9), centers[r.IntN(len(centers))]
				for i := range v {
					v[i] += c[i] + corner[i]
				}
				v, err := normalized(v)
				if err != nil {
					t.Fatal(err)
				}
				return v
			}
			v := newVectors(t.TempDir())
			if err := v.reset(dims); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = v.close() }()
			v.grow(n)
			var all bitset
			all.grow(n)
			stored := make([][]float32, n)
			for i := range stored {
				stored[i] = draw()
				all.set(uint32(i))
				if err := v.set(uint32(i), stored[i]); err != nil {
					t.Fatal(err)
				}
			}
			found := 0
			for range queries {
				q := draw()
				cos := make([]float32, n)
				for i := range stored {
					cos[i] = dot(q, stored[i])
				}
				order := slices.Clone(cos)
				slices.Sort(order)
				least := order[n-k]
				slots, _, err := v.nearest(q, all, k)
				if err != nil {
					t.Fatal(err)
				}
				for _, s := range slots {
					if cos[s] >= least {
						found++
					}
				}
			}
			if recall := float64(found) / (queries * k); recall < .98 {
				t.Errorf("recall@%d is %.3f", k, recall)
			} else {
				t.Logf("recall@%d is %.3f", k, recall)
			}
		})
	}
}

// BenchmarkNearest is the dense leg alone over 100,000 vectors.
func BenchmarkNearest(b *testing.B) {
	const n, dims = 100_000, 384
	v := newVectors(b.TempDir())
	if err := v.reset(dims); err != nil {
		b.Fatal(err)
	}
	defer func() { _ = v.close() }()
	v.grow(n)
	var all bitset
	all.grow(n)
	r := rand.New(rand.NewPCG(1, 1))
	vector := make([]float32, dims)
	for i := range n {
		for j := range vector {
			vector[j] = r.Float32() - .5
		}
		unit, err := normalized(vector)
		if err != nil {
			b.Fatal(err)
		}
		all.set(uint32(i))
		if err := v.set(uint32(i), unit); err != nil {
			b.Fatal(err)
		}
	}
	unit, _ := normalized(vector)
	for b.Loop() {
		if _, _, err := v.nearest(unit, all, 300); err != nil {
			b.Fatal(err)
		}
	}
}
