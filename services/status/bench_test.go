package status_test

import (
	"fmt"
	"sync"
	"testing"

	"github.com/leafmill/leafmill/internal/api"
)

// BenchmarkRebuild reads the stream of many small jobs into new views: reading, decoding,
// folding, writing. Its figure is events of the stream per second.
func BenchmarkRebuild(b *testing.B) {
	c := connect(b, startServer(b), "a")
	const jobs, workers = 2000, 8
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := w; i < jobs; i += workers {
				pipeline{b, c}.whole(fmt.Sprintf("j%d", i))
			}
		})
	}
	wg.Wait()
	serve(b, c, b.TempDir())
	for i := range jobs {
		finished(b, c, fmt.Sprintf("j%d", i))
	}
	n := 0
	for b.Loop() {
		var a api.RebuildAnswer
		if err := ask(b, c, api.SubjectRebuild, struct{}{}, &a); err != nil {
			b.Fatal(err)
		}
		n += a.Events
	}
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "events/s")
}
