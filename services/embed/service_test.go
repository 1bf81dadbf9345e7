package embed_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/leafmill/leafmill/events"
	"github.com/leafmill/leafmill/internal/api"
	"github.com/leafmill/leafmill/internal/artifacts"
	"github.com/leafmill/leafmill/internal/bus"
	"github.com/leafmill/leafmill/internal/guard"
	"github.com/leafmill/leafmill/services/embed"
	"github.com/leafmill/leafmill/services/embed/model"
)

// endpoint is a small embeddings server whose behaviour a test sets.
type endpoint struct {
	*httptest.Server
	calls  atomic.Int64
	behave atomic.Pointer[func(w http.ResponseWriter, inputs []string) bool] // false: answer well
}

func newEndpoint(t *testing.T) *endpoint {
	t.Helper()
	e := &endpoint{}
	e.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		e.calls.Add(1)
		var q struct{ Input []string }
		if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		if f := e.behave.Load(); f != nil && (*f)(w, q.Input) {
			return
		}
		type item struct {
			Index     int       `json:"index"`
			Embedding []float32 `json:"embedding"`
		}
		var data []item
		for i, text := range q.Input {
			data = append(data, item{i, []float32{float32(len(text)), 1, 2}})
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"data": data, "usage": map[string]int{"prompt_tokens": 7 * len(q.Input)}})
	}))
	t.Cleanup(e.Close)
	return e
}

// run starts the service with two texts a call.
func run(t *testing.T, m model.Model, g guard.Config) (*bus.Conn, *artifacts.Store) {
	t.Helper()
	srv, err := bus.StartServer(bus.ServerConfig{Dir: t.TempDir(), SyncInterval: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(srv.Stop)
	c, err := bus.Connect(t.Context(), bus.Options{Server: srv, Service: "embed", Instance: "test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	if err := c.Ensure(t.Context(), bus.Layout{AckWait: 2 * time.Second}); err != nil {
		t.Fatal(err)
	}
	store, err := artifacts.Open(t.Context(), c.JetStream())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() {
		done <- embed.Run(ctx, c, embed.Config{Model: m, Guard: g, Workers: 1, Bus: bus.RunConfig{AckWait: 2 * time.Second, Grace: 2 * time.Second}})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return c, store
}

func fast() guard.Config {
	return guard.Config{Timeout: 2 * time.Second, Retries: 1, BreakerFailures: 3, OpenTimeout: time.Minute, MaxRetryAfter: time.Second}
}

func openAI(t *testing.T, e *endpoint) model.Model {
	t.Helper()
	m, err := model.NewOpenAI(model.OpenAIConfig{BaseURL: e.URL + "/v1", Model: "m", Batch: 2})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// chunked publishes a segment of n chunks in one unit.
func chunked(t *testing.T, c *bus.Conn, store *artifacts.Store, job string, n int) {
	t.Helper()
	pass := events.Pass{Run: 1, Version: 1, Collection: "default", DocumentID: job, Units: 1}
	chunks := []events.Chunk{}
	for i := range n {
		chunks = append(chunks, events.Chunk{ID: events.ChunkID(job, 1, 1, i+1), Unit: 1, N: i + 1, Page: 1, Start: i, End: i + 1, Text: fmt.Sprintf("text %d", i), Tokens: 2})
	}
	content, err := store.Put(t.Context(), job, chunks)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Publish(t.Context(), events.NameChunked, job, events.Chunked{Pass: pass, Segment: "1-1",
		Units: []events.Unit{{Unit: 1, Page: 1, Length: n, Chunks: n}}, Content: content}, bus.PublishOptions{}); err != nil {
		t.Fatal(err)
	}
}

// outcome waits for embedded or degraded of a job.
func outcome(t *testing.T, c *bus.Conn, store *artifacts.Store, job string) (events.Body, []events.Chunk) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	r, err := c.Read(ctx, 1, events.NameEmbedded.Subject(job), events.NameDegraded.Subject(job))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	batch, err := r.Next(ctx, 1)
	if err != nil {
		t.Fatal(err)
	}
	var content events.Content
	switch b := batch[0].Body.(type) {
	case *events.Embedded:
		content = b.Content
	case *events.Degraded:
		content = b.Content
	}
	var chunks []events.Chunk
	if err := store.Get(ctx, content, &chunks); err != nil {
		t.Fatal(err)
	}
	return batch[0].Body, chunks
}

func TestChunksAreEmbedded(t *testing.T) {
	e := newEndpoint(t)
	c, store := run(t, openAI(t, e), fast())
	chunked(t, c, store, "good", 5)
	body, chunks := outcome(t, c, store, "good")
	b, ok := body.(*events.Embedded)
	if !ok {
		t.Fatalf("%+v", body)
	}
	if b.Usage.Calls != 3 || b.Usage.Tokens != 35 || b.Space == "" || b.Units[0].Vectors != 5 {
		t.Errorf("embedded says %+v", b)
	}
	for i, ch := range chunks {
		if len(ch.Vector) != 3 {
			t.Errorf("chunk %d has the vector %v", i, ch.Vector)
		}
	}
	chunked(t, c, store, "nothing", 0)
	if body, _ := outcome(t, c, store, "nothing"); body.(*events.Embedded).Usage.Calls != 0 {
		t.Error("a segment without chunks made a call")
	}
}

// TestFailuresDegrade: what was embedded before the failure keeps its vectors, the rest
// goes on without, and the event says why. Retries are told.
func TestFailuresDegrade(t *testing.T) {
	for want, status := range map[events.Class]int{events.Unavailable: 500, events.RateLimited: 429, events.Invalid: 401} {
		t.Run(string(want), func(t *testing.T) {
			t.Parallel()
			e := newEndpoint(t)
			bad := func(w http.ResponseWriter, in []string) bool {
				if in[0] == "text 0" {
					return false
				}
				w.WriteHeader(status)
				return true
			}
			e.behave.Store(&bad)
			c, store := run(t, openAI(t, e), fast())
			chunked(t, c, store, "bad", 4)
			body, chunks := outcome(t, c, store, "bad")
			b, ok := body.(*events.Degraded)
			if !ok || b.Reason != want || b.Message == "" || b.Pass.Units != 1 || b.Units[0].Vectors != 2 {
				t.Fatalf("%+v", body)
			}
			for i, ch := range chunks {
				if (ch.Vector != nil) != (i < 2) {
					t.Errorf("chunk %d has the vector %v", i, ch.Vector)
				}
			}
			retries := 0
			if err := c.Story(t.Context(), func(bus.Read) error { retries++; return nil }, events.NameRetried.Subject("bad")); err != nil {
				t.Fatal(err)
			}
			if expect := map[bool]int{true: 1, false: 0}[want.Transient()]; retries != expect {
				t.Errorf("%d retried events, want %d", retries, expect)
			}
		})
	}
}

func TestOpenCircuitMakesNoCalls(t *testing.T) {
	e := newEndpoint(t)
	down := func(w http.ResponseWriter, _ []string) bool {
		w.WriteHeader(http.StatusServiceUnavailable)
		return true
	}
	e.behave.Store(&down)
	g := fast()
	g.Retries, g.BreakerFailures = 0, 1
	c, store := run(t, openAI(t, e), g)
	chunked(t, c, store, "first", 1)
	outcome(t, c, store, "first")
	calls := e.calls.Load()
	chunked(t, c, store, "second", 4)
	body, _ := outcome(t, c, store, "second")
	if b, ok := body.(*events.Degraded); !ok || b.Reason != events.CircuitOpen || b.Usage.Calls != 0 {
		t.Errorf("%+v", body)
	}
	var a api.EmbedAnswer
	err := c.Request(t.Context(), api.SubjectEmbed, api.EmbedRequest{Text: "hello"}, &a)
	if re, ok := errors.AsType[*bus.RemoteError](err); !ok || re.Code != "embed.circuit_open" {
		t.Errorf("a query says %v", err)
	}
	if e.calls.Load() != calls {
		t.Error("an open circuit made a call")
	}
}

func TestNoModel(t *testing.T) {
	c, store := run(t, model.None{Why: "Run make setup."}, fast())
	chunked(t, c, store, "doc", 1)
	body, _ := outcome(t, c, store, "doc")
	if b, ok := body.(*events.Degraded); !ok || b.Reason != events.MissingModel || b.Message != "Run make setup." {
		t.Errorf("%+v", body)
	}
}

func TestQueries(t *testing.T) {
	e := newEndpoint(t)
	c, _ := run(t, openAI(t, e), fast())
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	var a api.EmbedAnswer
	for {
		err := c.Request(ctx, api.SubjectEmbed, api.EmbedRequest{Text: "hello"}, &a)
		if errors.Is(err, bus.ErrNoService) {
			continue // not registered yet
		}
		if err != nil {
			t.Fatal(err)
		}
		break
	}
	if len(a.Vector) != 3 || a.Space == "" {
		t.Errorf("%+v", a)
	}
	for _, bad := range []any{api.EmbedRequest{}, "text", 7} {
		if err := c.Request(ctx, api.SubjectEmbed, bad, &a); err == nil {
			t.Errorf("%v was answered", bad)
		}
	}
}
