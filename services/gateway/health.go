package gateway

import (
	"context"
	_ "embed"
	"fmt"
	"net/http"
	"reflect"
	"strings"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sys/unix"

	"github.com/leafmill/leafmill/internal/api"
)

//go:embed landing.html
var landing []byte

// Readiness says which of the parts answer.
type Readiness struct {
	Status string           `json:"status" enum:"ready,not_ready"`
	Checks map[string]Check `json:"checks" doc:"By part: bus, status, index, ocr, chunk, embed."`
}

// Check is the state of one part.
type Check struct {
	OK       bool   `json:"ok"`
	Needed   bool   `json:"needed" doc:"Without it the server is not ready; without the others work waits or is degraded."`
	Replicas int    `json:"replicas"`
	Detail   string `json:"detail,omitempty"`
}

func (g *Gateway) healthRoutes() {
	g.plain(&huma.Operation{OperationID: "live", Method: http.MethodGet, Path: "/healthz", Tags: []string{"service"},
		Summary: "Whether the gateway serves", Responses: g.responses(http.StatusOK, "It does", mediaText, &huma.Schema{Type: "string"})},
		func(w http.ResponseWriter, _ *http.Request) error {
			w.Header().Set("Content-Type", mediaText)
			_, _ = fmt.Fprintln(w, "ok") // a peer that is gone needs no answer
			return nil
		})
	schema := g.schema(reflect.TypeFor[Readiness]())
	ready := g.responses(http.StatusOK, "Bus, status and index answer", mediaJSON, schema)
	ready["503"] = &huma.Response{Description: "One of them does not", Content: map[string]*huma.MediaType{mediaJSON: {Schema: schema}}}
	g.plain(&huma.Operation{OperationID: "ready", Method: http.MethodGet, Path: "/readyz", Tags: []string{"service"},
		Summary: "Whether the parts answer", Responses: ready}, g.ready)
	metrics := promhttp.HandlerFor(g.cfg.Registry, promhttp.HandlerOpts{})
	g.plain(&huma.Operation{OperationID: "metrics", Method: http.MethodGet, Path: "/metrics", Tags: []string{"service"},
		Summary: "Prometheus metrics", Responses: g.responses(http.StatusOK, "The metrics", "text/plain", &huma.Schema{Type: "string"})},
		func(w http.ResponseWriter, r *http.Request) error {
			metrics.ServeHTTP(w, r)
			return nil
		})
	g.plain(&huma.Operation{OperationID: "landing", Method: http.MethodGet, Path: "/", Tags: []string{"service"},
		Summary: "What this is, for people", Responses: g.responses(http.StatusOK, "A page", "text/html; charset=utf-8", &huma.Schema{Type: "string"})},
		func(w http.ResponseWriter, _ *http.Request) error {
			w.Header().Set("Content-Type", "text/html; charset=utf-8")
			_, _ = w.Write(landing) // a peer that is gone needs no answer
			return nil
		})
}

func (g *Gateway) ready(w http.ResponseWriter, r *http.Request) error {
	a := Readiness{Status: "ready", Checks: map[string]Check{}}
	services, err := g.fleet.ask(r.Context(), g.bus.Healthy)
	a.Checks["bus"] = Check{OK: err == nil, Needed: true}
	if err != nil {
		g.log.Debug("not ready", "error", err)
		a.Checks["bus"] = Check{Needed: true, Detail: "does not answer"}
	}
	for _, name := range []string{"status", "index", "ocr", "chunk", "embed"} {
		c := Check{Replicas: len(services[name]), Needed: name == "status" || name == "index"}
		switch c.OK = c.Replicas > 0; {
		case !c.OK:
			c.Detail = "nobody answers"
		case name == "embed":
			c.OK, c.Detail = model(services[name])
		case name == "status": // it may be there and have no views to answer from
			if err := g.ask(r.Context(), api.SubjectJobs, api.JobsRequest{Limit: 1}, new(api.JobsAnswer)); err != nil {
				c.OK, c.Detail = false, g.problemOf(err).Detail
			}
		}
		a.Checks[name] = c
	}
	status := http.StatusOK
	for _, c := range a.Checks {
		if c.Needed && !c.OK {
			a.Status, status = "not_ready", http.StatusServiceUnavailable
		}
	}
	return writeJSON(w, status, a)
}

// model reads what the embed replicas say of themselves in their service metadata: model
// names it, and is empty when there is none; ready is "false" when it cannot be used, with
// the reason in detail. Replicas that say nothing are taken to be well.
func model(replicas []replica) (ok bool, detail string) {
	var names, faults []string
	for _, r := range replicas {
		name, said := r.metadata["model"]
		switch {
		case r.metadata["ready"] == "false" || said && name == "":
			faults = append(faults, r.metadata["detail"])
		default:
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		if d := strings.TrimSpace(faults[0]); d != "" {
			return false, d
		}
		return false, "no embedding model: documents are searchable by keyword only"
	}
	return true, names[0]
}

// replica is a running service.
type replica struct {
	name     string // without leafmill-
	metadata map[string]string
}

func (g *Gateway) replicas(ctx context.Context) ([]replica, error) {
	infos, err := g.bus.Replicas(ctx)
	out := make([]replica, 0, len(infos))
	for _, i := range infos {
		out = append(out, replica{strings.TrimPrefix(i.Name, "leafmill-"), i.Metadata})
	}
	return out, err
}

// fleet asks who is there, at most once a second: asking takes a tenth of one.
type fleet struct {
	replicas func(context.Context) ([]replica, error)
	mu       sync.Mutex
	asked    time.Time
	last     map[string][]replica
}

func newFleet(replicas func(context.Context) ([]replica, error)) *fleet {
	return &fleet{replicas: replicas}
}

func (f *fleet) ask(ctx context.Context, healthy func() error) (map[string][]replica, error) {
	if err := healthy(); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if time.Since(f.asked) < time.Second {
		return f.last, nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
	defer cancel()
	infos, err := f.replicas(ctx)
	if err != nil {
		return nil, err
	}
	f.asked, f.last = time.Now(), map[string][]replica{}
	for _, i := range infos {
		f.last[i.name] = append(f.last[i.name], i)
	}
	return f.last, nil
}

// room knows whether the stream and the disk can take more, asking at most once a second.
type room struct {
	fill    func(context.Context) (float64, error)
	dir     string
	minFree uint64

	mu    sync.Mutex
	asked time.Time
	full  float64
	free  uint64
}

func newRoom(fill func(context.Context) (float64, error), dir string, minFree uint64) *room {
	return &room{fill: fill, dir: dir, minFree: minFree}
}

// check returns the refusal when an upload of size bytes (-1: unknown) must not begin.
func (m *room) check(ctx context.Context, size int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if time.Since(m.asked) >= time.Second {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
		defer cancel()
		f, err := m.fill(ctx)
		if err != nil {
			return err
		}
		m.full = f
		if m.dir != "" {
			var st unix.Statfs_t
			if err := unix.Statfs(m.dir, &st); err != nil {
				return fmt.Errorf("gateway: free room of %s: %w", m.dir, err)
			}
			m.free = st.Bavail * uint64(st.Bsize)
		}
		m.asked = time.Now()
	}
	if m.full >= fullAt || m.dir != "" && m.free < m.minFree+uint64(max(size, 0)) {
		return full()
	}
	return nil
}

func full() *problemDetails {
	return refuse(http.StatusInsufficientStorage, codeFull,
		"There is no room for more documents: delete some, or give the server more (LEAFMILL_STREAM_MAX_BYTES, disk).").after(60)
}
