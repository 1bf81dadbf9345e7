package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/leafmill/leafmill/events"
	"github.com/leafmill/leafmill/internal/api"
	"github.com/leafmill/leafmill/internal/bus"
)

// streamBatch is how many events are written before a flush.
const streamBatch = 32

func (g *Gateway) streamRoutes() {
	resume := []*huma.Param{
		{Name: "Last-Event-ID", In: "header", Description: "Go on after this sequence.", Schema: &huma.Schema{Type: "integer"}},
		queryParam("last_event_id", "The same, for clients that cannot set headers.", &huma.Schema{Type: "integer"}),
	}
	responses := func(problems ...int) map[string]*huma.Response {
		return g.responses(http.StatusOK, "Events: id is the stream sequence, event its name, data {sequence, event, job_id, time, data}.",
			mediaEvents, &huma.Schema{Type: "string"},
			append(problems, http.StatusUnprocessableEntity, http.StatusTooManyRequests, http.StatusServiceUnavailable)...)
	}
	g.plain(&huma.Operation{OperationID: "job-events", Method: http.MethodGet, Path: "/jobs/{id}/events", Tags: []string{"events"},
		Summary:    "A job's whole story, then what happens to it, as server-sent events",
		Parameters: append([]*huma.Param{pathParam("id", jobPattern, "The job.")}, resume...),
		Responses:  responses(http.StatusNotFound)}, g.jobEvents)
	g.plain(&huma.Operation{OperationID: "events", Method: http.MethodGet, Path: "/events", Tags: []string{"events"},
		Summary:    "What happens to all jobs, live, as server-sent events",
		Parameters: resume, Responses: responses()}, g.allEvents)
}

func (g *Gateway) jobEvents(w http.ResponseWriter, r *http.Request) error {
	job := r.PathValue("id")
	after, _, err := lastEventID(r)
	if err != nil {
		return err
	}
	if err := g.known(r.Context(), job); err != nil {
		return err
	}
	return g.stream(w, r, after+1, events.JobSubjects(job))
}

func (g *Gateway) allEvents(w http.ResponseWriter, r *http.Request) error {
	after, given, err := lastEventID(r)
	if err != nil {
		return err
	}
	if err := g.bus.Healthy(); err != nil {
		return err
	}
	_, last, err := g.bus.Bounds(r.Context())
	if err != nil {
		return err
	}
	if !given || after > last {
		after = last
	}
	return g.stream(w, r, after+1)
}

// known returns nil when the stream has anything of a job.
func (g *Gateway) known(ctx context.Context, job string) error {
	if !events.ValidJob(job) {
		return noJob()
	}
	if err := g.bus.Healthy(); err != nil {
		return err
	}
	m, err := g.bus.Last(ctx, events.JobSubjects(job))
	switch {
	case err == nil, m.Sequence > 0: // an event that cannot be decoded is part of the story too
		return nil
	case errors.Is(err, bus.ErrNotFound):
		return noJob()
	}
	return err
}

// lastEventID is where a client wants to go on, and whether it said so.
func lastEventID(r *http.Request) (seq uint64, given bool, err error) {
	s := r.Header.Get("Last-Event-ID") // a reconnecting browser's, newer than its URL
	if s == "" {
		s = r.URL.Query().Get("last_event_id")
	}
	if s == "" {
		return 0, false, nil
	}
	seq, err = strconv.ParseUint(s, 10, 63)
	if err != nil {
		return 0, false, invalid("The Last-Event-ID must be a sequence, as the member id of an event gives it.")
	}
	return seq, true, nil
}

// stream writes events from a sequence on until the client leaves or the gateway ends. A
// client that does not read within writeTimeout is cut off; it can resume.
func (g *Gateway) stream(w http.ResponseWriter, r *http.Request, from uint64, subjects ...string) error {
	if !g.streams.take() {
		return busy()
	}
	defer g.streams.give()
	ctx, cancel := g.untilDrain(r.Context())
	defer cancel()
	reader, err := g.bus.Follow(ctx, from, subjects...)
	if err != nil {
		return err
	}
	defer reader.Close()
	g.metrics.streams.Inc()
	defer g.metrics.streams.Dec()

	w.Header().Set("Content-Type", mediaEvents)
	w.Header().Set("X-Accel-Buffering", "no") // for proxies
	if r.Method == http.MethodHead {
		return nil
	}
	out := paced{w, http.NewResponseController(w)}
	buf := bytes.NewBufferString("retry: 1000\n: events from sequence " + strconv.FormatUint(from, 10) + "\n\n")
	for {
		if _, err := out.Write(buf.Bytes()); err != nil || out.rc.Flush() != nil {
			return nil // the client is gone, or too slow
		}
		buf.Reset()
		hb, stop := context.WithTimeout(ctx, g.cfg.Heartbeat)
		batch, err := reader.Next(hb, streamBatch)
		stop()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, context.DeadlineExceeded):
			buf.WriteString(": still here\n\n")
		case err != nil:
			g.log.Warn("an event stream ended", "error", err)
			return nil // the client comes back and resumes
		}
		for _, rd := range batch {
			if err := writeEvent(buf, rd.Message); err != nil {
				g.log.Error("an event cannot be shown", "sequence", rd.Sequence, "error", err)
			}
		}
	}
}

func writeEvent(buf *bytes.Buffer, m events.Message) error {
	e := api.StreamEvent{Sequence: m.Sequence, Event: m.Event, JobID: m.Job, Time: m.Time, Data: m.Raw}
	if !json.Valid(m.Raw) { // anybody can publish anything
		text, err := json.Marshal(string(m.Raw))
		if err != nil {
			return err
		}
		e.Data = text
	}
	data, err := json.Marshal(e)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(buf, "id: %d\nevent: %s\ndata: %s\n\n", m.Sequence, m.Event, data)
	return err
}

// paced gives the peer a bounded time for each piece.
type paced struct {
	w  http.ResponseWriter
	rc *http.ResponseController
}

func (p paced) Write(b []byte) (int, error) {
	_ = p.rc.SetWriteDeadline(time.Now().Add(writeTimeout)) // a test's recorder has none
	return p.w.Write(b)
}
