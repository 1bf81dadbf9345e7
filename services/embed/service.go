// Package embed is the third stage: it has a model turn chunks into vectors.
//
//	chunked -> embedded | degraded
//
// Every call goes through one guard: time-out, retries, circuit breaker. A segment whose
// calls fail is not held up and never lost: what was embedded goes on with its vectors,
// the rest without, and the event says why. The service also embeds queries, through the
// same guard, for whoever asks on leafmill.embed.
package embed

import (
	"context"
	"encoding/json"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/leafmill/leafmill/events"
	"github.com/leafmill/leafmill/internal/api"
	"github.com/leafmill/leafmill/internal/artifacts"
	"github.com/leafmill/leafmill/internal/bus"
	"github.com/leafmill/leafmill/internal/guard"
	"github.com/leafmill/leafmill/services/embed/model"
)

// Config of the service; Model is required. Guard's Name is set here.
type Config struct {
	Model   model.Model
	Guard   guard.Config
	Workers int // segments at once (2 when 0)
	Bus     bus.RunConfig
	Version string
	Log     *slog.Logger
}

// Service embeds segments and queries.
type Service struct {
	store *artifacts.Store
	model model.Model
	guard *guard.Guard
	log   *slog.Logger
}

// queryTimeout bounds a query's one call: a user waits, and keywords answer instead.
const queryTimeout = 2 * time.Second

// Run serves the stage until ctx ends. The model belongs to the caller.
func Run(ctx context.Context, conn *bus.Conn, cfg Config) error {
	if cfg.Workers == 0 {
		cfg.Workers = 2
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	cfg.Guard.Name = "embed"
	cfg.Guard.OnTransition = func(t guard.Transition) {
		cfg.Log.Warn("the embedding circuit changed", "from", t.From, "to", t.To)
	}
	g, err := guard.New(cfg.Guard)
	if err != nil {
		return err
	}
	store, err := artifacts.Open(ctx, conn.JetStream())
	if err != nil {
		return err
	}
	s := &Service{store: store, model: cfg.Model, guard: g, log: cfg.Log}
	md := map[string]string{"model": cfg.Model.Name()}
	if none, ok := cfg.Model.(model.None); ok {
		md["detail"] = none.Why
		cfg.Log.Warn("no embedding model: documents are found by keywords only", "why", none.Why)
	}
	return conn.RunService(ctx, cfg.Bus, bus.Service{
		Info: bus.ServiceInfo{Name: "embed", Version: cfg.Version, Description: "Turns chunks and queries into vectors", Metadata: md,
			Endpoints: []bus.Endpoint{{Subject: api.SubjectEmbed, Limit: 32, Handle: s.query}}},
		Consumers: []bus.Consumer{{Durable: "embed", Workers: cfg.Workers, Timeout: s.worstCase(cfg.Guard), Handle: s.OnChunked}},
	})
}

// maxCalls is more calls than a segment of ordinary pages needs.
const maxCalls = 64

// worstCase is longer than a segment's calls can take: a call that fails ends the segment,
// so one of them may need all its retries, the others at most their time-out.
func (s *Service) worstCase(c guard.Config) time.Duration {
	return c.WorstCase() + maxCalls*c.Timeout + time.Minute
}

// OnChunked embeds a segment.
func (s *Service) OnChunked(ctx context.Context, d *bus.Delivery) error {
	c := d.Body.(*events.Chunked)
	var chunks []events.Chunk
	if err := s.store.Get(ctx, c.Content, &chunks); err != nil {
		return err
	}
	out := events.Embedded{Pass: c.Pass, Segment: c.Segment, Units: c.Units, Language: c.Language}
	failure := s.embed(ctx, d, chunks, &out)
	if ctx.Err() != nil {
		return ctx.Err() // nothing is known of the model: the message comes again
	}
	for _, ch := range chunks {
		if i := ch.Unit - out.Units[0].Unit; ch.Vector != nil && i >= 0 && i < len(out.Units) {
			out.Units[i].Vectors++
		}
	}
	var err error
	if out.Content, err = s.store.Put(ctx, d.Job, chunks); err != nil {
		return err
	}
	if failure == nil {
		return d.Emit(ctx, events.NameEmbedded, c.Segment, out)
	}
	p := events.ProblemOf("embed", failure)
	return d.Emit(ctx, events.NameDegraded, c.Segment, events.Degraded{Embedded: out, Reason: events.ClassOf(failure), Message: p.Message})
}

// embed sets the chunks' vectors, call by call, until one fails.
func (s *Service) embed(ctx context.Context, d *bus.Delivery, chunks []events.Chunk, out *events.Embedded) error {
	for batch := range batches(chunks, s.model.Batch()) {
		texts := make([]string, len(batch))
		for i, c := range batch {
			texts[i] = c.Text
		}
		var calls atomic.Int64 // a call that hangs may still run
		began := time.Now()
		res, err := guard.Do(ctx, s.guard, func(ctx context.Context) (model.Result, error) {
			calls.Add(1)
			return s.model.Embed(ctx, model.Passage, texts)
		}, guard.OnRetry(func(r guard.Retry) { d.Retrying(ctx, r.Err, r.Delay) }))
		out.Usage.Calls += int(calls.Load())
		out.Usage.LatencyMS += time.Since(began).Milliseconds()
		if err == nil && len(res.Vectors) != len(batch) {
			err = events.Fail(events.Malformed, "The embedding model answered with %d vectors for %d texts.", len(res.Vectors), len(batch))
		}
		if err != nil {
			return err
		}
		out.Usage.Tokens += res.Tokens
		out.Space = s.model.Space()
		for i := range batch {
			batch[i].Vector = res.Vectors[i]
		}
	}
	return nil
}

// batches cuts chunks into runs of at most n, sharing their memory.
func batches(chunks []events.Chunk, n int) func(func([]events.Chunk) bool) {
	return func(yield func([]events.Chunk) bool) {
		for len(chunks) > 0 {
			m := min(max(1, n), len(chunks))
			if !yield(chunks[:m]) {
				return
			}
			chunks = chunks[m:]
		}
	}
}

// query answers leafmill.embed: one call, no retries, at once when the circuit is open.
func (s *Service) query(ctx context.Context, request []byte) (any, error) {
	var r api.EmbedRequest
	if err := json.Unmarshal(request, &r); err != nil || r.Text == "" {
		return nil, events.Fail(events.Invalid, `The request must be a JSON object such as {"text":"tide mill"}.`)
	}
	res, err := guard.Do(ctx, s.guard, func(ctx context.Context) (model.Result, error) {
		return s.model.Embed(ctx, model.Query, []string{r.Text})
	}, guard.Retries(0), guard.Timeout(queryTimeout))
	if err != nil {
		return nil, err
	}
	if len(res.Vectors) != 1 {
		return nil, events.Fail(events.Malformed, "The embedding model answered with %d vectors for one text.", len(res.Vectors))
	}
	return api.EmbedAnswer{Vector: res.Vectors[0], Space: s.model.Space(), Tokens: res.Tokens}, nil
}
