package gateway_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/leafmill/leafmill/events"
	"github.com/leafmill/leafmill/internal/api"
	"github.com/leafmill/leafmill/internal/bus"
	"github.com/leafmill/leafmill/services/gateway"
)

// golden compares an answer with testdata; UPDATE=1 writes it.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if os.Getenv("UPDATE") != "" {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s:\ngot  %s\nwant %s", name, got, want)
	}
}

func exampleJob(id string) api.Job {
	at := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	return api.Job{ID: id, DocumentID: "report", Name: "report.pdf", MediaType: "application/pdf", Size: 12345, Collection: "default",
		Version: 7, Run: 7, Status: events.StatusWarnings, Progress: 100, Stage: "index", Units: api.UnitCount{Total: 3, Indexed: 2, Failed: 1},
		CompletedStages: []string{"ocr", "chunk", "index"}, RetriesUsed: 2,
		Warnings:  []api.Warning{{Code: "ocr.timeout", Stage: "ocr", Message: "Page 3 took too long.", Units: []string{"3-3"}}},
		Artifacts: api.Artifacts{TextPreview: "Über <Mühlen>", Pages: 3, PagesOCR: 1, Chunks: 4, Indexed: true},
		Result:    &api.Result{Mode: events.ModeKeyword, CompletedStages: []string{"ocr", "chunk", "index"}, Warnings: 1},
		Usage:     map[string]api.Usage{"embed": {Calls: 1, Tokens: 10, LatencyMS: 5}},
		Timings:   map[string]api.StageTime{"ocr": {Started: at, Finished: &at, Seconds: 1.5}},
		Metadata:  map[string]any{"k": "v"}, CreatedAt: at, UpdatedAt: at, FinishedAt: &at}
}

func TestJobs(t *testing.T) {
	e := newEnv(t, gateway.Config{})
	running := api.Job{ID: "running", DocumentID: "running", Collection: "default", Status: events.StatusRunning}
	e.serveJobs(exampleJob("done"), running)
	a := e.get("/jobs/done")
	golden(t, "job.json", a.body)
	golden(t, "job-running.json", e.get("/jobs/running").body)
	golden(t, "jobs.json", e.get("/jobs").body)

	etag := a.header.Get("ETag")
	if len(etag) < 10 || a.header.Get("Cache-Control") != "no-cache" {
		t.Errorf("ETag %q, Cache-Control %q", etag, a.header.Get("Cache-Control"))
	}
	for list, status := range map[string]int{etag: 304, "W/" + etag: 304, `"other", ` + etag: 304, "*": 304, `"other"`: 200, "": 200} {
		r := e.request("GET", "/jobs/done", "", nil)
		r.Header.Set("If-None-Match", list)
		if a := e.do(r); a.status != status || a.header.Get("ETag") != etag {
			t.Errorf("If-None-Match %s: %d, ETag %s", list, a.status, a.header.Get("ETag"))
		}
	}
	if other := e.get("/jobs/running").header.Get("ETag"); other == etag {
		t.Error("two jobs with one ETag")
	}

	for path, want := range map[string]struct {
		status int
		code   string
	}{
		"/jobs/unknown":                             {404, "gateway.not_found"},
		"/jobs/" + strings.Repeat("a", 65):          {422, "gateway.invalid"},
		"/jobs/a.b":                                 {422, "gateway.invalid"},
		"/jobs/a%2Fb":                               {422, "gateway.invalid"},
		"/jobs/done?wait=soon":                      {422, "gateway.invalid"},
		"/jobs/done?wait=-1s":                       {422, "gateway.invalid"},
		"/jobs?status=unknown":                      {422, "gateway.invalid"},
		"/jobs?limit=0":                             {422, "gateway.invalid"},
		"/jobs?limit=501":                           {422, "gateway.invalid"},
		"/jobs?limit=x":                             {422, "gateway.invalid"},
		"/jobs?collection=a%20b":                    {422, "gateway.invalid"},
		"/jobs?cursor=" + strings.Repeat("x", 1000): {422, "gateway.invalid"},
	} {
		if a := e.get(path); a.status != want.status || a.problem(t).Code != want.code {
			t.Errorf("%.40s: %d %s", path, a.status, a.body)
		}
	}
}

func TestListPassesTheQueryOn(t *testing.T) {
	e := newEnv(t, gateway.Config{})
	asked := make(chan api.JobsRequest, 1)
	e.serve("status", map[string]func([]byte) (any, error){api.SubjectJobs: func(req []byte) (any, error) {
		var r api.JobsRequest
		err := json.Unmarshal(req, &r)
		asked <- r
		return api.JobsAnswer{Next: "further"}, err
	}})
	a := e.get("/jobs?status=failed&collection=c&cursor=abc&limit=7")
	if got, want := <-asked, (api.JobsRequest{Status: "failed", Collection: "c", Cursor: "abc", Limit: 7}); got != want {
		t.Errorf("asked %+v", got)
	}
	if a.body != `{"jobs":[],"next":"further"}`+"\n" {
		t.Error(a.body)
	}
	e.get("/jobs")
	if got := <-asked; got != (api.JobsRequest{Limit: 50}) {
		t.Errorf("asked %+v", got)
	}
}

func TestLongPoll(t *testing.T) {
	e := newEnv(t, gateway.Config{})
	asked := make(chan int64, 4)
	e.serve("status", map[string]func([]byte) (any, error){api.SubjectJob: func(req []byte) (any, error) {
		var r api.JobRequest
		err := json.Unmarshal(req, &r)
		asked <- r.WaitMS
		j := exampleJob(r.ID)
		if r.WaitMS == 0 {
			j.Status = events.StatusRunning
		}
		return j, err
	}})
	for wait, ms := range map[string]int64{"30s": 30_000, "1m30s": 60_000, "5": 5_000, "0.5": 500, "1h": 60_000} {
		a := e.get("/jobs/x?wait=" + wait)
		if first, second := <-asked, <-asked; first != 0 || second != ms {
			t.Errorf("wait=%s asked for %d and %d ms", wait, first, second)
		}
		if !strings.Contains(a.body, events.StatusWarnings) {
			t.Errorf("wait=%s: %s", wait, a.body)
		}
	}
}

func TestFaultsOfServicesDoNotLeak(t *testing.T) {
	e := newEnv(t, gateway.Config{})
	if a := e.get("/jobs"); a.status != 503 || a.problem(t).Code != "gateway.unavailable" {
		t.Errorf("without a status service: %d %s", a.status, a.body)
	}
	fault := make(chan error, 1)
	e.serve("status", map[string]func([]byte) (any, error){api.SubjectJobs: func([]byte) (any, error) { return nil, <-fault }})
	for _, tt := range []struct {
		err    error
		status int
		code   string
	}{
		{errors.New("open /var/secret: no such file"), 500, "gateway.internal"},
		{events.Fail(events.Internal, "Row /var/secret is broken."), 500, "gateway.internal"},
		{events.Fail(events.Unavailable, "The views are catching up.").Because(errors.New("/var/secret")), 503, "status.unavailable"},
		{events.Fail(events.Invalid, "The cursor is not one."), 422, "status.invalid"},
	} {
		fault <- tt.err
		a := e.get("/jobs")
		if a.status != tt.status || a.problem(t).Code != tt.code || strings.Contains(a.body, "secret") {
			t.Errorf("%v: %d %s", tt.err, a.status, a.body)
		}
	}
}

func TestDelete(t *testing.T) {
	e := newEnv(t, gateway.Config{})
	var ids []string
	for range 2 {
		a := e.do(e.request("POST", "/documents?document_id=report", "text/plain", strings.NewReader("content")))
		var got gateway.Accepted
		if err := json.Unmarshal([]byte(a.body), &got); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, got.JobID)
	}
	other := exampleJob("other")
	other.Collection = "elsewhere"
	e.serveJobs(exampleJob(ids[0]), exampleJob(ids[1]), other)

	if a := e.do(e.request("DELETE", "/documents/unknown", "", nil)); a.status != 404 || a.problem(t).Code != "gateway.not_found" {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a := e.do(e.request("DELETE", "/documents/report?collection=nowhere", "", nil)); a.status != 404 {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a := e.do(e.request("DELETE", "/documents/re%20port", "", nil)); a.status != 422 {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a := e.do(e.request("DELETE", "/documents/report", "", nil)); a.status != 204 || a.body != "" {
		t.Fatalf("%d %s", a.status, a.body)
	}
	fences := e.stored(events.NameDeleted.All())
	if len(fences) != 2 {
		t.Fatalf("%d fences", len(fences))
	}
	for i, f := range fences {
		want := events.Pass{Run: 7, Version: 7, Collection: "default", DocumentID: "report", Units: 3, Name: "report.pdf"}
		if f.Err != nil || f.Job != ids[i] || f.Pass != want {
			t.Errorf("%v %s %+v", f.Err, f.Job, f.Pass)
		}
	}
	if n := e.pieces(); n != 0 {
		t.Errorf("%d pieces of the originals left", n)
	}
}

func TestReadiness(t *testing.T) {
	e := newEnv(t, gateway.Config{})
	check := func() (int, gateway.Readiness) {
		t.Helper()
		gateway.Forget(e.gw)
		a := e.get("/readyz")
		var r gateway.Readiness
		if err := json.Unmarshal([]byte(a.body), &r); err != nil {
			t.Fatal(err)
		}
		return a.status, r
	}
	if status, r := check(); status != 503 || r.Status != "not_ready" || !r.Checks["bus"].OK || r.Checks["status"].OK || r.Checks["index"].OK {
		t.Errorf("alone: %d %+v", status, r)
	}
	e.serve("index", nil)
	broken := make(chan error, 1)
	e.serve("status", map[string]func([]byte) (any, error){api.SubjectJobs: func([]byte) (any, error) {
		select {
		case err := <-broken:
			return nil, err
		default:
			return api.JobsAnswer{}, nil
		}
	}})
	if status, r := check(); status != 200 || r.Status != "ready" || r.Checks["embed"].OK || r.Checks["ocr"].OK || r.Checks["index"].Replicas != 1 {
		t.Errorf("without a model: %d %+v", status, r)
	}
	e.serve("ocr", nil)
	e.serve("embed", nil)
	if status, r := check(); status != 200 || !r.Checks["embed"].OK || !r.Checks["ocr"].OK {
		t.Errorf("with all: %d %+v", status, r)
	}
	broken <- events.Fail(events.Unavailable, "The job views must be rebuilt.")
	if status, r := check(); status != 503 || r.Checks["status"].Detail != "The job views must be rebuilt." {
		t.Errorf("with broken views: %d %+v", status, r)
	}
}

func TestModel(t *testing.T) {
	for _, tt := range []struct {
		replicas []map[string]string
		ok       bool
		detail   string
	}{
		{[]map[string]string{nil}, true, ""},
		{[]map[string]string{{"model": "minilm", "ready": "true"}}, true, "minilm"},
		{[]map[string]string{{"model": "", "ready": "false", "detail": "no weights"}}, false, "no weights"},
		{[]map[string]string{{"model": ""}}, false, "no embedding model: documents are searchable by keyword only"},
		{[]map[string]string{{"model": "minilm", "ready": "false"}, {"model": "minilm", "ready": "true"}}, true, "minilm"},
	} {
		if ok, detail := gateway.Model(tt.replicas...); ok != tt.ok || detail != tt.detail {
			t.Errorf("%v: %v %q", tt.replicas, ok, detail)
		}
	}
}

func TestMetricsAndLanding(t *testing.T) {
	e := newEnv(t, gateway.Config{})
	e.post("text/plain", "hello")
	a := e.get("/metrics")
	for _, want := range []string{`leafmill_http_requests_total{route="POST /documents",status="202"} 1`, "leafmill_http_upload_bytes_total 5"} {
		if !strings.Contains(a.body, want) {
			t.Errorf("no %s in\n%s", want, a.body)
		}
	}
	if a := e.get("/"); a.status != 200 || !strings.Contains(a.body, "/openapi.json") {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a := e.do(e.request("HEAD", "/healthz", "", nil)); a.status != 200 {
		t.Errorf("%d", a.status)
	}
}

func TestRunServesUntilItIsToldToStop(t *testing.T) {
	srv, conn, store := newBus(t, bus.Layout{})
	if gw, err := gateway.New(conn, store, gateway.Config{Addr: "0.0.0.0:0"}); err != nil {
		t.Fatal(err)
	} else if err := gw.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "LEAFMILL_API_KEYS") {
		t.Fatalf("served the network without keys: %v", err)
	}
	bound := make(chan net.Addr, 1)
	gw, err := gateway.New(conn, store, gateway.Config{OnListen: func(a net.Addr) { bound <- a }, Grace: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := gw.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	defer wg.Wait()
	defer cancel()
	url := "http://" + (<-bound).String()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	// The service is registered, and an event stream is open.
	for n := 0; n == 0; {
		names, err := connect(t, srv, "other").ServiceNames(ctx)
		if err != nil {
			t.Fatal(err)
		}
		n = names["gateway"]
	}
	req, err := http.NewRequestWithContext(t.Context(), "GET", url+"/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	began := time.Now()
	cancel()
	wg.Wait()
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("an open event stream held the shutdown for %v", took)
	}
	if _, err := fmt.Fscan(res.Body, new(string)); err != nil {
		t.Error(err) // what was sent is still there
	}
}
