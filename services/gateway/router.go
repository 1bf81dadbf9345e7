package gateway

import (
	"net/http"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// router is net/http's mux with problems for what it does not know, and a list of what it
// does, for the test of the API description.
type router struct {
	mux      *http.ServeMux
	patterns []string
	fail     func(http.ResponseWriter, *http.Request, error)
}

func (m *router) HandleFunc(pattern string, h func(http.ResponseWriter, *http.Request)) {
	m.patterns = append(m.patterns, pattern)
	m.mux.HandleFunc(pattern, h)
}

func (m *router) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h, pattern := m.mux.Handler(r)
	if pattern != "" {
		m.mux.ServeHTTP(w, r)
		return
	}
	v := verdict{header: http.Header{}}
	h.ServeHTTP(&v, r)
	if v.status == http.StatusMethodNotAllowed {
		allow := v.header.Get("Allow")
		m.fail(w, r, refuse(v.status, codeMethod, "The path takes %s.", allow).with("Allow", allow))
		return
	}
	m.fail(w, r, refuse(http.StatusNotFound, codeNotFound, "There is nothing at this path; /openapi.json lists what there is."))
}

// verdict listens to what the mux would have answered.
type verdict struct {
	header http.Header
	status int
}

func (v *verdict) Header() http.Header         { return v.header }
func (v *verdict) WriteHeader(status int)      { v.status = status }
func (v *verdict) Write(b []byte) (int, error) { return len(b), nil }

// recovered turns a panic into a problem, or a cut connection when the answer has begun.
func (g *Gateway) recovered(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rec := &recorder{ResponseWriter: w}
		defer func() {
			p := recover()
			if p == nil {
				return
			}
			if p == http.ErrAbortHandler || r.Context().Err() != nil { // the peer is gone, or must notice
				panic(http.ErrAbortHandler)
			}
			g.log.Error("a handler panicked", "path", r.URL.Path, "panic", p, "stack", string(debug.Stack()))
			if rec.status != 0 {
				panic(http.ErrAbortHandler)
			}
			g.fail(rec, r, internal())
		}()
		next.ServeHTTP(rec, r)
	})
}

// secured sets the headers that keep answers from being taken for something else, and a
// deadline for the answer, which handlers that stream renew.
func secured(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
		h.Set("Cache-Control", "no-store")
		rc := http.NewResponseController(w)
		_ = rc.SetWriteDeadline(time.Now().Add(answerTimeout)) // a test's recorder has none
		if r.ContentLength != 0 {                              // the server reads what a handler leaves of a body
			_ = rc.SetReadDeadline(time.Now().Add(answerTimeout))
		}
		next.ServeHTTP(w, r)
	})
}

func (g *Gateway) admitted(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := g.access.check(r); err != nil {
			g.fail(w, r, err)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// recorder remembers the status.
type recorder struct {
	http.ResponseWriter
	status int
}

func (w *recorder) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *recorder) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	return w.ResponseWriter.Write(b)
}

// Unwrap is for http.ResponseController.
func (w *recorder) Unwrap() http.ResponseWriter { return w.ResponseWriter }

type metrics struct {
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
	uploads  prometheus.Gauge
	streams  prometheus.Gauge
	received prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "leafmill_http_requests_total",
			Help: "Requests answered, by route and status."}, []string{"route", "status"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "leafmill_http_request_duration_seconds",
			Help: "Time to answer, by route; event streams and long polls included.", Buckets: prometheus.ExponentialBuckets(.001, 4, 9)}, []string{"route"}),
		uploads: prometheus.NewGauge(prometheus.GaugeOpts{Name: "leafmill_http_uploads", Help: "Uploads in hand."}),
		streams: prometheus.NewGauge(prometheus.GaugeOpts{Name: "leafmill_http_event_streams", Help: "Event streams being read."}),
		received: prometheus.NewCounter(prometheus.CounterOpts{Name: "leafmill_http_upload_bytes_total",
			Help: "Bytes of documents accepted."}),
	}
	reg.MustRegister(m.requests, m.duration, m.uploads, m.streams, m.received)
	return m
}

func (g *Gateway) measured(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		began := time.Now()
		rec := &recorder{ResponseWriter: w}
		defer func() {
			route, status := r.Pattern, rec.status // the mux sets the pattern
			if route == "" {
				route = "none"
			}
			if status == 0 {
				status = 499 // the peer left before an answer
			}
			g.metrics.requests.WithLabelValues(route, strconv.Itoa(status)).Inc()
			g.metrics.duration.WithLabelValues(route).Observe(time.Since(began).Seconds())
			g.log.Debug("request", "method", r.Method, "path", r.URL.Path, "status", status, "took", time.Since(began))
		}()
		next.ServeHTTP(rec, r)
	})
}
