package status_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/leafmill/leafmill/events"
	"github.com/leafmill/leafmill/internal/api"
	"github.com/leafmill/leafmill/internal/bus"
	"github.com/leafmill/leafmill/services/status"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		goleak.IgnoreTopFunction("github.com/nats-io/nats-server/v2/server.(*Server).startGWReconnect"),
		goleak.IgnoreAnyFunction("github.com/nats-io/nats-server/v2/server.init.1.func1"))
}

func startServer(t testing.TB) *bus.Server {
	t.Helper()
	srv, err := bus.StartServer(bus.ServerConfig{Dir: t.TempDir(), SyncInterval: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(srv.Stop)
	return srv
}

func connect(t testing.TB, srv *bus.Server, instance string) *bus.Conn {
	t.Helper()
	c, err := bus.Connect(t.Context(), bus.Options{Server: srv, Service: "status", Instance: instance})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	if err := c.Ensure(t.Context(), bus.Layout{MaxBytes: 256 << 20}); err != nil {
		t.Fatal(err)
	}
	return c
}

// serve runs a replica and returns a function that stops it and waits.
func serve(t testing.TB, c *bus.Conn, dir string) (stop func()) {
	t.Helper()
	s, err := status.New(t.Context(), c, status.Config{Dir: dir, Metrics: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	return runService(t, s)
}

func runService(t testing.TB, s *status.Service) (stop func()) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// pipeline publishes what the stages would.
type pipeline struct {
	t testing.TB
	c *bus.Conn
}

func (p pipeline) say(name events.Name, job string, body any) uint64 {
	p.t.Helper()
	seq, err := p.c.Publish(p.t.Context(), name, job, body, bus.PublishOptions{})
	if err != nil {
		p.t.Fatal(err)
	}
	return seq
}

func (p pipeline) submit(job string, units int) events.Pass {
	seq := p.say(events.NameSubmitted, job, events.Submitted{Text: "Tide mills", Name: job + ".txt", DocumentID: "doc-" + job})
	return events.Pass{Run: seq, Version: seq, Collection: "default", DocumentID: "doc-" + job, Units: units}
}

// process takes a unit through every stage, but the last when told so.
func (p pipeline) process(job string, pass events.Pass, unit int, last bool) {
	u := events.Unit{Unit: unit, Page: unit, Length: 10, Method: "parser"}
	seg := fmt.Sprintf("%d-%d", unit, unit)
	p.say(events.NameExtracted, job, events.Extracted{Pass: pass, Segment: seg, Units: []events.Unit{u}, Preview: "Tide mills"})
	u.Chunks = 2
	p.say(events.NameChunked, job, events.Chunked{Pass: pass, Segment: seg, Units: []events.Unit{u}})
	u.Vectors = 2
	p.say(events.NameEmbedded, job, events.Embedded{Pass: pass, Segment: seg, Units: []events.Unit{u}, Usage: events.Usage{Calls: 1, Tokens: 4}})
	if last {
		p.say(events.NameIndexed, job, events.Indexed{Pass: pass, Segment: seg, Units: []events.Unit{u}})
	}
}

func (p pipeline) whole(job string) {
	p.process(job, p.submit(job, 1), 1, true)
}

func get(t testing.TB, c *bus.Conn, job string, wait time.Duration) (api.Job, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), wait+20*time.Second)
	defer cancel()
	var j api.Job
	err := c.Request(ctx, api.SubjectJob, api.JobRequest{ID: job, WaitMS: wait.Milliseconds()}, &j)
	return j, err
}

// ask repeats a request until the service is there.
func ask(t testing.TB, c *bus.Conn, subject string, request, answer any) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for {
		err := c.Request(ctx, subject, request, answer)
		if !errors.Is(err, bus.ErrNoService) || ctx.Err() != nil {
			return err
		}
	}
}

func finished(t testing.TB, c *bus.Conn, job string) api.Job {
	t.Helper()
	var j api.Job
	if err := ask(t, c, api.SubjectJob, api.JobRequest{ID: job, WaitMS: 15_000}, &j); err != nil {
		t.Fatalf("job %s: %v", job, err)
	}
	if !j.Terminal() {
		t.Fatalf("job %s is still %s: %+v", job, j.Status, j)
	}
	return j
}

func count(t testing.TB, c *bus.Conn, subjects ...string) (n int) {
	t.Helper()
	if err := c.Story(t.Context(), func(bus.Read) error { n++; return nil }, subjects...); err != nil {
		t.Fatal(err)
	}
	return n
}

func list(t testing.TB, c *bus.Conn, r api.JobsRequest) (jobs []api.Job) {
	t.Helper()
	for {
		var a api.JobsAnswer
		if err := ask(t, c, api.SubjectJobs, r, &a); err != nil {
			t.Fatal(err)
		}
		jobs = append(jobs, a.Jobs...)
		if r.Cursor = a.Next; r.Cursor == "" {
			return jobs
		}
	}
}

func TestAStoryGoesToCompleted(t *testing.T) {
	c := connect(t, startServer(t), "a")
	serve(t, c, t.TempDir())
	p := pipeline{t, c}
	p.whole("mill")
	j := finished(t, c, "mill")
	if j.Status != "succeeded" || j.Result == nil || j.Result.Mode != "full_rag" || j.Units.Indexed != 1 || j.DocumentID != "doc-mill" {
		t.Errorf("view: %+v", j)
	}
	m, err := c.Last(t.Context(), events.NameCompleted.Subject("mill"))
	if err != nil {
		t.Fatal(err)
	}
	b := m.Body.(*events.Completed)
	if b.Status != "succeeded" || b.Chunks != 2 || b.Vectors != 2 || b.Run != j.Run {
		t.Errorf("completed: %+v", b)
	}
	var found api.FindAnswer
	if err := c.Request(t.Context(), api.SubjectFind, api.FindRequest{DocumentID: "doc-mill"}, &found); err != nil || len(found.Jobs) != 1 || found.Jobs[0].ID != "mill" {
		t.Errorf("find: %+v, %v", found, err)
	}
}

func TestASubmissionThatIsNotJSON(t *testing.T) {
	c := connect(t, startServer(t), "a")
	serve(t, c, t.TempDir())
	p := pipeline{t, c}
	seq := p.say(events.NameSubmitted, "bad", "not an object")
	pass := events.Pass{Run: seq, Version: seq, Collection: "default", DocumentID: "bad"}
	p.say(events.NamePoisoned, "bad", events.Poisoned{Pass: pass, Cause: events.Cause{Sequence: seq, Subject: "docs.submitted.bad", Durable: "ocr"},
		First: 1, Stage: "ocr", Code: "ocr.invalid", Message: "It is not JSON."})
	if j := finished(t, c, "bad"); j.Status != "failed" || j.Error == nil || j.Error.Code != "ocr.invalid" {
		t.Errorf("view: %+v", j)
	}
}

func TestSeveralReplicasCompleteOnce(t *testing.T) {
	srv := startServer(t)
	c := connect(t, srv, "test")
	for _, name := range []string{"a", "b", "c"} {
		serve(t, connect(t, srv, name), t.TempDir())
	}
	const jobs = 60
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := w; i < jobs; i += 4 {
				pipeline{t, c}.whole(fmt.Sprintf("j%d", i))
			}
		})
	}
	wg.Wait()
	for i := range jobs {
		finished(t, c, fmt.Sprintf("j%d", i))
	}
	per := map[string]int{}
	err := c.Story(t.Context(), func(r bus.Read) error { per[r.Job]++; return nil }, events.NameCompleted.All())
	if err != nil || len(per) != jobs {
		t.Errorf("%d jobs completed, %v", len(per), err)
	}
	for job, n := range per {
		if n != 1 {
			t.Errorf("%s completed %d times", job, n)
		}
	}
}

// A run that a replay began completes again, though the subject has a completed already.
func TestAReplayCompletesAgain(t *testing.T) {
	c := connect(t, startServer(t), "a")
	serve(t, c, t.TempDir())
	p := pipeline{t, c}
	p.whole("mill")
	first := finished(t, c, "mill")
	run := p.say(events.NameReplayed, "mill", events.Replayed{Version: first.Version, Collection: "default", DocumentID: "doc-mill", Units: 1, From: "ocr", Base: first.Run})
	p.process("mill", events.Pass{Run: run, Version: first.Version, Collection: "default", DocumentID: "doc-mill", Units: 1}, 1, true)
	r, err := c.Read(t.Context(), run, events.NameCompleted.Subject("mill"))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	batch, err := r.Next(t.Context(), 1)
	if err != nil || batch[0].Pass.Run != run {
		t.Fatalf("%+v, %v", batch, err)
	}
}

// What somebody else put on the subject of completed stops nothing and is followed by one.
func TestAForeignEventOnTheSubjectIsPassedOver(t *testing.T) {
	c := connect(t, startServer(t), "a")
	serve(t, c, t.TempDir())
	p := pipeline{t, c}
	p.say(events.NameCompleted, "mill", "noise")
	p.whole("mill")
	finished(t, c, "mill")
	p.whole("next") // by its end the publisher has looked at the views again
	finished(t, c, "next")
	if n := count(t, c, events.NameCompleted.Subject("mill")); n != 2 {
		t.Errorf("%d events on the subject", n)
	}
}

func TestACancelledJobCompletesAsCancelled(t *testing.T) {
	c := connect(t, startServer(t), "a")
	serve(t, c, t.TempDir())
	p := pipeline{t, c}
	pass := p.submit("mill", 2)
	p.process("mill", pass, 1, true)
	p.say(events.NameCancelled, "mill", events.Cancelled{Pass: pass})
	if j := finished(t, c, "mill"); j.Status != "cancelled" || j.Error != nil || j.Result != nil {
		t.Errorf("view: %+v", j)
	}
}

func TestARestartGoesOnFromTheCheckpoint(t *testing.T) {
	srv := startServer(t)
	c := connect(t, srv, "test")
	dir := t.TempDir()
	p := pipeline{t, c}
	stop := serve(t, connect(t, srv, "a"), dir)
	p.whole("before")
	pass := p.submit("during", 2)
	p.process("during", pass, 1, true)
	finished(t, c, "before")
	stop()
	p.process("during", pass, 2, true) // while nobody is there: due at the next start
	p.whole("after")
	serve(t, connect(t, srv, "b"), dir)
	for _, job := range []string{"before", "during", "after"} {
		if j := finished(t, c, job); j.Status != "succeeded" || j.RetriesUsed != 0 {
			t.Errorf("%s: %+v", job, j)
		}
	}
	if n := count(t, c, events.NameCompleted.All()); n != 3 {
		t.Errorf("%d completed", n)
	}
}

// A kill is a copy of the files as they lie while the service works: WAL and all.
func TestAKilledReplicaLosesNothing(t *testing.T) {
	srv := startServer(t)
	c := connect(t, srv, "test")
	dir, killed := t.TempDir(), t.TempDir()
	p := pipeline{t, c}
	stop := serve(t, connect(t, srv, "a"), dir)
	for i := range 20 {
		p.whole(fmt.Sprintf("j%d", i))
	}
	finished(t, c, "j7")
	for _, e := range must(os.ReadDir(dir)) {
		data := must(os.ReadFile(filepath.Join(dir, e.Name())))
		if strings.HasSuffix(e.Name(), "-wal") {
			data = data[:len(data)*2/3] // the kill came in the middle of a write
		}
		if strings.HasSuffix(e.Name(), "-shm") {
			continue
		}
		if err := os.WriteFile(filepath.Join(killed, e.Name()), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 20 {
		finished(t, c, fmt.Sprintf("j%d", i))
	}
	want := list(t, c, api.JobsRequest{})
	stop()
	serve(t, connect(t, srv, "b"), killed)
	for i := range 20 {
		finished(t, c, fmt.Sprintf("j%d", i))
	}
	if d := cmp.Diff(want, list(t, c, api.JobsRequest{})); d != "" {
		t.Errorf("after the kill:\n%s", d)
	}
	if n := count(t, c, events.NameCompleted.All()); n != 20 {
		t.Errorf("%d completed", n)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestADamagedFileIsRebuilt(t *testing.T) {
	srv := startServer(t)
	c := connect(t, srv, "test")
	dir := t.TempDir()
	stop := serve(t, connect(t, srv, "a"), dir)
	pipeline{t, c}.whole("mill")
	want := finished(t, c, "mill")
	stop()
	for _, e := range must(os.ReadDir(dir)) {
		name := filepath.Join(dir, e.Name())
		data := must(os.ReadFile(name))
		for i := 5000; i < len(data); i++ {
			data[i] ^= 0x5a
		}
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	serve(t, connect(t, srv, "b"), dir)
	if d := cmp.Diff(want, finished(t, c, "mill")); d != "" {
		t.Error(d)
	}
}

func TestARebuildGivesTheSameViewsWhileTheOldOnesAnswer(t *testing.T) {
	srv := startServer(t)
	c := connect(t, srv, "test")
	dir := t.TempDir()
	serve(t, connect(t, srv, "a"), dir)
	p := pipeline{t, c}
	for i := range 30 {
		job := fmt.Sprintf("j%d", i)
		pass := p.submit(job, 2)
		p.process(job, pass, 1, true)
		if i%3 > 0 {
			p.process(job, pass, 2, i%3 == 1)
		}
	}
	for i := 1; i < 30; i += 3 {
		finished(t, c, fmt.Sprintf("j%d", i))
	}
	before := list(t, c, api.JobsRequest{})

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() { // the old views answer, and work goes on
		for i := 0; ctx.Err() == nil; i++ {
			if j, err := get(t, c, fmt.Sprintf("j%d", i%30), 0); err != nil || j.ID == "" {
				t.Errorf("during the rebuild: %+v, %v", j, err)
			}
		}
	})
	var answers []api.RebuildAnswer
	for range 2 {
		var a api.RebuildAnswer
		if err := ask(t, c, api.SubjectRebuild, struct{}{}, &a); err != nil {
			t.Fatal(err)
		}
		answers = append(answers, a)
	}
	cancel()
	wg.Wait()
	if a := answers[0]; a.Jobs != 30 || a.Events != count(t, c, "docs.*.*") || a.Replica != "a" {
		t.Errorf("answer: %+v", a)
	}
	if d := cmp.Diff(before, list(t, c, api.JobsRequest{})); d != "" {
		t.Errorf("the rebuilt views differ:\n%s", d)
	}
	files := must(filepath.Glob(filepath.Join(dir, "views.*.db*")))
	if files = slices.DeleteFunc(files, func(f string) bool { return !strings.HasSuffix(f, ".db") }); len(files) != 1 {
		t.Errorf("files: %v", files)
	}
	p.whole("later") // and it goes on with the new ones
	finished(t, c, "later")
}

func TestACheckpointBeyondTheStreamIsRefused(t *testing.T) {
	dir := t.TempDir()
	srv := startServer(t)
	c := connect(t, srv, "a")
	stop := serve(t, c, dir)
	for i := range 5 {
		pipeline{t, c}.whole(fmt.Sprintf("lost%d", i))
	}
	for i := range 5 {
		finished(t, c, fmt.Sprintf("lost%d", i))
	}
	stop()

	anew := startServer(t) // with an empty stream
	c = connect(t, anew, "a")
	s, err := status.New(t.Context(), c, status.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	runService(t, s)
	pipeline{t, c}.whole("new")
	var j api.Job
	for {
		err = ask(t, c, api.SubjectJob, api.JobRequest{ID: "lost1"}, &j)
		if s.Ready() != nil && err != nil {
			break
		}
	}
	if !strings.Contains(err.Error(), "leafmill status rebuild") || !strings.Contains(s.Ready().Error(), "leafmill status rebuild") {
		t.Errorf("refused with %v, ready %v", err, s.Ready())
	}
	var a api.RebuildAnswer
	if err := ask(t, c, api.SubjectRebuild, struct{}{}, &a); err != nil {
		t.Fatal(err)
	}
	if j := finished(t, c, "new"); j.Status != "succeeded" {
		t.Errorf("view: %+v", j)
	}
	if _, err := get(t, c, "lost1", 0); code(err) != status.CodeNotFound {
		t.Errorf("a job of the lost stream: %v", err)
	}
	if err := s.Ready(); err != nil {
		t.Error(err)
	}
}

func code(err error) string {
	if re, ok := errors.AsType[*bus.RemoteError](err); ok {
		return re.Code
	}
	return fmt.Sprint(err)
}

func TestWaitingForAJob(t *testing.T) {
	c := connect(t, startServer(t), "a")
	serve(t, c, t.TempDir())
	p := pipeline{t, c}
	pass := p.submit("mill", 1)
	var j api.Job
	if err := ask(t, c, api.SubjectJob, api.JobRequest{ID: "mill", WaitMS: 50}, &j); err != nil || j.Status != "queued" {
		t.Fatalf("when the time is up: %s, %v", j.Status, err)
	}
	const waiters = 300
	answers := make(chan api.Job, waiters)
	var wg sync.WaitGroup
	for range waiters {
		wg.Go(func() {
			j, err := get(t, c, "mill", 30*time.Second)
			if err != nil {
				t.Error(err)
			}
			answers <- j
		})
	}
	p.process("mill", pass, 1, true)
	wg.Wait()
	for range waiters {
		if j := <-answers; j.Status != "succeeded" {
			t.Errorf("a waiter got %s", j.Status)
		}
	}
	if _, err := get(t, c, "nobody", time.Minute); code(err) != status.CodeNotFound {
		t.Errorf("unknown job: %v", err)
	}
}

// The views lack the job because they cannot read the stream: they are refused nothing,
// the stream itself is asked.
func TestAJobThatOnlyTheStreamHasIsQueued(t *testing.T) {
	srv := startServer(t)
	c := connect(t, srv, "a")
	s, err := status.New(t.Context(), c, status.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.CloseForTest() }()
	pipeline{t, c}.say(events.NameSubmittedBulk, "mill", events.Submitted{Text: "x", Name: "mill.txt"})
	j, err := s.JobForTest(t.Context(), "mill")
	if err != nil || j.Status != "queued" || j.Name != "mill.txt" || !j.Bulk {
		t.Errorf("%+v, %v", j, err)
	}
}

func TestPagesFitAReply(t *testing.T) {
	c := connect(t, startServer(t), "a")
	serve(t, c, t.TempDir())
	p := pipeline{t, c}
	metadata := map[string]any{"note": strings.Repeat("x", 12<<10)}
	const jobs = 60 // 720 KB of metadata alone
	for i := range jobs {
		p.say(events.NameSubmitted, fmt.Sprintf("j%d", i), events.Submitted{Text: "x", Metadata: metadata, DocumentID: "one", Collection: "c"})
	}
	finishedQueued(t, c, fmt.Sprintf("j%d", jobs-1))
	all := list(t, c, api.JobsRequest{Limit: 500})
	if len(all) != jobs || all[0].ID != fmt.Sprintf("j%d", jobs-1) || all[jobs-1].ID != "j0" {
		t.Errorf("%d jobs in pages", len(all))
	}
	var found api.FindAnswer
	if err := ask(t, c, api.SubjectFind, api.FindRequest{Collection: "c", DocumentID: "one"}, &found); err != nil || len(found.Jobs) < 20 {
		t.Errorf("find: %d jobs, %v", len(found.Jobs), err)
	}
	for _, r := range []api.JobsRequest{{Limit: 501}, {Limit: -1}, {Cursor: "x"}, {Status: "done"}, {Collection: "a b"}} {
		if err := ask(t, c, api.SubjectJobs, r, new(api.JobsAnswer)); code(err) != "status.invalid" {
			t.Errorf("%+v: %v", r, err)
		}
	}
}

// finishedQueued waits until the views have a job: then it is listed.
func finishedQueued(t *testing.T, c *bus.Conn, job string) {
	t.Helper()
	for {
		var a api.JobsAnswer
		if err := ask(t, c, api.SubjectJobs, api.JobsRequest{Limit: 1}, &a); err != nil {
			t.Fatal(err)
		}
		if len(a.Jobs) == 1 && a.Jobs[0].ID == job {
			return
		}
	}
}
