package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/leafmill/leafmill/internal/bus"
	"github.com/leafmill/leafmill/internal/config"
	"github.com/leafmill/leafmill/internal/telemetry"
)

// node is what the roles of this process share.
type node struct {
	cfg     *config.Loaded
	version string // as micro services want it: 1.2.3
	log     *slog.Logger
	reg     *prometheus.Registry
	metrics *bus.Metrics
	server  *bus.Server  // embedded; nil: an external one
	url     string       // of the NATS server, with its user
	http    net.Listener // for the gateway, or for health and metrics; may be nil

	mu     sync.Mutex
	checks map[string]func() error // why a role is not ready, by name
}

func newNode(l *config.Loaded, version string, log *slog.Logger) *node {
	n := &node{cfg: l, version: semver(version), log: log, reg: telemetry.Registry(version), checks: map[string]func() error{}}
	n.metrics = bus.NewMetrics(n.reg)
	return n
}

// stopPatience is how much longer than the grace period a stop may take.
const stopPatience = 15 * time.Second

// errStuck says that a role did not end when it was told to.
var errStuck = errors.New("did not stop in time; what it had in hand goes to another after the ack wait")

// serve runs roles until ctx ends or one of them fails, and returns when all have ended.
func (n *node) serve(ctx context.Context, roles []role) error {
	g, gctx := errgroup.WithContext(ctx)
	for _, r := range roles {
		g.Go(func() error {
			err := n.play(gctx, r)
			switch {
			case gctx.Err() != nil:
				if err != nil && !errors.Is(err, context.Canceled) {
					n.log.Warn("did not end well", "role", r.name, "error", err)
				}
				return nil
			case err == nil:
				err = errors.New("ended by itself")
			}
			return fmt.Errorf("%s: %w", r.name, err)
		})
	}
	ended := make(chan error, 1)
	go func() { ended <- g.Wait() }()
	select {
	case err := <-ended:
		return err
	case <-gctx.Done():
	}
	timeout := time.NewTimer(n.cfg.Grace + stopPatience)
	defer timeout.Stop()
	select {
	case err := <-ended:
		return err
	case <-timeout.C:
		return errStuck
	}
}

// play runs one role on a connection of its own.
func (n *node) play(ctx context.Context, r role) error {
	log := n.log.With("service", r.name)
	conn, err := bus.Connect(ctx, bus.Options{URL: n.url, Server: n.server, Service: r.name, Instance: n.instance(), Log: log})
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := n.ensure(ctx, conn); err != nil {
		return err
	}
	n.readiness(r.name, conn.Healthy)
	log.Debug("begins")
	return r.run(ctx, n, conn)
}

// ensure makes streams and durables, and tries again while the server cannot do that yet.
func (n *node) ensure(ctx context.Context, conn *bus.Conn) error {
	layout := bus.Layout{MaxBytes: n.cfg.StreamMaxBytes, Replicas: n.cfg.StreamReplicas, AckWait: n.cfg.AckWait}
	if n.server == nil && !n.cfg.Given("stream-max-bytes") {
		layout.MaxBytes = 0 // a service that joins does not change what is there
	}
	var err error
	for range 5 {
		if err = conn.Ensure(ctx, layout); err == nil || ctx.Err() != nil {
			return err
		}
		n.log.Warn("the streams are not ready", "error", err)
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return err
}

// runConfig bounds the consumers of every stage.
func (n *node) runConfig() bus.RunConfig {
	return bus.RunConfig{AckWait: n.cfg.AckWait, Grace: n.cfg.Grace, MaxAge: n.cfg.MaxAge, Metrics: n.metrics}
}

// instance is the replica's name, one for all roles of a process.
func (n *node) instance() string {
	if n.cfg.Instance != "" {
		return n.cfg.Instance
	}
	host, err := os.Hostname()
	if err != nil {
		host = "localhost"
	}
	return fmt.Sprintf("%s-%d", host, os.Getpid())
}

// health is the HTTP interface of a process without a gateway: probes and metrics, nothing
// of a document.
func (n *node) health() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := n.ready(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		_, _ = fmt.Fprintln(w, "ok")
	})
	mux.Handle("GET /metrics", telemetry.Metrics(n.reg))
	return mux
}

// readiness makes a role's own word count for /readyz of a process without a gateway.
func (n *node) readiness(role string, check func() error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.checks[role] = check
}

// playing says whether so many roles have begun and are ready.
func (n *node) playing(roles int) bool {
	n.mu.Lock()
	all := len(n.checks) == roles
	n.mu.Unlock()
	return all && n.ready() == nil
}

func (n *node) ready() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.checks) == 0 {
		return errors.New("starting")
	}
	for name, check := range n.checks {
		if err := check(); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// serveHealth serves health until ctx ends.
func (n *node) serveHealth(ctx context.Context, ln net.Listener) error {
	srv := &http.Server{Handler: n.health(), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second,
		WriteTimeout: 30 * time.Second, ErrorLog: slog.NewLogLogger(n.log.Handler(), slog.LevelDebug)}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func listen(ctx context.Context, addr string) (net.Listener, error) {
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("--http %s: %w; is another leafmill running? port 0 takes a free one", addr, err)
	}
	return ln, nil
}

var semverPattern = regexp.MustCompile(`^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?$`)

// semver is a version as NATS micro services want it.
func semver(v string) string {
	if v = strings.TrimPrefix(v, "v"); semverPattern.MatchString(v) {
		return v
	}
	return "0.0.0"
}

// diskOfStream is the folder whose disk fills with the stream: known only when the server
// is in this process.
func (n *node) diskOfStream() string {
	if n.server == nil {
		return ""
	}
	return n.cfg.Data
}
