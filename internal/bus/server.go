package bus

import (
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strconv"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// ServerConfig of the embedded NATS server.
type ServerConfig struct {
	Dir  string // the file store's folder
	Addr string // where the nats CLI and other services reach it; 127.0.0.1:0 takes a free port, "" listens nowhere
	// SyncInterval is how often the file store is forced to disk; 0 is after every write,
	// so that an acknowledged event survives a power cut.
	SyncInterval time.Duration
	User, Pass   string // when set, clients must present them
	Log          *slog.Logger
}

// Server is a NATS server in this process, with JetStream on a file store.
type Server struct{ ns *server.Server }

// StartServer starts it and returns when it takes connections.
func StartServer(cfg ServerConfig) (*Server, error) {
	o := &server.Options{
		ServerName: "leafmill", JetStream: true, StoreDir: filepath.Join(cfg.Dir, "nats"),
		JetStreamMaxStore: 1 << 50, // DOCS has its own bound; the disk is watched by the gateway
		NoSigs:            true, DontListen: cfg.Addr == "", MaxPayload: 1 << 20,
		SyncInterval: cfg.SyncInterval, SyncAlways: cfg.SyncInterval == 0,
		Username: cfg.User, Password: cfg.Pass,
	}
	if cfg.Addr != "" {
		host, port, err := net.SplitHostPort(cfg.Addr)
		if err != nil {
			return nil, fmt.Errorf("bus: address %q: %w", cfg.Addr, err)
		}
		o.Host = host
		if o.Port, err = strconv.Atoi(port); err != nil {
			return nil, fmt.Errorf("bus: address %q: %w", cfg.Addr, err)
		}
		if o.Port == 0 {
			o.Port = server.RANDOM_PORT
		}
	}
	ns, err := server.NewServer(o)
	if err != nil {
		return nil, fmt.Errorf("bus: %w", err)
	}
	if cfg.Log != nil {
		ns.SetLoggerV2(natsLog{cfg.Log}, false, false, false)
	}
	ns.Start()
	if !ns.ReadyForConnections(20 * time.Second) {
		ns.Shutdown()
		return nil, fmt.Errorf("bus: the embedded NATS server did not start; is %s in use, or %s not writable?", cfg.Addr, cfg.Dir)
	}
	return &Server{ns}, nil
}

// URL is where clients connect.
func (s *Server) URL() string { return s.ns.ClientURL() }

// Stop shuts the server down and returns when its files are closed.
func (s *Server) Stop() {
	s.ns.Shutdown()
	s.ns.WaitForShutdown()
}

// natsLog passes the server's warnings and errors on.
type natsLog struct{ log *slog.Logger }

func (l natsLog) Noticef(f string, v ...any) { l.log.Debug("nats: " + fmt.Sprintf(f, v...)) }
func (l natsLog) Warnf(f string, v ...any)   { l.log.Warn("nats: " + fmt.Sprintf(f, v...)) }
func (l natsLog) Fatalf(f string, v ...any)  { l.log.Error("nats: " + fmt.Sprintf(f, v...)) }
func (l natsLog) Errorf(f string, v ...any)  { l.log.Error("nats: " + fmt.Sprintf(f, v...)) }
func (l natsLog) Debugf(string, ...any)      {}
func (l natsLog) Tracef(string, ...any)      {}
