// Package chunk is the second stage: it cuts the text of a segment's units into chunks.
//
//	extracted -> chunked
//
// Unit, page and span of every chunk are exact: sliced by its span, the unit's text is the
// chunk's. A unit without text goes on with zero chunks; a failed one goes on as it is.
package chunk

import (
	"context"
	"runtime"
	"time"

	"github.com/leafmill/leafmill/events"
	"github.com/leafmill/leafmill/internal/artifacts"
	"github.com/leafmill/leafmill/internal/bus"
	"github.com/leafmill/leafmill/services/chunk/split"
)

// Config of the service; Tokenizer is required, other zero values are usable.
type Config struct {
	Tokenizer split.Tokenizer // of the embedding model
	Tokens    int             // of a chunk at most, without the model's specials (split.DefaultMax when 0)
	Workers   int             // segments at once (the cores when 0)
	Bus       bus.RunConfig
	Version   string
}

// Service cuts segments.
type Service struct {
	store *artifacts.Store
	cfg   Config
}

// Run serves the stage until ctx ends.
func Run(ctx context.Context, conn *bus.Conn, cfg Config) error {
	if cfg.Tokens == 0 {
		cfg.Tokens = split.DefaultMax
	}
	if cfg.Workers == 0 {
		cfg.Workers = runtime.NumCPU()
	}
	store, err := artifacts.Open(ctx, conn.JetStream())
	if err != nil {
		return err
	}
	s := &Service{store: store, cfg: cfg}
	return conn.RunService(ctx, cfg.Bus, bus.Service{
		Info:      bus.ServiceInfo{Name: "chunk", Version: cfg.Version, Description: "Cuts text into chunks"},
		Consumers: []bus.Consumer{{Durable: "chunk", Workers: cfg.Workers, Timeout: 2 * time.Minute, Handle: s.OnExtracted}},
	})
}

// OnExtracted cuts a segment. One whose units all failed has nothing left to do.
func (s *Service) OnExtracted(ctx context.Context, d *bus.Delivery) error {
	e := d.Body.(*events.Extracted)
	failed := 0
	for _, u := range e.Units {
		if u.Problem != nil {
			failed++
		}
	}
	if failed == len(e.Units) {
		return nil
	}
	var texts []events.UnitText
	if err := s.store.Get(ctx, e.Content, &texts); err != nil {
		return err
	}
	out := events.Chunked{Pass: e.Pass, Segment: e.Segment, Units: e.Units, Language: e.Language}
	chunks := cut(e, texts, s.cfg.Tokenizer, s.cfg.Tokens)
	for i := range out.Units {
		out.Units[i].Chunks = 0
	}
	for _, c := range chunks {
		out.Units[c.Unit-out.Units[0].Unit].Chunks++
	}
	for _, c := range chunks[:min(3, len(chunks))] {
		c.Text = head(c.Text, 120)
		out.Preview = append(out.Preview, c)
	}
	var err error
	if out.Content, err = s.store.Put(ctx, d.Job, chunks); err != nil {
		return err
	}
	return d.Emit(ctx, events.NameChunked, e.Segment, out)
}

// cut makes the chunks of a segment. Texts of units that the segment does not list, or
// that failed, are not used.
func cut(e *events.Extracted, texts []events.UnitText, tok split.Tokenizer, tokens int) []events.Chunk {
	chunks := []events.Chunk{}
	for _, t := range texts {
		i := t.Unit - e.Units[0].Unit
		if i < 0 || i >= len(e.Units) || e.Units[i].Problem != nil {
			continue
		}
		for n, span := range split.Text(t.Text, tok, tokens) {
			chunks = append(chunks, events.Chunk{ID: events.ChunkID(e.DocumentID, e.Version, t.Unit, n+1),
				Unit: t.Unit, N: n + 1, Page: e.Units[i].Page, Start: span.Start, End: span.End, Text: span.Text, Tokens: span.Tokens})
		}
	}
	return chunks
}

// head is the first n code points of a text.
func head(text string, n int) string {
	for i := range text {
		if n == 0 {
			return text[:i]
		}
		n--
	}
	return text
}
