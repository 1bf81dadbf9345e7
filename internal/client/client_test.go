package client_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/leafmill/leafmill/internal/api"
	"github.com/leafmill/leafmill/internal/client"
)

func serve(t *testing.T, h http.HandlerFunc) *client.Client {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return client.New(s.URL+"/", "a-key-of-16-chars")
}

func problem(w http.ResponseWriter, status int, code, detail string) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"status": status, "code": code, "detail": detail})
}

func upload(content string) client.Upload {
	return client.Upload{Name: `odd "name".md`, DocumentID: "d1", Collection: "c1", Language: "de", Bulk: true, Size: int64(len(content)),
		Open: func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(content)), nil }}
}

func TestSubmit(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength <= 0 {
			t.Error("the length of the upload is not told")
		}
		if got := r.Header.Get("Authorization"); got != "Bearer a-key-of-16-chars" {
			t.Errorf("authorization %q", got)
		}
		f, head, err := r.FormFile("file")
		if err != nil {
			t.Error(err)
			return
		}
		data, _ := io.ReadAll(f)
		got := []string{r.Method, r.URL.Path, head.Filename, r.FormValue("document_id"), r.FormValue("collection"),
			r.FormValue("language"), r.FormValue("bulk"), string(data)}
		want := []string{"POST", "/documents", `odd "name".md`, "d1", "c1", "de", "true", "# hello"}
		if d := cmp.Diff(want, got); d != "" {
			t.Error(d)
		}
		w.WriteHeader(http.StatusAccepted)
		_, _ = io.WriteString(w, `{"job_id":"j1","document_id":"d1","status":"queued"}`)
	})
	got, err := c.Submit(t.Context(), upload("# hello"))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(client.Accepted{JobID: "j1", DocumentID: "d1", Status: "queued"}, got); d != "" {
		t.Error(d)
	}
}

// A busy server is asked again, with the whole document; a server that refuses is not.
func TestBusyAndRefusing(t *testing.T) {
	var calls atomic.Int32
	var busy []time.Duration
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if data, _ := io.ReadAll(r.Body); !strings.Contains(string(data), "the content") {
			t.Error("the repeated upload lacks its content")
		}
		if calls.Add(1) == 1 {
			w.Header().Set("Retry-After", "1")
			problem(w, http.StatusServiceUnavailable, "gateway.unavailable", "later")
			return
		}
		problem(w, http.StatusUnsupportedMediaType, "gateway.unsupported", "No reader for this format.")
	})
	c.OnBusy = func(d time.Duration, _ error) { busy = append(busy, d) }
	_, err := c.Submit(t.Context(), upload("the content"))
	r, ok := errors.AsType[*client.Refused](err)
	if !ok || r.Status != 415 || r.Code != "gateway.unsupported" || r.Error() != "No reader for this format. (gateway.unsupported)" {
		t.Errorf("got %v", err)
	}
	if calls.Load() != 2 || len(busy) != 1 || busy[0] != time.Second {
		t.Errorf("%d calls, waits %v", calls.Load(), busy)
	}
}

func TestPatienceEnds(t *testing.T) {
	var calls atomic.Int32
	c := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		calls.Add(1)
		w.Header().Set("Retry-After", "3600")
		problem(w, http.StatusTooManyRequests, "gateway.rate_limited", "slow down")
	})
	_, err := c.Jobs(t.Context(), api.JobsRequest{})
	if r, ok := errors.AsType[*client.Refused](err); !ok || r.RetryAfter != time.Hour || calls.Load() != 1 {
		t.Errorf("%v after %d calls", err, calls.Load())
	}
}

func TestUnreachable(t *testing.T) {
	s := httptest.NewServer(http.NotFoundHandler())
	s.Close()
	_, err := client.New(s.URL, "").Job(t.Context(), "j", 0)
	if !errors.Is(err, client.ErrUnreachable) || !strings.Contains(err.Error(), s.URL) {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := client.New(s.URL, "").Job(ctx, "j", 0); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestAwaitAsksUntilTheJobHasEnded(t *testing.T) {
	var calls atomic.Int32
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/jobs/j1" || r.URL.Query().Get("wait") != "30s" {
			t.Errorf("asked for %s", r.URL)
		}
		status := "running"
		if calls.Add(1) == 2 {
			status = "succeeded"
		}
		_, _ = fmt.Fprintf(w, `{"id":"j1","status":%q}`, status)
	})
	j, err := c.Await(t.Context(), "j1")
	if err != nil || j.Status != "succeeded" || calls.Load() != 2 {
		t.Errorf("%+v, %v, %d calls", j, err, calls.Load())
	}
}

func TestSearchAndJobsPassTheirParameters(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprintf(w, `{"query":%q,"next":1}`, r.URL.String())
		if r.URL.Path == "/jobs" {
			t.Error("unexpected path")
		}
	})
	got, err := c.Search(t.Context(), api.SearchRequest{Q: "a&b ü", K: 3, Mode: "keyword", Collection: "c", DocumentID: "d"})
	if err != nil {
		t.Fatal(err)
	}
	if want := "/search?collection=c&document_id=d&k=3&mode=keyword&q=a%26b+%C3%BC"; got.Query != want {
		t.Errorf("asked for %s, want %s", got.Query, want)
	}
	c = serve(t, func(w http.ResponseWriter, r *http.Request) { _, _ = fmt.Fprintf(w, `{"jobs":[],"next":%q}`, r.URL) })
	page, err := c.Jobs(t.Context(), api.JobsRequest{Status: "failed", Collection: "c", Cursor: "x=", Limit: 7})
	if err != nil {
		t.Fatal(err)
	}
	if want := "/jobs?collection=c&cursor=x%3D&limit=7&status=failed"; page.Next != want {
		t.Errorf("asked for %s, want %s", page.Next, want)
	}
}

func TestEvents(t *testing.T) {
	const stream = ": hello\n\nid: 7\nevent: submitted\ndata: {\"sequence\":7,\"event\":\"submitted\",\ndata: \"job_id\":\"j1\"}\n\n" +
		":ping\n\nid: 9\nevent: completed\ndata: {\"sequence\":9,\"event\":\"completed\",\"job_id\":\"j1\"}\n\n"
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/jobs/j1/events" || r.Header.Get("Last-Event-ID") != "5" {
			t.Errorf("asked for %s after %q", r.URL, r.Header.Get("Last-Event-ID"))
		}
		_, _ = io.WriteString(w, stream)
	})
	var got []uint64
	take := func(enough bool) error {
		got = nil
		return c.Events(t.Context(), "j1", 5, func(e api.StreamEvent) (bool, error) {
			got = append(got, e.Sequence)
			return enough, nil
		})
	}
	if err := take(false); err != nil || !cmp.Equal(got, []uint64{7, 9}) {
		t.Errorf("%v, %v", got, err)
	}
	if err := take(true); err != nil || !cmp.Equal(got, []uint64{7}) {
		t.Errorf("%v, %v", got, err)
	}
	c = serve(t, func(w http.ResponseWriter, _ *http.Request) { problem(w, 404, "status.not_found", "No such job.") })
	if r, ok := errors.AsType[*client.Refused](c.Events(t.Context(), "j1", 0, nil)); !ok || r.Status != 404 {
		t.Errorf("got %v", r)
	}
}

func TestAnswersThatAreNotOurs(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>hello") })
	if _, err := c.Job(t.Context(), "j", 0); err == nil {
		t.Error("HTML was taken for a job")
	}
	if _, _, err := c.Ready(t.Context()); err == nil {
		t.Error("HTML was taken for readiness")
	}
	c = serve(t, func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "bad gateway", http.StatusBadGateway) })
	if r, ok := errors.AsType[*client.Refused](func() error { _, err := c.Job(t.Context(), "j", 0); return err }()); !ok || r.Error() != "Bad Gateway (502)" {
		t.Errorf("got %v", r)
	}
}

// An upload does not grow with its file: the body is read as it is sent.
func TestUploadIsStreamed(t *testing.T) {
	started := make(chan struct{})
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		buf := make([]byte, 1)
		_, _ = r.Body.Read(buf)
		close(started)
		_, _ = io.Copy(io.Discard, r.Body)
		w.WriteHeader(http.StatusAccepted)
		_, _ = io.WriteString(w, `{}`)
	})
	u := client.Upload{Name: "big", Size: 1 << 20, Open: func() (io.ReadCloser, error) {
		head := strings.NewReader(strings.Repeat("x", 1<<19))
		rest := readerFunc(func(p []byte) (int, error) { <-started; return len(p), nil })
		return io.NopCloser(io.MultiReader(head, rest)), nil
	}}
	if _, err := c.Submit(t.Context(), u); err != nil {
		t.Fatal(err)
	}
	u.Open = func() (io.ReadCloser, error) { return nil, os.ErrPermission }
	if _, err := c.Submit(t.Context(), u); !errors.Is(err, os.ErrPermission) {
		t.Errorf("got %v", err)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
