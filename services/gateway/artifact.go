package gateway

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"slices"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/leafmill/leafmill/events"
	"github.com/leafmill/leafmill/internal/api"
	"github.com/leafmill/leafmill/internal/bus"
)

// storyTimeout bounds reading what a job's events say about its units.
const storyTimeout = 2 * time.Minute

func (g *Gateway) artifactRoutes() {
	params := []*huma.Param{pathParam("id", jobPattern, "The job.")}
	problems := []int{http.StatusNotFound, http.StatusTooManyRequests, http.StatusServiceUnavailable}
	g.plain(&huma.Operation{OperationID: "job-text", Method: http.MethodGet, Path: "/jobs/{id}/artifacts/text", Tags: []string{"jobs"},
		Summary: "The text of a document",
		Description: "The units joined in order, with a form feed where the page changes and nothing else between them. " +
			"Units that failed, or are not extracted yet, have no text.",
		Parameters: params, Responses: g.responses(http.StatusOK, "The text so far", mediaText, &huma.Schema{Type: "string"}, problems...)},
		g.textArtifact)
	g.plain(&huma.Operation{OperationID: "job-chunks", Method: http.MethodGet, Path: "/jobs/{id}/artifacts/chunks", Tags: []string{"jobs"},
		Summary: "The chunks of a document",
		Description: "In order. start and end are code point offsets into the text artifact, null while an earlier unit is missing. " +
			"When the answer breaks off, it is not valid JSON.",
		Parameters: params, Responses: g.responses(http.StatusOK, "The chunks so far", mediaJSON, g.schema(reflect.TypeFor[api.ArtifactChunks]()), problems...)},
		g.chunksArtifact)
}

// note says in which event a unit's content is.
type note struct {
	seq, run uint64
	page     int32
	length   int32 // code points
	failed   bool
}

// notes reads which event of a name has the final word on each unit: that of the highest
// run, and of its events the latest. The first pass of two: contents are read, one event
// at a time, in the second.
func (g *Gateway) notes(ctx context.Context, name events.Name, job string) ([]note, error) {
	ctx, cancel := context.WithTimeout(ctx, storyTimeout)
	defer cancel()
	var out []note
	var top events.Pass
	err := g.bus.Story(ctx, func(rd bus.Read) error {
		if rd.Err != nil {
			return nil // poisoned by whoever reads it for work
		}
		var units []events.Unit
		switch b := rd.Body.(type) {
		case *events.Extracted:
			units = b.Units
		case *events.Chunked:
			units = b.Units
		}
		if rd.Pass.Run >= top.Run {
			top = rd.Pass
		}
		for _, u := range units {
			if u.Unit < 1 || u.Unit > events.MaxUnits {
				continue
			}
			if more := u.Unit - len(out); more > 0 {
				out = append(out, make([]note, more)...)
			}
			if n := &out[u.Unit-1]; rd.Pass.Run >= n.run {
				*n = note{seq: rd.Sequence, run: rd.Pass.Run, page: int32(u.Page), length: int32(u.Length), failed: u.Problem != nil}
			}
		}
		return nil
	}, name.Subject(job))
	if top.Units > 0 && len(out) > top.Units { // units of an earlier run, beyond the last one's
		out = out[:top.Units]
	}
	return out, err
}

// separated says whether a form feed stands between a unit and the one before it.
func separated(before, n note) bool { return before.seq > 0 && before.page != n.page }

// artifact opens an artifact's way out: known job, a free slot, paced writing.
func (g *Gateway) artifact(w http.ResponseWriter, r *http.Request, media string,
	read func(ctx context.Context, job string, out io.Writer) error,
) error {
	job := r.PathValue("id")
	if err := g.known(r.Context(), job); err != nil {
		return err
	}
	if !g.downloads.take() {
		return busy()
	}
	defer g.downloads.give()
	w.Header().Set("Content-Type", media)
	begun := &begun{w: paced{w, http.NewResponseController(w)}}
	out := bufio.NewWriterSize(begun, 64<<10)
	err := read(r.Context(), job, out)
	if err == nil {
		err = out.Flush()
	}
	if err != nil && begun.yes {
		g.log.Warn("an artifact broke off", "job", job, "error", err)
		panic(http.ErrAbortHandler) // so that the client sees that it is not whole
	}
	return err
}

// begun notes whether anything was written.
type begun struct {
	w   io.Writer
	yes bool
}

func (b *begun) Write(p []byte) (int, error) {
	b.yes = true
	return b.w.Write(p)
}

func (g *Gateway) textArtifact(w http.ResponseWriter, r *http.Request) error {
	return g.artifact(w, r, mediaText, func(ctx context.Context, job string, out io.Writer) error {
		notes, err := g.notes(ctx, events.NameExtracted, job)
		if err != nil {
			return err
		}
		return g.writeText(ctx, notes, out)
	})
}

func (g *Gateway) writeText(ctx context.Context, notes []note, out io.Writer) error {
	var before note
	var at uint64 // the event whose texts are in hand
	var texts []events.UnitText
	for i, n := range notes {
		if n.seq == 0 {
			continue
		}
		if separated(before, n) {
			if _, err := io.WriteString(out, "\f"); err != nil {
				return err
			}
		}
		before = n
		if n.failed || n.length == 0 {
			continue
		}
		if n.seq != at {
			m, err := g.bus.Get(ctx, n.seq)
			if err != nil {
				return err
			}
			b, ok := m.Body.(*events.Extracted)
			if !ok {
				return fmt.Errorf("gateway: event %d is no longer what it was", n.seq)
			}
			texts = nil
			if err := g.store.Get(ctx, b.Content, &texts); err != nil {
				return err
			}
			at = n.seq
		}
		for _, t := range texts {
			if t.Unit == i+1 {
				if _, err := io.WriteString(out, t.Text); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (g *Gateway) chunksArtifact(w http.ResponseWriter, r *http.Request) error {
	return g.artifact(w, r, mediaJSON, func(ctx context.Context, job string, out io.Writer) error {
		texts, err := g.notes(ctx, events.NameExtracted, job)
		if err != nil {
			return err
		}
		chunks, err := g.notes(ctx, events.NameChunked, job)
		if err != nil {
			return err
		}
		return g.writeChunks(ctx, texts, chunks, out)
	})
}

func (g *Gateway) writeChunks(ctx context.Context, texts, notes []note, out io.Writer) error {
	if _, err := io.WriteString(out, `{"chunks":[`); err != nil {
		return err
	}
	var at uint64 // the event whose chunks are in hand
	var chunks []events.Chunk
	first := true
	pos := position{known: true}
	for i, n := range notes {
		if i < len(texts) {
			pos.enter(texts[i])
		} else {
			pos.known = false
		}
		if n.seq == 0 {
			continue
		}
		if n.seq != at {
			m, err := g.bus.Get(ctx, n.seq)
			if err != nil {
				return err
			}
			b, ok := m.Body.(*events.Chunked)
			if !ok {
				return fmt.Errorf("gateway: event %d is no longer what it was", n.seq)
			}
			chunks = nil
			if err := g.store.Get(ctx, b.Content, &chunks); err != nil {
				return err
			}
			slices.SortStableFunc(chunks, func(a, b events.Chunk) int { return cmp.Or(cmp.Compare(a.Unit, b.Unit), cmp.Compare(a.N, b.N)) })
			at = n.seq
		}
		for _, c := range chunks {
			if c.Unit != i+1 {
				continue
			}
			a := api.ArtifactChunk{ID: c.ID, Page: c.Page, Text: c.Text, Tokens: c.Tokens}
			if pos.known && pos.unit.madeBefore(n) {
				start, end := pos.start+c.Start, pos.start+c.End
				a.Start, a.End = &start, &end
			}
			data, err := json.Marshal(a)
			if err != nil {
				return err
			}
			if !first {
				data = append([]byte{','}, data...)
			}
			first = false
			if _, err := out.Write(data); err != nil {
				return err
			}
		}
	}
	_, err := io.WriteString(out, "]}\n")
	return err
}

// position walks through the units and knows where each begins in the text artifact.
type position struct {
	unit  note
	start int // of unit, in code points
	known bool
}

func (p *position) enter(n note) {
	if n.seq == 0 {
		p.known = false
		return
	}
	if p.unit.seq > 0 {
		p.start += p.unit.size()
	}
	if separated(p.unit, n) {
		p.start++
	}
	p.unit = n
}

// size is what the text artifact has of a unit.
func (n note) size() int {
	if n.failed {
		return 0
	}
	return int(n.length)
}

// madeBefore says that a chunking is of this text and not of one that a replay or a
// redrive has replaced since.
func (n note) madeBefore(chunked note) bool {
	return n.run < chunked.run || n.run == chunked.run && n.seq < chunked.seq
}
