package gateway_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/leafmill/leafmill/events"
	"github.com/leafmill/leafmill/internal/api"
	"github.com/leafmill/leafmill/internal/bus"
	"github.com/leafmill/leafmill/services/gateway"
)

// sse reads an event stream.
type sse struct {
	t    testing.TB
	res  *http.Response
	scan *bufio.Scanner
}

// follow opens a stream; it is live once this returns.
func (e *env) follow(path, lastEventID string) *sse {
	e.t.Helper()
	r := e.request("GET", path, "", nil)
	if lastEventID != "" {
		r.Header.Set("Last-Event-ID", lastEventID)
	}
	res, err := e.http.Client().Do(r)
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() { _ = res.Body.Close() })
	if ct := res.Header.Get("Content-Type"); res.StatusCode != 200 || ct != "text/event-stream" {
		e.t.Fatalf("%s: %d %s", path, res.StatusCode, ct)
	}
	s := &sse{e.t, res, bufio.NewScanner(res.Body)}
	s.scan.Buffer(nil, 4<<20)
	return s
}

// next is the next event: its lines, and its data decoded.
func (s *sse) next() (lines []string, data api.StreamEvent) {
	s.t.Helper()
	for s.scan.Scan() {
		line := s.scan.Text()
		switch {
		case line == "" && len(lines) > 0:
			return lines, data
		case line == "" || strings.HasPrefix(line, ":") || strings.HasPrefix(line, "retry:"):
			continue
		}
		lines = append(lines, line)
		if body, ok := strings.CutPrefix(line, "data: "); ok {
			if err := json.Unmarshal([]byte(body), &data); err != nil {
				s.t.Fatalf("%v: %s", err, body)
			}
		}
	}
	s.t.Fatalf("the stream ended: %v", s.scan.Err())
	return nil, data
}

func (e *env) submit(job, text string) uint64 {
	e.t.Helper()
	seq, err := e.conn.Publish(e.t.Context(), events.NameSubmitted, job, events.Submitted{Text: text}, bus.PublishOptions{})
	if err != nil {
		e.t.Fatal(err)
	}
	return seq
}

// TestAStoryHasNoGapsAndNoRepetitions publishes while a client reads, leaves in the middle
// and comes back.
func TestAStoryHasNoGapsAndNoRepetitions(t *testing.T) {
	e := newEnv(t, gateway.Config{})
	const before, after = 40, 160
	var want []uint64
	for i := range before {
		want = append(want, e.submit("story", fmt.Sprint(i)))
		e.submit("another", "noise")
	}
	var wg sync.WaitGroup
	live := make([]uint64, 0, after)
	wg.Go(func() {
		for i := range after {
			live = append(live, e.submit("story", fmt.Sprint(before+i)))
			e.submit("another", "noise")
		}
	})
	var got []uint64
	last := ""
	for n := 0; len(got) < before+after; n++ {
		s := e.follow("/jobs/story/events", last)
		for range 30 + n { // then the connection breaks
			if len(got) == before+after {
				break
			}
			lines, data := s.next()
			if want := "id: " + strconv.FormatUint(data.Sequence, 10); lines[0] != want || lines[1] != "event: submitted" || len(lines) != 3 {
				t.Fatalf("%q", lines)
			}
			var body events.Submitted
			if err := json.Unmarshal(data.Data, &body); err != nil || body.Text != strconv.Itoa(len(got)) || data.JobID != "story" {
				t.Fatalf("event %d is %s: %v", len(got), data.Data, err)
			}
			got = append(got, data.Sequence)
			last = strconv.FormatUint(data.Sequence, 10)
		}
		_ = s.res.Body.Close()
	}
	wg.Wait()
	want = append(want, live...)
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

func TestLiveEvents(t *testing.T) {
	e := newEnv(t, gateway.Config{})
	first := e.submit("a", "before")
	s := e.follow("/events", "")
	second := e.submit("b", "after")
	third, err := e.conn.Publish(t.Context(), events.NameCancelled, "a",
		events.Cancelled{Pass: events.Pass{Run: first, Version: first, Collection: "default", DocumentID: "a"}}, bus.PublishOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if lines, data := s.next(); data.Sequence != second || data.JobID != "b" {
		t.Errorf("the first live event is %q", lines)
	}
	lines, data := s.next()
	if data.Sequence != third || lines[1] != "event: cancelled" || data.Event != events.NameCancelled {
		t.Errorf("%q", lines)
	}
	if data.Time.IsZero() || time.Since(data.Time) > time.Minute {
		t.Errorf("time %v", data.Time)
	}
	// The same by header, by query, and the header first.
	for _, c := range []struct {
		path, header string
		want         uint64
	}{
		{"/events", strconv.FormatUint(first, 10), second},
		{"/events?last_event_id=" + strconv.FormatUint(second, 10), "", third},
		{"/events?last_event_id=" + strconv.FormatUint(second, 10), "0", first},
		{"/jobs/a/events?last_event_id=" + strconv.FormatUint(first, 10), "", third},
	} {
		if _, data := e.follow(c.path, c.header).next(); data.Sequence != c.want {
			t.Errorf("%s after %q begins at %d, want %d", c.path, c.header, data.Sequence, c.want)
		}
	}
	// After an end that the stream never had (it was made anew), what is new comes.
	s = e.follow("/events", "99999")
	fourth := e.submit("c", "later")
	if _, data := s.next(); data.Sequence != fourth {
		t.Errorf("sequence %d, want %d", data.Sequence, fourth)
	}
}

func TestAStoryShowsWhatCannotBeDecoded(t *testing.T) {
	e := newEnv(t, gateway.Config{})
	for _, body := range []string{"not JSON\nid: 7\n\ndata: \xff", `{"text":7}`, ""} {
		if _, err := e.conn.JetStream().Publish(t.Context(), "docs.submitted.odd", []byte(body)); err != nil {
			t.Fatal(err)
		}
	}
	s := e.follow("/jobs/odd/events", "")
	for i, want := range []any{"not JSON\nid: 7\n\ndata: \ufffd", map[string]any{"text": 7.0}, ""} {
		lines, data := s.next()
		var got any
		if err := json.Unmarshal(data.Data, &got); err != nil || len(lines) != 3 || data.Sequence != uint64(i+1) || !reflect.DeepEqual(got, want) {
			t.Errorf("%q, want data %q: %v", lines, want, err)
		}
	}
}

func TestASilentStreamShowsThatItIsAlive(t *testing.T) {
	e := newEnv(t, gateway.Config{Heartbeat: 20 * time.Millisecond})
	s := e.follow("/events", "")
	for beats := 0; beats < 3; {
		if !s.scan.Scan() {
			t.Fatal(s.scan.Err())
		}
		if s.scan.Text() == ": still here" {
			beats++
		}
	}
	seq := e.submit("a", "x")
	if _, data := s.next(); data.Sequence != seq {
		t.Errorf("after the heartbeats: %d", data.Sequence)
	}
}

func TestStreamRefusals(t *testing.T) {
	e := newEnv(t, gateway.Config{})
	e.submit("a", "x")
	for path, want := range map[string]int{
		"/jobs/unknown/events": 404, "/jobs/a.b/events": 404, "/jobs/a/events?last_event_id=x": 422, "/events?last_event_id=-1": 422,
		"/events?last_event_id=18446744073709551615": 422,
	} {
		if a := e.get(path); a.status != want || a.problem(t).Detail == "" {
			t.Errorf("%s: %d %s", path, a.status, a.body)
		}
	}
	if a := e.do(e.request("HEAD", "/jobs/a/events", "", nil)); a.status != 200 || a.header.Get("Content-Type") != "text/event-stream" {
		t.Errorf("HEAD: %d %v", a.status, a.header)
	}
}

func TestTheNumberOfStreamsIsBounded(t *testing.T) {
	e := newEnv(t, gateway.Config{})
	release := gateway.TakeStreams(e.gw)
	if a := e.get("/events"); a.status != 429 || a.problem(t).Code != "gateway.busy" {
		t.Errorf("%d %s", a.status, a.body)
	}
	release()
	e.follow("/events", "")
}
