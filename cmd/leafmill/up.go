package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/leafmill/leafmill/internal/bus"
	"github.com/leafmill/leafmill/internal/client"
	"github.com/leafmill/leafmill/internal/config"
	"github.com/leafmill/leafmill/internal/localmodel"
	"github.com/leafmill/leafmill/services/ocr/extract"
)

func (a *app) upCommand() *cobra.Command {
	var flags *config.Flags
	c := &cobra.Command{
		Use:   "up",
		Short: "Run everything on this machine: all services and a NATS server",
		Long: `Runs all services and an embedded NATS server until it is told to stop. The first Ctrl-C or
SIGTERM lets work in hand finish within the grace period, the second ends at once; either way
nothing that was accepted is lost. Every setting that "leafmill config" lists is a flag too.`,
		Example: `  leafmill up
  leafmill up --data /var/lib/leafmill --http 127.0.0.1:0`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := a.load(flags)
			if err != nil {
				return err
			}
			return a.up(cmd.Context(), l)
		},
	}
	flags = config.AddAllFlags(c.Flags(), "data", "http", "nats", "sync", "insecure", "grace", "log-level", "log-format")
	return c
}

// syncInterval is how often writes are forced to disk when not every one is.
const syncInterval = time.Second

func (a *app) up(ctx context.Context, l *config.Loaded) (err error) {
	if err := l.CheckListen(l.HTTP, l.NATS); err != nil {
		return exitError{exitUsage, err}
	}
	log, err := a.logger(l)
	if err != nil {
		return exitError{exitUsage, err}
	}
	folder, err := ownFolder(l.Data)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := folder.close(); err == nil {
			err = cerr
		}
	}()

	n := newNode(l, a.version, log)
	if n.http, err = listen(ctx, l.HTTP); err != nil {
		return err
	}
	defer func() { _ = n.http.Close() }() // the gateway closes it first
	cfg := bus.ServerConfig{Dir: l.Data, Addr: l.NATS, User: l.User, Pass: l.Password, Log: log}
	if l.Sync == config.SyncInterval {
		cfg.SyncInterval = syncInterval
	}
	if n.server, err = bus.StartServer(cfg); err != nil {
		return err
	}
	defer n.server.Stop()
	address := n.server.URL()
	n.url = withUser(address, l.User, l.Password)
	if err := folder.publish(httpFile, n.http.Addr().String()); err != nil {
		return err
	}
	if err := folder.publish(natsFile, address); err != nil {
		return err
	}

	greeting, stopGreeting := context.WithCancel(ctx)
	greeted := make(chan struct{})
	go func() {
		defer close(greeted)
		a.greet(greeting, n, address)
	}()
	err = n.serve(ctx, roles())
	stopGreeting()
	<-greeted
	if err == nil {
		log.Info("stopped")
	}
	return err
}

// readyPatience is how long the greeting waits for all services.
const readyPatience = 30 * time.Second

// greet says where everything is, once it is there.
func (a *app) greet(ctx context.Context, n *node, natsURL string) {
	base := "http://" + reachable(n.http.Addr().String())
	late := false
	wait, cancel := context.WithTimeout(ctx, readyPatience)
	defer cancel()
	cl := client.New(base, "")
	for {
		if _, ready, err := cl.Ready(wait); err == nil && ready && n.playing(len(roles())) {
			break
		}
		select {
		case <-time.After(50 * time.Millisecond):
			continue
		case <-wait.Done():
		}
		if ctx.Err() != nil {
			return
		}
		late = true
		break
	}
	var b strings.Builder
	fmt.Fprintf(&b, "Leafmill %s is up; Ctrl-C stops it.\n", a.version)
	if late {
		fmt.Fprintf(&b, "  not all services are ready yet: %s/readyz tells which\n", base)
	}
	fmt.Fprintf(&b, "  HTTP     %s\n", base)
	fmt.Fprintf(&b, "  NATS     %s\n", natsURL)
	fmt.Fprintf(&b, "  data     %s\n", n.cfg.Data)
	fmt.Fprintf(&b, "  vectors  %s\n", vectors(n.cfg))
	fmt.Fprintf(&b, "  scans    %s\n", scans(ctx, n.cfg))
	server := ""
	if n.cfg.URL != base {
		server = " --server " + base
	}
	fmt.Fprintf(&b, "Next:\n  leafmill ingest FILE...%s\n  leafmill search \"words or a question\"%s\n", server, server)
	_, _ = io.WriteString(a.out, b.String())
}

// vectors says where vectors come from, or that there will be none.
func vectors(l *config.Loaded) string {
	switch l.Embed.Provider {
	case config.ProviderOpenAI:
		u := l.Embed.BaseURL
		if p, err := url.Parse(u); err == nil {
			u = p.Redacted()
		}
		return l.Embed.Model + " at " + u
	case config.ProviderNone:
		return "none; documents are found by keywords"
	}
	if err := localmodel.In(localmodel.Dir(l.ModelDir)).Check(); err != nil {
		return "no local model; documents are found by keywords (see leafmill doctor)"
	}
	return "local model " + localmodel.Name
}

// scans says what reads scanned pages, or that nothing does.
func scans(ctx context.Context, l *config.Loaded) string {
	var missing []string
	what := ""
	for _, t := range extract.Probe(ctx, l.OCR.Languages) {
		if !t.OK {
			missing = append(missing, t.Name)
		}
		if t.Name == "tesseract" {
			what = "tesseract " + t.Version + ", " + l.OCR.Languages
		}
	}
	if len(missing) > 0 {
		return "missing " + strings.Join(missing, ", ") + " (see leafmill doctor)"
	}
	return what
}

// reachable is an address that this machine can call: a server on all addresses is also on
// loopback.
func reachable(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return addr
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, port)
}

// withUser puts a user into a URL.
func withUser(address, user, password string) string {
	u, err := url.Parse(address)
	if err != nil || user == "" {
		return address
	}
	u.User = url.UserPassword(user, password)
	return u.String()
}
