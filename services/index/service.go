package index

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"time"

	"github.com/leafmill/leafmill/events"
	"github.com/leafmill/leafmill/internal/api"
	"github.com/leafmill/leafmill/internal/artifacts"
	"github.com/leafmill/leafmill/internal/bus"
)

// Config of the service; zero values are usable.
type Config struct {
	Workers int // messages at once (16 when 0): they share commits
	// QueryTimeout bounds the embedding of a query; then the search is by keywords (3 s when 0).
	QueryTimeout time.Duration
	Fusion       Fusion
	Bus          bus.RunConfig
	Version      string
	Log          *slog.Logger
}

// Service writes events into a backend and searches it.
type Service struct {
	conn    *bus.Conn
	store   *artifacts.Store
	backend Backend
	cfg     Config
}

// Run serves the stage and its searches until ctx ends. The backend belongs to the caller.
//
//	embedded, degraded -> indexed
//	completed, healed  -> (visibility)
func Run(ctx context.Context, conn *bus.Conn, backend Backend, cfg Config) error {
	if cfg.Workers == 0 {
		cfg.Workers = 16
	}
	if cfg.QueryTimeout == 0 {
		cfg.QueryTimeout = 3 * time.Second
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	store, err := artifacts.Open(ctx, conn.JetStream())
	if err != nil {
		return err
	}
	s := &Service{conn: conn, store: store, backend: backend, cfg: cfg}
	return conn.RunService(ctx, cfg.Bus, bus.Service{
		Info: bus.ServiceInfo{Name: "index", Version: cfg.Version, Description: "Makes chunks searchable, and searches",
			Endpoints: []bus.Endpoint{{Subject: api.SubjectSearch, Limit: 32, Handle: s.search}}},
		Consumers: []bus.Consumer{{Durable: "index", Workers: cfg.Workers, Timeout: 2 * time.Minute, Handle: s.Handle}},
	})
}

// Handle takes one event of the index durable.
func (s *Service) Handle(ctx context.Context, d *bus.Delivery) error {
	switch b := d.Body.(type) {
	case *events.Embedded:
		return s.OnChunks(ctx, d, b)
	case *events.Degraded:
		return s.OnChunks(ctx, d, &b.Embedded)
	case *events.Completed:
		return s.OnCompleted(ctx, d, b)
	case *events.Healed:
		return s.OnCompleted(ctx, d, &b.Completed)
	}
	return events.Fail(events.Unsupported, "The index does not read %s events.", d.Event)
}

// OnChunks makes a segment's chunks searchable and says so.
func (s *Service) OnChunks(ctx context.Context, d *bus.Delivery, e *events.Embedded) error {
	var chunks []events.Chunk
	if err := s.store.Get(ctx, e.Content, &chunks); err != nil {
		return err
	}
	seg := Segment{Job: d.Job, Collection: e.Collection, Document: e.DocumentID, Name: e.Name, Language: e.Language,
		Version: e.Version, Run: e.Run, Space: e.Space, TotalUnits: e.Pass.Units}
	for _, u := range e.Units {
		if u.Problem == nil {
			seg.Units = append(seg.Units, Unit{Number: u.Unit, Page: u.Page, Length: u.Length})
		}
	}
	for _, c := range chunks {
		seg.Chunks = append(seg.Chunks, Chunk{ID: c.ID, Unit: c.Unit, N: c.N, Page: c.Page, Start: c.Start, End: c.End,
			Text: c.Text, Tokens: c.Tokens, Vector: c.Vector})
	}
	out, err := s.backend.Upsert(ctx, seg)
	if err != nil {
		return err
	}
	if out.Fenced {
		return nil
	}
	say := events.Indexed{Pass: e.Pass, Segment: e.Segment, Superseded: out.Superseded}
	counts := map[int]UnitCount{}
	for _, c := range out.Units {
		counts[c.Unit] = c
	}
	for _, u := range e.Units {
		u.Chunks, u.Vectors = counts[u.Unit].Chunks, counts[u.Unit].Vectors
		say.Units = append(say.Units, u)
	}
	return d.Emit(ctx, events.NameIndexed, e.Segment, say)
}

// OnCompleted flips or drops versions, as the end of a run decides.
func (s *Service) OnCompleted(ctx context.Context, d *bus.Delivery, c *events.Completed) error {
	end := Completion{Job: d.Job, Collection: c.Collection, Document: c.DocumentID, Name: c.Name, Version: c.Version, Run: c.Run,
		Succeeded: c.Status == events.StatusSucceeded || c.Status == events.StatusWarnings,
		Cancelled: c.Status == events.StatusCancelled, TotalUnits: c.Pass.Units}
	for _, u := range c.Failed {
		end.Failed = append(end.Failed, Unit{Number: u.Unit, Page: u.Page, Length: u.Length})
	}
	return s.backend.Complete(ctx, end)
}

// search answers leafmill.search.
func (s *Service) search(ctx context.Context, request []byte) (any, error) {
	began := time.Now()
	var r api.SearchRequest
	if err := json.Unmarshal(request, &r); err != nil {
		return nil, events.Fail(events.Invalid, `The request must be a JSON object such as {"q":"tide mill"}.`).Because(err)
	}
	q, err := queryOf(r)
	if err != nil {
		return nil, err
	}
	q.Fusion = s.cfg.Fusion
	answer := api.SearchAnswer{Query: r.Q, Results: []api.Hit{}}
	if q.Mode != Keyword {
		if q.Vector, q.Space, err = s.embed(ctx, r.Q); err != nil {
			s.cfg.Log.Debug("searching by keywords only", "error", err)
			answer.Degraded, q.Mode = true, Keyword
		}
	}
	found, err := s.backend.Search(ctx, q)
	if errors.Is(err, ErrSpace) {
		s.cfg.Log.Warn("the query's vector is of another space than the index; searching by keywords only", "space", q.Space)
		q.Vector, q.Space, q.Mode, answer.Degraded = nil, "", Keyword, true
		found, err = s.backend.Search(ctx, q)
	}
	if err != nil {
		return nil, err
	}
	answer.Mode = string(found.Mode)
	fill(&answer, found.Hits, r.From)
	answer.TookMS = float64(time.Since(began).Microseconds()) / 1000
	return answer, nil
}

func queryOf(r api.SearchRequest) (Query, error) {
	q := Query{Text: r.Q, Mode: Mode(r.Mode), K: r.K, Filter: Filter{Collection: r.Collection, Document: r.DocumentID}}
	if q.Mode == "" {
		q.Mode = Hybrid
	}
	if q.K == 0 {
		q.K = 10
	}
	switch {
	case r.Q == "" || len(r.Q) > 8<<10:
		return q, events.Fail(events.Invalid, "Give a query q of 1 to 8,192 bytes.")
	case q.Mode != Hybrid && q.Mode != Keyword && q.Mode != Dense:
		return q, events.Fail(events.Invalid, "The mode must be hybrid, keyword or dense.")
	case q.K < 1 || q.K > MaxK || r.From < 0:
		return q, events.Fail(events.Invalid, "k must be 1 to %d, and from not negative.", MaxK)
	case r.Collection != "" && !events.ValidCollection(r.Collection), r.DocumentID != "" && !events.ValidDocument(r.DocumentID):
		return q, events.Fail(events.Invalid, "The collection and document_id must match [A-Za-z0-9._:-]{1,128}.")
	}
	return q, nil
}

// embed has the query embedded by the embed service, which answers at once when its
// circuit is open or it has no model.
func (s *Service) embed(ctx context.Context, text string) ([]float32, string, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.QueryTimeout)
	defer cancel()
	var a api.EmbedAnswer
	if err := s.conn.Request(ctx, api.SubjectEmbed, api.EmbedRequest{Text: text}, &a); err != nil {
		return nil, "", err
	}
	return a.Vector, a.Space, nil
}

// replyBytes leaves room for the rest of the answer under bus.MaxReply.
const replyBytes = bus.MaxReply - 16<<10

// fill adds the hits from number from on, until the reply is full.
func fill(a *api.SearchAnswer, hits []Hit, from int) {
	size := 0
	for i := min(from, len(hits)); i < len(hits); i++ {
		h := hits[i]
		hit := api.Hit{DocumentID: h.Document, JobID: h.Job, Collection: h.Collection, Name: h.Name, Chunk: h.ChunkID, Page: h.Page,
			Start: h.Start, End: h.End, Text: h.Text, Score: h.Score, Scores: api.Scores{Keyword: h.Keyword, Vector: h.Vector},
			Highlights: h.Highlights}
		if hit.Highlights == nil {
			hit.Highlights = [][2]int{}
		}
		data, err := json.Marshal(hit)
		if err != nil {
			continue // cannot happen: all fields marshal
		}
		if size += len(data); size > replyBytes && len(a.Results) > 0 {
			a.Next = i
			return
		}
		a.Results = append(a.Results, hit)
	}
}
