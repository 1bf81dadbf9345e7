package gateway_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"github.com/leafmill/leafmill/events"
	"github.com/leafmill/leafmill/internal/api"
	"github.com/leafmill/leafmill/internal/artifacts"
	"github.com/leafmill/leafmill/internal/bus"
	"github.com/leafmill/leafmill/services/gateway"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		goleak.IgnoreTopFunction("github.com/nats-io/nats-server/v2/server.(*Server).startGWReconnect"),
		goleak.IgnoreAnyFunction("github.com/nats-io/nats-server/v2/server.init.1.func1"),
		// nats.go: an object put that ends before this goroutine has begun leaves it behind.
		goleak.IgnoreTopFunction("github.com/nats-io/nats.go/jetstream.(*jetStream).resetPendingAcksOnReconnect"))
}

// env is a gateway on a real bus.
type env struct {
	t     testing.TB
	srv   *bus.Server
	conn  *bus.Conn
	store *artifacts.Store
	gw    *gateway.Gateway
	http  *httptest.Server
	spec  *spec
}

func newBus(t testing.TB, l bus.Layout) (*bus.Server, *bus.Conn, *artifacts.Store) {
	t.Helper()
	srv, err := bus.StartServer(bus.ServerConfig{Dir: t.TempDir(), Addr: "127.0.0.1:0", SyncInterval: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(srv.Stop)
	conn := connect(t, srv, "gateway")
	if l.MaxBytes == 0 {
		l.MaxBytes = 256 << 20
	}
	if err := conn.Ensure(t.Context(), l); err != nil {
		t.Fatal(err)
	}
	store, err := artifacts.Open(t.Context(), conn.JetStream())
	if err != nil {
		t.Fatal(err)
	}
	return srv, conn, store
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

func newEnv(t testing.TB, cfg gateway.Config) *env { return newEnvOn(t, cfg, bus.Layout{}) }

func newEnvOn(t testing.TB, cfg gateway.Config, l bus.Layout) *env {
	t.Helper()
	srv, conn, store := newBus(t, l)
	gw, err := gateway.New(conn, store, cfg)
	if err != nil {
		t.Fatal(err)
	}
	e := &env{t: t, srv: srv, conn: conn, store: store, gw: gw, http: httptest.NewServer(gw.Handler())}
	t.Cleanup(e.http.Close)
	e.spec = readSpec(t, gw)
	return e
}

// answer is a response, read.
type answer struct {
	status int
	header http.Header
	body   string
}

func (a answer) problem(t testing.TB) (p struct {
	Status              int
	Code, Title, Detail string
	Errors              []struct{ Location, Message string }
	Type                string
}) {
	t.Helper()
	if ct := a.header.Get("Content-Type"); ct != "application/problem+json" {
		t.Fatalf("%d %s, want a problem: %s", a.status, ct, a.body)
	}
	if err := json.Unmarshal([]byte(a.body), &p); err != nil {
		t.Fatalf("%v: %s", err, a.body)
	}
	if p.Status != a.status || p.Title == "" || p.Detail == "" || p.Code == "" || p.Type != "about:blank" {
		t.Errorf("an incomplete problem: %s", a.body)
	}
	if a.status == 429 || a.status == 503 || a.status == 507 {
		if a.header.Get("Retry-After") == "" {
			t.Errorf("%d without Retry-After", a.status)
		}
	}
	return p
}

// do sends a request and checks the answer against the API's description.
func (e *env) do(r *http.Request) answer {
	e.t.Helper()
	res, err := e.http.Client().Do(r)
	if err != nil {
		e.t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		e.t.Fatal(err)
	}
	a := answer{res.StatusCode, res.Header, string(body)}
	e.spec.check(e.t, r, a)
	return a
}

func (e *env) request(method, path, contentType string, body io.Reader) *http.Request {
	e.t.Helper()
	r, err := http.NewRequestWithContext(e.t.Context(), method, e.http.URL+path, body)
	if err != nil {
		e.t.Fatal(err)
	}
	if contentType != "" {
		r.Header.Set("Content-Type", contentType)
	}
	return r
}

func (e *env) get(path string) answer {
	e.t.Helper()
	return e.do(e.request("GET", path, "", nil))
}

func (e *env) post(contentType, body string) answer {
	e.t.Helper()
	return e.do(e.request("POST", "/documents", contentType, strings.NewReader(body)))
}

// serve answers on subjects as another service would.
func (e *env) serve(name string, endpoints map[string]func(req []byte) (any, error)) {
	e.t.Helper()
	conn := connect(e.t, e.srv, name)
	info := bus.ServiceInfo{Name: name}
	for subject, h := range endpoints {
		info.Endpoints = append(info.Endpoints, bus.Endpoint{Subject: subject, Handle: func(_ context.Context, req []byte) (any, error) { return h(req) }})
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(e.t.Context()))
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := conn.Serve(ctx, info); err != nil {
			e.t.Error(err)
		}
	})
	e.t.Cleanup(func() { cancel(); wg.Wait() })
	for {
		names, err := e.conn.ServiceNames(e.t.Context())
		if err != nil {
			e.t.Fatal(err)
		}
		if names[name] > 0 {
			return
		}
	}
}

// status answers for jobs.
func (e *env) serveJobs(jobs ...api.Job) {
	e.t.Helper()
	e.serve("status", map[string]func([]byte) (any, error){
		api.SubjectJob: func(req []byte) (any, error) {
			var r api.JobRequest
			if err := json.Unmarshal(req, &r); err != nil {
				return nil, err
			}
			for _, j := range jobs {
				if j.ID == r.ID {
					return j, nil
				}
			}
			return nil, &bus.RemoteError{Problem: events.Problem{Code: "status.not_found", Stage: "status", Message: "There is no such job."}}
		},
		api.SubjectJobs: func([]byte) (any, error) { return api.JobsAnswer{Jobs: jobs}, nil },
		api.SubjectFind: func(req []byte) (any, error) {
			var r api.FindRequest
			if err := json.Unmarshal(req, &r); err != nil {
				return nil, err
			}
			var a api.FindAnswer
			for _, j := range jobs {
				if j.DocumentID == r.DocumentID && j.Collection == r.Collection {
					a.Jobs = append(a.Jobs, j)
				}
			}
			return a, nil
		},
	})
}

// stored lists the events of a filter.
func (e *env) stored(subject string) (out []bus.Read) {
	e.t.Helper()
	if err := e.conn.Story(e.t.Context(), func(r bus.Read) error { out = append(out, r); return nil }, subject); err != nil {
		e.t.Fatal(err)
	}
	return out
}

// pieces counts the messages that hold content in the bucket originals.
func (e *env) pieces() (n uint64) {
	e.t.Helper()
	s, err := e.conn.JetStream().Stream(e.t.Context(), "OBJ_originals")
	if err != nil {
		e.t.Fatal(err)
	}
	info, err := s.Info(e.t.Context(), jetstream.WithSubjectFilter("$O.originals.C.>"))
	if err != nil {
		e.t.Fatal(err)
	}
	for _, k := range info.State.Subjects {
		n += k
	}
	return n
}

// nothingLeft says that neither an event nor content was stored.
func (e *env) nothingLeft() {
	e.t.Helper()
	if n := len(e.stored("docs.*.*")); n != 0 {
		e.t.Errorf("%d events stored", n)
	}
	if n := e.pieces(); n != 0 {
		e.t.Errorf("%d pieces of content left behind", n)
	}
}

// recorder is for handlers called without a network.
type recorder struct{ *httptest.ResponseRecorder }

func newRecorder() recorder { return recorder{httptest.NewRecorder()} }

func (r recorder) answer() answer { return answer{r.Code, r.Result().Header, r.Body.String()} }

// serverSide makes a client's request one that a handler gets.
func serverSide(r *http.Request) *http.Request {
	r.RequestURI = r.URL.RequestURI()
	r.RemoteAddr = "127.0.0.1:1"
	r.Host = r.URL.Host
	return r
}
