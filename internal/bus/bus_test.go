package bus_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/leafmill/leafmill/events"
	"github.com/leafmill/leafmill/internal/bus"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		goleak.IgnoreTopFunction("github.com/nats-io/nats-server/v2/server.(*Server).startGWReconnect"),
		goleak.IgnoreAnyFunction("github.com/nats-io/nats-server/v2/server.init.1.func1"))
}

func startServer(t testing.TB) *bus.Server {
	t.Helper()
	srv, err := bus.StartServer(bus.ServerConfig{Dir: t.TempDir(), Addr: "127.0.0.1:0", SyncInterval: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(srv.Stop)
	return srv
}

func connect(t testing.TB, srv *bus.Server, service string) *bus.Conn {
	t.Helper()
	c, err := bus.Connect(t.Context(), bus.Options{Server: srv, Service: service, Instance: "test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func layout(t testing.TB, c *bus.Conn) {
	t.Helper()
	if err := c.Ensure(t.Context(), bus.Layout{MaxBytes: 64 << 20, AckWait: 2 * time.Second}); err != nil {
		t.Fatal(err)
	}
}

// run starts consumers and returns a function that stops them and waits.
func run(t testing.TB, c *bus.Conn, consumers ...bus.Consumer) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() {
		done <- c.Run(ctx, bus.RunConfig{AckWait: 2 * time.Second, Grace: 3 * time.Second}, consumers...)
	}()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("Run: %v", err)
			}
		})
	}
	t.Cleanup(stop)
	return stop
}

// wait reads the stream until an event of the job and name comes.
func wait(t testing.TB, c *bus.Conn, job string, name events.Name) events.Message {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	r, err := c.Read(ctx, 1, name.Subject(job))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	batch, err := r.Next(ctx, 1)
	if err != nil {
		t.Fatalf("no %s of %s: %v", name, job, err)
	}
	if batch[0].Err != nil {
		t.Fatal(batch[0].Err)
	}
	return batch[0].Message
}

func submit(t testing.TB, c *bus.Conn, job, text string) uint64 {
	t.Helper()
	seq, err := c.Publish(t.Context(), events.NameSubmitted, job, events.Submitted{Text: text}, bus.PublishOptions{MsgID: job})
	if err != nil {
		t.Fatal(err)
	}
	return seq
}

func continued(d *bus.Delivery, unit int) events.Continued {
	p := d.Pass
	p.Units = 10
	return events.Continued{Pass: p, Unit: unit, Source: events.Source{Bucket: "artifacts", Object: "x"}}
}

func count(t testing.TB, c *bus.Conn, subjects ...string) (n int) {
	t.Helper()
	if err := c.Story(t.Context(), func(bus.Read) error { n++; return nil }, subjects...); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestTransientErrorsAreRetriedThenNakked(t *testing.T) {
	c := connect(t, startServer(t), "ocr")
	layout(t, c)
	var calls atomic.Int32
	run(t, c, bus.Consumer{Durable: "ocr", Handle: func(ctx context.Context, d *bus.Delivery) error {
		if calls.Add(1) <= 5 { // four tries in process, one after the nak
			return events.Fail(events.Network, "The wire is cut.")
		}
		return d.Emit(ctx, events.NameContinued, "1-1", continued(d, 1))
	}})
	submit(t, c, "flaky", "hello")
	wait(t, c, "flaky", events.NameContinued)
	if got := calls.Load(); got != 6 {
		t.Errorf("%d calls, want 6", got)
	}
	naks, inProcess := 0, 0
	err := c.Story(t.Context(), func(r bus.Read) error {
		b := r.Body.(*events.Retried)
		if b.Code != "ocr.network" || b.Run != 1 || b.Cause.Sequence != 1 {
			t.Errorf("retried says %+v", b)
		}
		if b.Nak {
			naks++
		} else {
			inProcess++
		}
		return nil
	}, events.NameRetried.Subject("flaky"))
	if err != nil {
		t.Fatal(err)
	}
	if naks != 1 || inProcess != 4 {
		t.Errorf("%d naks and %d retries in process, want 1 and 4", naks, inProcess)
	}
}

func TestPermanentErrorsArePoisonedAtOnce(t *testing.T) {
	c := connect(t, startServer(t), "ocr")
	layout(t, c)
	var calls atomic.Int32
	run(t, c, bus.Consumer{Durable: "ocr", Handle: func(context.Context, *bus.Delivery) error {
		calls.Add(1)
		return fmt.Errorf("page 1: %w", events.Fail(events.Encrypted, "The PDF needs a password."))
	}})
	seq := submit(t, c, "locked", "hello")
	p := wait(t, c, "locked", events.NamePoisoned).Body.(*events.Poisoned)
	if p.Code != "ocr.encrypted" || p.Message != "The PDF needs a password." || p.First != 1 || p.Last != 0 ||
		p.Run != seq || p.DocumentID != "locked" || p.Cause.Subject != "docs.submitted.locked" {
		t.Errorf("poisoned says %+v", p)
	}
	var original events.Submitted
	if err := json.Unmarshal(p.Original, &original); err != nil || original.Text != "hello" {
		t.Errorf("original is %s (%v)", p.Original, err)
	}
	if calls.Load() != 1 || count(t, c, events.NameRetried.Subject("locked")) != 0 {
		t.Error("a permanent error was tried again")
	}
}

func TestMalformedEventsArePoisonedUnhandled(t *testing.T) {
	c := connect(t, startServer(t), "ocr")
	layout(t, c)
	run(t, c, bus.Consumer{Durable: "ocr", Handle: func(context.Context, *bus.Delivery) error {
		t.Error("the handler saw a malformed event")
		return nil
	}})
	for job, data := range map[string]string{"bad-json": "{", "bad-type": `{"text":7}`, "nothing": `{}`, "null": `null`, "list": `[]`,
		"two": `{"text":"a","object":"b"}`, "bad-document": `{"text":"a","document_id":"../x"}`} {
		if _, err := c.JetStream().Publish(t.Context(), "docs.submitted."+job, []byte(data)); err != nil {
			t.Fatal(err)
		}
		p := wait(t, c, job, events.NamePoisoned).Body.(*events.Poisoned)
		if p.Code != "ocr.invalid" || p.First != 1 || string(p.Original) != data {
			t.Errorf("%s: poisoned says %+v", job, p)
		}
	}
}

func TestRedeliveryEmitsOnce(t *testing.T) {
	c := connect(t, startServer(t), "ocr")
	layout(t, c)
	var calls atomic.Int32
	run(t, c, bus.Consumer{Durable: "ocr", Handle: func(ctx context.Context, d *bus.Delivery) error {
		if err := d.Emit(ctx, events.NameContinued, "1-1", continued(d, 1)); err != nil {
			return err
		}
		if calls.Add(1) < 3 {
			return events.Fail(events.Network, "Half-way.")
		}
		return d.Emit(ctx, events.NameContinued, "2-2", continued(d, 2))
	}})
	submit(t, c, "twice", "x")
	wait(t, c, "twice", events.NameContinued)
	r, err := c.Read(t.Context(), 1, events.NameContinued.Subject("twice"))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for got := 0; got < 2; {
		b, err := r.Next(t.Context(), 2)
		if err != nil {
			t.Fatal(err)
		}
		got += len(b)
	}
	if n := count(t, c, events.NameContinued.Subject("twice")); n != 2 {
		t.Errorf("%d continued events, want 2", n)
	}
}

func TestEmitAfterTellsAConflict(t *testing.T) {
	c := connect(t, startServer(t), "ocr")
	layout(t, c)
	result := make(chan error, 2)
	run(t, c, bus.Consumer{Durable: "ocr", Handle: func(ctx context.Context, d *bus.Delivery) error {
		result <- d.EmitAfter(ctx, events.NameContinued, "1-1", continued(d, 1), 0)
		result <- d.EmitAfter(ctx, events.NameContinued, "2-2", continued(d, 2), 0)
		return nil
	}})
	submit(t, c, "chain", "x")
	if err := <-result; err != nil {
		t.Fatal(err)
	}
	if err := <-result; !errors.Is(err, bus.ErrConflict) {
		t.Fatalf("second event of a chain: %v, want a conflict", err)
	}
}

func TestPanicIsRetriedNotFatal(t *testing.T) {
	c := connect(t, startServer(t), "ocr")
	layout(t, c)
	var calls atomic.Int32
	run(t, c, bus.Consumer{Durable: "ocr", Handle: func(ctx context.Context, d *bus.Delivery) error {
		if calls.Add(1) == 1 {
			panic("a bug")
		}
		return d.Emit(ctx, events.NameContinued, "1-1", continued(d, 1))
	}})
	submit(t, c, "panics", "x")
	wait(t, c, "panics", events.NameContinued)
}

func TestShutdownPoisonsNothing(t *testing.T) {
	srv := startServer(t)
	c := connect(t, srv, "ocr")
	layout(t, c)
	started := make(chan struct{})
	stop := run(t, c, bus.Consumer{Durable: "ocr", Handle: func(ctx context.Context, d *bus.Delivery) error {
		close(started)
		<-ctx.Done() // a handler that needs longer than the grace period
		return ctx.Err()
	}})
	submit(t, c, "long", "x")
	<-started
	stop()
	if n := count(t, c, events.NamePoisoned.All()); n != 0 {
		t.Fatalf("%d messages were poisoned by a shutdown", n)
	}
	second := connect(t, srv, "ocr")
	run(t, second, bus.Consumer{Durable: "ocr", Handle: func(ctx context.Context, d *bus.Delivery) error {
		if d.Delivered < 2 {
			t.Errorf("delivery %d after a nak", d.Delivered)
		}
		return d.Emit(ctx, events.NameContinued, "1-1", continued(d, 1))
	}})
	wait(t, c, "long", events.NameContinued)
}

func TestLongHandlersAreHeartbeated(t *testing.T) {
	c := connect(t, startServer(t), "ocr")
	layout(t, c) // AckWait 2 s
	var calls atomic.Int32
	run(t, c, bus.Consumer{Durable: "ocr", Workers: 2, Handle: func(ctx context.Context, d *bus.Delivery) error {
		if calls.Add(1) > 1 {
			return nil
		}
		timer := time.NewTimer(3 * time.Second) // the work itself: longer than AckWait
		defer timer.Stop()
		<-timer.C
		return d.Emit(ctx, events.NameContinued, "1-1", continued(d, 1))
	}})
	submit(t, c, "slow", "x")
	wait(t, c, "slow", events.NameContinued)
	if calls.Load() != 1 {
		t.Errorf("the message was handled %d times", calls.Load())
	}
}

func TestLayoutRefusesForeignConsumer(t *testing.T) {
	c := connect(t, startServer(t), "ocr")
	layout(t, c)
	layout(t, c) // again is fine
	s, _ := events.StageOf("chunk")
	if err := c.JetStream().DeleteConsumer(t.Context(), events.StreamDocs, s.Durable); err != nil {
		t.Fatal(err)
	}
	if err := bus.MakeForeignConsumer(t.Context(), c, s.Durable); err != nil {
		t.Fatal(err)
	}
	err := c.Ensure(t.Context(), bus.Layout{})
	if err == nil || !strings.Contains(err.Error(), "consumer chunk") || !strings.Contains(err.Error(), "filter subjects") {
		t.Fatalf("Ensure with another filter: %v", err)
	}
}

func TestServiceAnswersAndTellsProblems(t *testing.T) {
	c := connect(t, startServer(t), "index")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- c.Serve(ctx, bus.ServiceInfo{Name: "index", Version: "1.2.3", Workers: map[string]int{"index": 4},
			Endpoints: []bus.Endpoint{{Subject: "leafmill.test", Handle: func(_ context.Context, req []byte) (any, error) {
				if string(req) != `"ok"` {
					return nil, events.Fail(events.Invalid, "Say ok.")
				}
				return map[string]int{"n": 7}, nil
			}}}})
	}()
	var answer struct{ N int }
	for {
		err := c.Request(t.Context(), "leafmill.test", "ok", &answer)
		if errors.Is(err, bus.ErrNoService) {
			continue // not registered yet
		}
		if err != nil {
			t.Fatal(err)
		}
		break
	}
	if answer.N != 7 {
		t.Errorf("answer %+v", answer)
	}
	err := c.Request(t.Context(), "leafmill.test", "no", &answer)
	if re, ok := errors.AsType[*bus.RemoteError](err); !ok || re.Code != "index.invalid" || re.Message != "Say ok." {
		t.Errorf("problem came back as %v", err)
	}
	names, err := c.ServiceNames(t.Context())
	if err != nil || names["index"] != 1 {
		t.Errorf("services %v (%v)", names, err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if err := c.Request(t.Context(), "leafmill.test", "ok", &answer); !errors.Is(err, bus.ErrNoService) {
		t.Errorf("after the end: %v", err)
	}
}

// TestReadersLeaveNothingOnTheServer: the server keeps a bounded number of consumers.
func TestReadersLeaveNothingOnTheServer(t *testing.T) {
	c := connect(t, startServer(t), "gateway")
	layout(t, c)
	submit(t, c, "a", "x")
	for range 20 {
		count(t, c, "docs.*.a")
		count(t, c, "docs.*.nobody")
		r, err := c.Read(t.Context(), 1)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.Next(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
		r.Close()
	}
	s, err := c.JetStream().Stream(t.Context(), events.StreamDocs)
	if err != nil {
		t.Fatal(err)
	}
	if n := s.CachedInfo().State.Consumers; n != len(events.Pipeline) {
		t.Errorf("%d consumers, want the %d durables", n, len(events.Pipeline))
	}
}
