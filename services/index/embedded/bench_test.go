package embedded_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/leafmill/leafmill/services/index"
	"github.com/leafmill/leafmill/services/index/embedded"
)

// BenchmarkSearch is searches over 50,000 chunks of 110 words (about 600 characters) with
// 384 dimensions (LEAFMILL_BENCH_CHUNKS sets another size): p50 and p99 in milliseconds, one
// search at a time.
func BenchmarkSearch(b *testing.B) {
	const per = 10
	chunks := 50_000
	if testing.Short() {
		chunks = 2_000
	}
	if n, err := strconv.Atoi(os.Getenv("LEAFMILL_BENCH_CHUNKS")); err == nil {
		chunks = n
	}
	c := newCorpus(1, 384, .3)
	store := open(b, b.TempDir())
	before := heap()
	start := time.Now()
	c.fill(b, store, 0, chunks/per, per, 110)
	b.Logf("%d chunks stored at %.0f/s; heap grew by %.0f bytes a chunk", chunks, float64(chunks)/time.Since(start).Seconds(), float64(heap()-before)/float64(chunks))
	for _, q := range []struct {
		name   string
		words  int
		mode   index.Mode
		k      int
		filter index.Filter
		busy   bool
	}{
		{name: "hybrid/words=8", words: 8},
		{name: "hybrid/words=30", words: 30},
		{name: "hybrid/k=300", words: 8, k: 300},
		{name: "keyword", words: 8, mode: index.Keyword},
		{name: "dense", words: 8, mode: index.Dense},
		{name: "collection=10%", words: 8, filter: index.Filter{Collection: "c3"}},
		{name: "document", words: 8, filter: index.Filter{Document: "doc17"}},
		{name: "while_writing", words: 8, busy: true},
	} {
		b.Run(q.name, func(b *testing.B) {
			if q.busy {
				ctx, stop := context.WithCancel(context.Background())
				done := make(chan struct{})
				go func() {
					defer close(done)
					for i := chunks; ctx.Err() == nil; i++ {
						if _, err := store.Upsert(context.Background(), c.segment(i, per, 110)); err != nil {
							b.Error(err)
						}
					}
				}()
				defer func() { stop(); <-done }()
			}
			r := rand.New(rand.NewPCG(7, 7))
			var took []time.Duration
			for b.Loop() {
				query := c.query(r, q.words)
				query.Mode, query.K, query.Filter = q.mode, q.k, q.filter
				start := time.Now()
				if _, err := store.Search(context.Background(), query); err != nil {
					b.Fatal(err)
				}
				took = append(took, time.Since(start))
			}
			quantiles(b, took)
		})
	}
}

// BenchmarkUpsert is messages of one page (3 chunks of 110 words, 384 dimensions), from 1
// and from 32 callers, each acknowledged after its commit and searchable then.
func BenchmarkUpsert(b *testing.B) {
	for _, sync := range []embedded.Sync{embedded.SyncAlways, embedded.SyncInterval} {
		for _, callers := range []int{1, 32} {
			b.Run(fmt.Sprintf("sync=%s/callers=%d", sync, callers), func(b *testing.B) {
				store, err := embedded.Open(context.Background(), embedded.Options{Dir: b.TempDir(), Sync: sync})
				if err != nil {
					b.Fatal(err)
				}
				defer func() { _ = store.Close() }()
				c := newCorpus(1, 384, .3)
				var next atomic.Int64
				took := make([]time.Duration, 0, b.N)
				lock := make(chan struct{}, 1)
				b.SetParallelism(max(1, callers/runtime.GOMAXPROCS(0)))
				start := time.Now()
				body := func(more func() bool) {
					for more() {
						s := c.segment(int(next.Add(1)), 3, 110)
						start := time.Now()
						if _, err := store.Upsert(context.Background(), s); err != nil {
							b.Error(err)
						}
						lock <- struct{}{}
						took = append(took, time.Since(start))
						<-lock
					}
				}
				if callers == 1 {
					body(b.Loop)
				} else {
					b.RunParallel(func(p *testing.PB) { body(p.Next) })
				}
				b.ReportMetric(3*float64(len(took))/time.Since(start).Seconds(), "chunks/s")
				quantiles(b, took)
			})
		}
	}
}

func quantiles(b *testing.B, took []time.Duration) {
	slices.Sort(took)
	ms := func(q float64) float64 {
		return float64(took[int(q*float64(len(took)-1))].Microseconds()) / 1000
	}
	b.ReportMetric(ms(.5), "p50_ms")
	b.ReportMetric(ms(.99), "p99_ms")
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
