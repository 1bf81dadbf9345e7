package main

import (
	"context"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/leafmill/leafmill/internal/config"
)

func (a *app) runCommand() *cobra.Command {
	var flags *config.Flags
	c := &cobra.Command{
		Use:   "run SERVICE...",
		Short: "Run some services against a NATS server",
		Long: `Runs the named services (` + strings.Join(roleNames(), ", ") + `) against a NATS server
with JetStream. They may start in any order; of ocr, chunk, embed and status any number may run.
Only gateway listens; with --http the others serve /healthz, /readyz and /metrics.`,
		Example: `  leafmill run ocr chunk --nats nats://10.0.0.5:4222
  leafmill run gateway --nats nats://10.0.0.5:4222 --http 127.0.0.1:8080`,
		ValidArgs: roleNames(),
		Args:      cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			chosen, err := chooseRoles(args)
			if err != nil {
				return err
			}
			l, err := a.load(flags)
			if err != nil {
				return err
			}
			return a.run(cmd.Context(), l, chosen)
		},
	}
	flags = config.AddAllFlags(c.Flags(), "nats", "data", "http", "insecure", "grace", "log-level", "log-format")
	return c
}

// chooseRoles finds roles by name, each once.
func chooseRoles(names []string) ([]role, error) {
	var chosen []role
	for _, name := range names {
		i := slices.IndexFunc(roles(), func(r role) bool { return r.name == name })
		if i < 0 {
			return nil, usage("there is no service %q; there are %s", name, strings.Join(roleNames(), ", "))
		}
		if !slices.ContainsFunc(chosen, func(r role) bool { return r.name == name }) {
			chosen = append(chosen, roles()[i])
		}
	}
	return chosen, nil
}

func (a *app) run(ctx context.Context, l *config.Loaded, chosen []role) error {
	log, err := a.logger(l)
	if err != nil {
		return exitError{exitUsage, err}
	}
	n := newNode(l, a.version, log)
	n.url = natsURL(l.NATS)
	gateway := slices.ContainsFunc(chosen, func(r role) bool { return r.name == "gateway" })
	if gateway {
		if err := l.CheckListen(l.HTTP, ""); err != nil {
			return exitError{exitUsage, err}
		}
	}
	if !gateway && !l.Given("http") {
		return n.serve(ctx, chosen)
	}
	ln, err := listen(ctx, l.HTTP)
	if err != nil {
		return err
	}
	defer func() { _ = ln.Close() }() // whoever serves on it closes it first
	log.Info("listening", "http", ln.Addr().String())
	if gateway {
		n.http = ln
		return n.serve(ctx, chosen)
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return n.serve(gctx, chosen) })
	g.Go(func() error { return n.serveHealth(gctx, ln) })
	return g.Wait()
}
