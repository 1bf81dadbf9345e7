// Package bench measures the whole: ratios within one run, against the limit or a peer.
// `go test -bench . ./bench` prints them; raw results lie in docs/bench.
package bench

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/leafmill/leafmill/events"
	"github.com/leafmill/leafmill/internal/bus"
	"github.com/leafmill/leafmill/services/status"
)

const (
	inFlight = 64
	docBytes = 2 << 10
)

func server(b *testing.B, sync time.Duration) *bus.Server {
	b.Helper()
	s, err := bus.StartServer(bus.ServerConfig{Dir: b.TempDir(), SyncInterval: sync})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(s.Stop)
	return s
}

func connect(b *testing.B, s *bus.Server, service string) *bus.Conn {
	b.Helper()
	c, err := bus.Connect(b.Context(), bus.Options{Server: s, Service: service, Instance: "bench"})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(c.Close)
	return c
}

// feed submits n documents with inFlight at a time; done gives a slot back.
func feed(b *testing.B, n int, submit func(i int) error, done <-chan struct{}) {
	b.Helper()
	slots := make(chan struct{}, inFlight)
	var fail atomic.Pointer[error]
	var wg sync.WaitGroup
	wg.Go(func() {
		for range n {
			<-done
			<-slots
		}
	})
	for i := range n {
		slots <- struct{}{}
		wg.Go(func() {
			if err := submit(i); err != nil {
				fail.Store(&err)
			}
		})
		if err := fail.Load(); err != nil {
			b.Fatal(*err)
		}
	}
	wg.Wait()
}

// rawPipeline is the limit: JetStream with synchronous publishing and four durable
// consumers, each of which passes a 2 KB message on.
func rawPipeline(b *testing.B, sync time.Duration, n int) float64 {
	c := connect(b, server(b, sync), "raw")
	js, ctx := c.JetStream(), b.Context()
	if _, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: "RAW", Subjects: []string{"raw.*.*"}}); err != nil {
		b.Fatal(err)
	}
	done := make(chan struct{}, n)
	for stage := range 4 {
		cons, err := js.CreateConsumer(ctx, "RAW", jetstream.ConsumerConfig{Durable: fmt.Sprint("s", stage),
			FilterSubject: fmt.Sprintf("raw.%d.*", stage), AckPolicy: jetstream.AckExplicitPolicy, MaxAckPending: -1})
		if err != nil {
			b.Fatal(err)
		}
		cc, err := cons.Consume(func(m jetstream.Msg) {
			go func() {
				_, job, _ := strings.Cut(m.Subject()[4:], ".")
				if _, err := js.Publish(ctx, fmt.Sprintf("raw.%d.%s", stage+1, job), m.Data()); err != nil {
					b.Error(err)
				}
				_ = m.Ack()
				if stage == 3 {
					done <- struct{}{}
				}
			}()
		}, jetstream.PullMaxMessages(inFlight))
		if err != nil {
			b.Fatal(err)
		}
		defer cc.Stop()
	}
	body := []byte(strings.Repeat("x", docBytes))
	began := time.Now()
	feed(b, n, func(i int) error {
		_, err := js.Publish(ctx, fmt.Sprintf("raw.0.j%d", i), body)
		return err
	}, done)
	return float64(n) / time.Since(began).Seconds()
}

// ourPipeline is the same through Leafmill's bus, middleware and contract, with the job
// views folded beside it. Documents count when they are indexed; views is when the last
// view was complete.
func ourPipeline(b *testing.B, sync time.Duration, n int) (perSecond, withViews float64) {
	srv := server(b, sync)
	c := connect(b, srv, "bench")
	if err := c.Ensure(b.Context(), bus.Layout{}); err != nil {
		b.Fatal(err)
	}
	ctx, stop := context.WithCancel(b.Context())
	var services errorGroup
	defer func() {
		stop()
		services.wait(b)
	}()
	done := make(chan struct{}, n)
	unit := []events.Unit{{Unit: 1, Page: 1, Length: docBytes}}
	text := strings.Repeat("x", docBytes)
	content := events.Content{Inline: []byte(`[{"unit":1,"text":"` + text + `"}]`)}
	next := func(d *bus.Delivery) events.Pass { p := d.Pass; p.Units = 1; return p }
	services.start(func() error {
		return c.Run(ctx, bus.RunConfig{},
			bus.Consumer{Durable: "ocr", Workers: inFlight, Handle: func(ctx context.Context, d *bus.Delivery) error {
				return d.Emit(ctx, events.NameExtracted, "1-1", events.Extracted{Pass: next(d), Segment: "1-1", Units: unit, Content: content})
			}},
			bus.Consumer{Durable: "chunk", Workers: inFlight, Handle: func(ctx context.Context, d *bus.Delivery) error {
				return d.Emit(ctx, events.NameChunked, "1-1", events.Chunked{Pass: d.Pass, Segment: "1-1", Units: unit, Content: content})
			}},
			bus.Consumer{Durable: "embed", Workers: inFlight, Handle: func(ctx context.Context, d *bus.Delivery) error {
				return d.Emit(ctx, events.NameEmbedded, "1-1", events.Embedded{Pass: d.Pass, Segment: "1-1", Units: unit, Content: content})
			}},
			bus.Consumer{Durable: "index", Workers: inFlight, Handle: func(ctx context.Context, d *bus.Delivery) error {
				if d.Event != events.NameEmbedded {
					return nil
				}
				err := d.Emit(ctx, events.NameIndexed, "1-1", events.Indexed{Pass: d.Pass, Segment: "1-1", Units: unit})
				done <- struct{}{}
				return err
			}})
	})
	sc := connect(b, srv, "status")
	services.start(func() error { return status.Run(ctx, sc, status.Config{Dir: b.TempDir()}) })
	completed, err := c.Read(ctx, 1, events.NameCompleted.All())
	if err != nil {
		b.Fatal(err)
	}
	began := time.Now()
	feed(b, n, func(i int) error {
		_, err := c.Publish(ctx, events.NameSubmitted, fmt.Sprintf("j%d", i), events.Submitted{Text: text}, bus.PublishOptions{})
		return err
	}, done)
	perSecond = float64(n) / time.Since(began).Seconds()
	for seen := 0; seen < n; {
		batch, err := completed.Next(ctx, 1000)
		if err != nil {
			b.Fatal(err)
		}
		seen += len(batch)
	}
	return perSecond, float64(n) / time.Since(began).Seconds()
}

// errorGroup runs services and tells their errors.
type errorGroup struct {
	wg   sync.WaitGroup
	mu   sync.Mutex
	errs []error
}

func (g *errorGroup) start(f func() error) {
	g.wg.Go(func() {
		if err := f(); err != nil {
			g.mu.Lock()
			g.errs = append(g.errs, err)
			g.mu.Unlock()
		}
	})
}

func (g *errorGroup) wait(b *testing.B) {
	g.wg.Wait()
	for _, err := range g.errs {
		b.Error(err)
	}
}

// BenchmarkPipeline reports documents a second and their ratio to raw JetStream, with
// fsync off and with fsync after every write.
func BenchmarkPipeline(b *testing.B) {
	for _, mode := range []struct {
		name string
		sync time.Duration
		n    int
	}{{"fsync=off", time.Hour, 4000}, {"fsync=always", 0, 1000}} {
		b.Run(mode.name, func(b *testing.B) {
			for range b.N {
				raw := rawPipeline(b, mode.sync, mode.n)
				ours, views := ourPipeline(b, mode.sync, mode.n)
				b.ReportMetric(raw, "raw-docs/s")
				b.ReportMetric(ours, "docs/s")
				b.ReportMetric(views, "docs+views/s")
				b.ReportMetric(ours/raw, "ratio")
				b.ReportMetric(views/raw, "ratio+views")
			}
		})
	}
}
