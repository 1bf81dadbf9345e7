// Package status answers what became of every job. It folds the stream into job views and
// publishes the facts that only the whole story shows: completed and healed.
//
// Guarantees:
//   - Views are derived: each replica reads the whole stream itself, keeps its checkpoint in
//     the transaction of the views, and can be deleted and rebuilt at any time.
//   - A run has exactly one completed, however many replicas there are: it is published
//     expecting the last event of its subject, and on a conflict only if that one is of an
//     earlier run. What is due is a query on the views; a crash between a fold and its fact
//     loses nothing.
//   - A job that the stream has is never unknown: until the views have it, it is queued.
//   - A checkpoint beyond the stream's end (the stream was lost and made anew) is refused
//     until somebody asks for a rebuild: views of lost events must not mix with new ones.
package status

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/leafmill/leafmill/events"
	"github.com/leafmill/leafmill/internal/bus"
	"github.com/leafmill/leafmill/services/status/store"
)

// Config of the service; zero values are usable but for Dir.
type Config struct {
	Dir     string // folder of the views, this replica's own
	Version string // of the program, for the micro service
	Log     *slog.Logger
	Metrics prometheus.Registerer // nil: none
	// Batch is the most events folded in one transaction (1024 when 0).
	Batch int
}

// Service is a replica of status.
type Service struct {
	conn    *bus.Conn
	cfg     Config
	log     *slog.Logger
	metrics *metrics
	watch   watch
	due     chan struct{} // there may be something to publish
	said    said

	mu        sync.RWMutex // held for reading while the store is used, for writing while it is exchanged
	store     *store.Store
	refused   error              // why no job is answered for
	live      bool               // the stream's end was reached: facts are published
	next      *store.Store       // a rebuild's, to be taken over by the loop
	taken     chan error         // tells the rebuild that next was taken
	interrupt context.CancelFunc // ends the loop's wait for events
	rebuild   sync.Mutex         // one rebuild at a time
}

// New opens the views. Run must be called: it closes them.
func New(ctx context.Context, conn *bus.Conn, cfg Config) (*Service, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Batch == 0 {
		cfg.Batch = 1024
	}
	st, err := store.Open(ctx, cfg.Dir, cfg.Log)
	if err != nil {
		return nil, err
	}
	s := &Service{conn: conn, cfg: cfg, log: cfg.Log, store: st, due: make(chan struct{}, 1)}
	s.metrics = newMetrics(cfg.Metrics, s)
	return s, nil
}

// Run opens the views and serves until ctx ends.
func Run(ctx context.Context, conn *bus.Conn, cfg Config) error {
	s, err := New(ctx, conn, cfg)
	if err != nil {
		return err
	}
	return s.Run(ctx)
}

// Run folds, publishes and answers until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.loop(gctx) })
	g.Go(func() error { return s.publisher(gctx) })
	g.Go(func() error { return s.serve(gctx) })
	err := g.Wait()
	s.rebuild.Lock() // a rebuild in hand has ended with its request
	defer s.rebuild.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	return errors.Join(err, s.store.Close())
}

// Ready says why the service cannot answer for the present: it has refused its checkpoint,
// has not reached the stream's end yet, or has no bus.
func (s *Service) Ready() error {
	s.mu.RLock()
	refused, live := s.refused, s.live
	s.mu.RUnlock()
	switch {
	case refused != nil:
		return refused
	case !live:
		return events.Fail(events.Unavailable, "The job views are still catching up with the stream.")
	}
	return s.conn.Healthy()
}

// use calls f with the store, which stays open meanwhile.
func (s *Service) use(f func(*store.Store) error) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.refused != nil {
		return s.refused
	}
	return f(s.store)
}

// wake tells the publisher to look at the views.
func (s *Service) wake() {
	select {
	case s.due <- struct{}{}:
	default: // it will look anyway
	}
}

// watch lets requests wait for the end of a job.
type watch struct {
	mu   sync.Mutex
	jobs map[string]*waiters
}

// waiters of one job share a channel.
type waiters struct {
	n    int
	done chan struct{}
}

// on returns a channel that is closed when the job has ended, and a function to call when
// nobody waits on it any more.
func (w *watch) on(job string) (done <-chan struct{}, leave func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.jobs == nil {
		w.jobs = map[string]*waiters{}
	}
	ws := w.jobs[job]
	if ws == nil {
		ws = &waiters{done: make(chan struct{})}
		w.jobs[job] = ws
	}
	ws.n++
	return ws.done, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if ws.n--; ws.n == 0 && w.jobs[job] == ws {
			delete(w.jobs, job)
		}
	}
}

func (w *watch) ended(jobs []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.jobs) == 0 {
		return
	}
	for _, job := range jobs {
		if ws := w.jobs[job]; ws != nil {
			close(ws.done)
			delete(w.jobs, job)
		}
	}
}

// metrics of the service.
type metrics struct {
	folded    prometheus.Counter
	lag       prometheus.Gauge
	published *prometheus.CounterVec
	duration  prometheus.Histogram
}

func newMetrics(reg prometheus.Registerer, s *Service) *metrics {
	m := &metrics{
		folded: prometheus.NewCounter(prometheus.CounterOpts{Name: "leafmill_status_events_folded_total",
			Help: "Events folded into the job views."}),
		lag: prometheus.NewGauge(prometheus.GaugeOpts{Name: "leafmill_status_lag_events",
			Help: "Events that the stream has and the job views do not."}),
		published: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "leafmill_status_facts_total",
			Help: "Facts that were due: published here, said by another replica already, or failed."}, []string{"event", "outcome"}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "leafmill_document_duration_seconds",
			Help:    "From the submission to completed, counted by the replica that published it.",
			Buckets: []float64{.05, .1, .25, .5, 1, 2.5, 5, 15, 60, 300, 1800, 7200}}),
	}
	for _, e := range []events.Name{events.NameCompleted, events.NameHealed} {
		for _, o := range []string{"published", "conflict", "failed"} {
			m.published.WithLabelValues(string(e), o)
		}
	}
	if reg != nil {
		reg.MustRegister(m.folded, m.lag, m.published, m.duration, jobsByStatus{s})
	}
	return m
}

// jobsByStatus reads the store's counters when it is asked.
type jobsByStatus struct{ s *Service }

var jobsDesc = prometheus.NewDesc("leafmill_status_jobs", "Jobs by status.", []string{"status"}, nil)

func (j jobsByStatus) Describe(ch chan<- *prometheus.Desc) { ch <- jobsDesc }

func (j jobsByStatus) Collect(ch chan<- prometheus.Metric) {
	j.s.mu.RLock()
	counts := j.s.store.Counts()
	j.s.mu.RUnlock()
	for status, n := range counts {
		ch <- prometheus.MustNewConstMetric(jobsDesc, prometheus.GaugeValue, float64(n), status)
	}
}

// pause waits, or returns early when ctx ends.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
