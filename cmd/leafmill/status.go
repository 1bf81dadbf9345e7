package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/leafmill/leafmill/internal/api"
	"github.com/leafmill/leafmill/internal/bus"
	"github.com/leafmill/leafmill/internal/client"
	"github.com/leafmill/leafmill/internal/config"
)

func (a *app) statusCommand() *cobra.Command {
	c := &cobra.Command{Use: "status", Short: "Care for the job views", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	var asJSON bool
	var patience time.Duration
	var flags *config.Flags
	rebuild := &cobra.Command{
		Use:   "rebuild",
		Short: "Make the job views anew from the event stream",
		Long: `Asks every status service to read the whole event stream into a new file of job views, and to
swap it in. Meanwhile it answers from the old one.`,
		Example: `  leafmill status rebuild
  leafmill status rebuild --nats nats://nats.internal:4222 --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := a.load(flags)
			if err != nil {
				return err
			}
			answers, err := rebuild(cmd.Context(), natsURL(l.NATS), patience)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(a.out, struct {
					Replicas []api.RebuildAnswer `json:"replicas"`
				}{answers})
			}
			t := newTable(a.out, "REPLICA", "EVENTS", "JOBS", "TOOK")
			for _, r := range answers {
				t.row(r.Replica, fmt.Sprint(r.Events), fmt.Sprint(r.Jobs), fmt.Sprintf("%.1fs", r.Seconds))
			}
			return t.end()
		},
	}
	rebuild.Flags().BoolVar(&asJSON, "json", false, "print the answers as JSON")
	rebuild.Flags().DurationVar(&patience, "timeout", time.Hour, "how long to wait for the answers")
	flags = config.AddFlags(rebuild.Flags(), "nats")
	c.AddCommand(rebuild)
	return c
}

// connectPatience is how long a command tries to reach the NATS server; services try for ever.
const connectPatience = 3 * time.Second

// dial connects a command to the bus, or says that nobody is there.
func dial(ctx context.Context, url string) (*bus.Conn, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, connectPatience, client.ErrUnreachable)
	defer cancel()
	conn, err := bus.Connect(ctx, bus.Options{URL: url, Service: "cli", Instance: "cli"})
	if err != nil && ctx.Err() != nil {
		return nil, exitError{exitUnreachable, fmt.Errorf("the NATS server at %s does not answer; is Leafmill running? say where it is with --nats", url)}
	}
	return conn, err
}

// rebuild asks all status services and collects their answers.
func rebuild(ctx context.Context, url string, patience time.Duration) ([]api.RebuildAnswer, error) {
	conn, err := dial(ctx, url)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	names, err := conn.ServiceNames(ctx)
	if err != nil {
		return nil, err
	}
	if names["status"] == 0 {
		return nil, exitError{exitUnreachable, fmt.Errorf("no status service answers at %s; start one with `leafmill run status` or `leafmill up`", url)}
	}
	ctx, enough := context.WithTimeout(ctx, patience)
	defer enough()
	var answers []api.RebuildAnswer
	var problems []error
	err = conn.Gather(ctx, api.SubjectRebuild, struct{}{}, patience, func(data []byte, err error) {
		var r api.RebuildAnswer
		if err == nil {
			err = json.Unmarshal(data, &r)
		}
		if err != nil {
			problems = append(problems, err)
		} else {
			answers = append(answers, r)
		}
		if len(answers)+len(problems) == names["status"] {
			enough()
		}
	})
	if len(problems) > 0 {
		return nil, exitError{exitFailed, errors.Join(problems...)}
	}
	if len(answers) < names["status"] {
		if err != nil && !errors.Is(err, context.DeadlineExceeded) {
			return nil, err
		}
		return nil, failed("%d of %d status services did not answer within %s", names["status"]-len(answers), names["status"], patience)
	}
	return answers, nil
}

// natsURL makes a URL of what --nats says, which may be only an address.
func natsURL(s string) string {
	urls := strings.Split(s, ",")
	for i, u := range urls {
		if u = strings.TrimSpace(u); !strings.Contains(u, "://") {
			u = "nats://" + u
		}
		urls[i] = u
	}
	return strings.Join(urls, ",")
}
