// Package gateway is Leafmill's HTTP interface: intake, jobs, live events, artifacts and
// search. It talks to the other services over NATS only.
//
// Guarantees:
//   - 202 is answered only after the stream has stored the submission; any other answer
//     means that nothing of the upload stays behind.
//   - Uploads, downloads and event streams pass through in pieces: no request holds a
//     document in memory, and each kind of long request is bounded in number.
//   - Bad input is refused at the door, with problem+json (RFC 9457) and a stable code;
//     no answer carries what went wrong inside.
//   - A slow or silent peer is cut off: uploads must make progress, readers must read.
//   - An event stream has neither gaps nor repetitions, also across reconnects.
package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/leafmill/leafmill/internal/artifacts"
	"github.com/leafmill/leafmill/internal/bus"
)

// Config of a Gateway. The zero value serves on a free loopback port without keys.
type Config struct {
	// Addr is where Run listens (127.0.0.1:0 when empty), unless there is a Listener.
	Addr     string
	Listener net.Listener
	OnListen func(net.Addr) // told the bound address before the first request

	// Keys that clients must present one of. Without any, only requests that name this
	// machine as their host, and come from no foreign page, are answered.
	Keys []string
	// Insecure allows an address other than loopback without keys.
	Insecure bool
	// Hosts are further names by which this server may be called without keys.
	Hosts []string

	MaxUpload  int64         // bytes of a document (100 MiB when 0)
	MaxUploads int           // uploads at once (32 when 0); more are told to try again
	UploadIdle time.Duration // an upload that stands still this long ends (30 s when 0)
	DataDir    string        // whose disk is watched for room; unwatched when empty
	MinFree    uint64        // bytes that must stay free on it (512 MiB when 0)

	Heartbeat time.Duration // of a silent event stream (15 s when 0)
	Grace     time.Duration // for requests in hand at shutdown (20 s when 0)

	Registry *prometheus.Registry // served at /metrics; one of its own when nil
	Version  string               // of the program, for the API description
	Log      *slog.Logger
}

// Bounds that nobody needs to turn.
const (
	fullAt         = 0.8              // of the stream's MaxBytes: the rest is for work accepted
	maxStreams     = 128              // event streams at once
	maxWaits       = 256              // long polls at once; further ones are answered at once
	maxDownloads   = 16               // artifacts being read at once
	maxJSON        = 16 << 20         // bytes of a JSON submission, which is decoded in memory
	maxJSONTotal   = 64 << 20         // bytes of all JSON submissions in hand
	requestTimeout = 10 * time.Second // of a question to another service
	writeTimeout   = 30 * time.Second // for a peer to take the next piece of an answer
	answerTimeout  = 2 * time.Minute  // for a whole answer that is not streamed
)

// Gateway answers HTTP.
type Gateway struct {
	cfg   Config
	bus   *bus.Conn
	store *artifacts.Store
	log   *slog.Logger

	access  access
	mux     *router
	api     huma.API
	handler http.Handler
	metrics *metrics
	room    *room
	fleet   *fleet

	uploads, streams, waits, downloads slots
	jsonBytes                          *semaphore.Weighted

	draining context.Context // ended when long requests must end
	drain    context.CancelFunc
}

// New makes a gateway on a connection and the buckets.
func New(conn *bus.Conn, store *artifacts.Store, cfg Config) (*Gateway, error) {
	cfg.fill()
	g := &Gateway{cfg: cfg, bus: conn, store: store, log: cfg.Log,
		access:  newAccess(cfg),
		metrics: newMetrics(cfg.Registry),
		room:    newRoom(conn.Fill, cfg.DataDir, cfg.MinFree),
		uploads: make(slots, cfg.MaxUploads), streams: make(slots, maxStreams),
		waits: make(slots, maxWaits), downloads: make(slots, maxDownloads),
		jsonBytes: semaphore.NewWeighted(maxJSONTotal),
	}
	g.fleet = newFleet(g.replicas)
	g.draining, g.drain = context.WithCancel(context.Background())
	g.mux = &router{mux: http.NewServeMux(), fail: g.fail}
	if err := g.routes(); err != nil {
		return nil, fmt.Errorf("gateway: %w", err)
	}
	g.handler = g.recovered(g.measured(secured(g.admitted(g.mux))))
	return g, nil
}

func (c *Config) fill() {
	def(&c.Addr, "127.0.0.1:0")
	def(&c.MaxUpload, 100<<20)
	def(&c.MaxUploads, 32)
	def(&c.UploadIdle, 30*time.Second)
	def(&c.MinFree, 512<<20)
	def(&c.Heartbeat, 15*time.Second)
	def(&c.Grace, 20*time.Second)
	def(&c.Version, "0.0.0")
	if c.Registry == nil {
		c.Registry = prometheus.NewRegistry()
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
}

func def[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// Handler serves the whole interface; Run adds the listener around it.
func (g *Gateway) Handler() http.Handler { return g.handler }

// Run listens and serves until ctx ends, lets requests in hand finish within the grace
// period, and returns. Event streams and long polls end at once; their clients resume.
func (g *Gateway) Run(ctx context.Context) error {
	ln := g.cfg.Listener
	if ln == nil {
		if err := ValidateBind(g.cfg.Addr, g.cfg.Keys, g.cfg.Insecure); err != nil {
			return err
		}
		var err error
		if ln, err = new(net.ListenConfig).Listen(ctx, "tcp", g.cfg.Addr); err != nil {
			return fmt.Errorf("gateway: %w", err)
		}
	} else if err := ValidateBind(ln.Addr().String(), g.cfg.Keys, g.cfg.Insecure); err != nil {
		return err
	}
	if g.cfg.OnListen != nil {
		g.cfg.OnListen(ln.Addr())
	}
	// No WriteTimeout and no ReadTimeout: handlers set the deadlines, because uploads and
	// event streams may last.
	srv := &http.Server{
		Handler: g.handler, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute,
		MaxHeaderBytes: 32 << 10, ErrorLog: slog.NewLogLogger(g.log.Handler(), slog.LevelDebug),
	}
	eg, ectx := errgroup.WithContext(ctx)
	eg.Go(func() error {
		return g.bus.Serve(ectx, bus.ServiceInfo{Name: "gateway", Version: g.cfg.Version, Description: "HTTP interface"})
	})
	eg.Go(func() error {
		if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("gateway: %w", err)
		}
		return nil
	})
	eg.Go(func() error {
		<-ectx.Done()
		g.drain()
		sctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), g.cfg.Grace)
		defer cancel()
		if err := srv.Shutdown(sctx); err != nil {
			g.log.Warn("requests were cut off at shutdown", "error", err)
			return srv.Close()
		}
		return nil
	})
	return eg.Wait()
}

// slots bounds how many of something go on at once.
type slots chan struct{}

func (s slots) take() bool {
	select {
	case s <- struct{}{}:
		return true
	default:
		return false
	}
}

func (s slots) give() { <-s }

// untilDrain is a request's context that also ends when the gateway shuts down.
func (g *Gateway) untilDrain(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(g.draining, cancel)
	return ctx, func() { stop(); cancel() }
}
