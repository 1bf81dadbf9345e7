package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/leafmill/leafmill/events"
	"github.com/leafmill/leafmill/internal/api"
	"github.com/leafmill/leafmill/internal/client"
	"github.com/leafmill/leafmill/internal/config"
)

func (a *app) jobsCommand() *cobra.Command {
	var r api.JobsRequest
	var asJSON bool
	var flags *config.Flags
	c := &cobra.Command{
		Use:   "jobs",
		Short: "List documents on their way and those that have arrived, newest first",
		Example: `  leafmill jobs
  leafmill jobs --status failed --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := a.client(flags)
			if err != nil {
				return err
			}
			if r.Limit < 1 {
				return usage("--limit is at least 1")
			}
			all := api.JobsAnswer{Jobs: []api.Job{}}
			for limit := r.Limit; limit > 0; {
				r.Limit = min(limit, 500)
				page, err := cl.Jobs(cmd.Context(), r)
				if err != nil {
					return err
				}
				all.Jobs, all.Next = append(all.Jobs, page.Jobs...), page.Next
				limit -= len(page.Jobs)
				if r.Cursor = page.Next; page.Next == "" || len(page.Jobs) == 0 {
					break
				}
			}
			if asJSON {
				return printJSON(a.out, all)
			}
			return a.printJobs(all)
		},
	}
	f := c.Flags()
	f.StringVar(&r.Status, "status", "", "only jobs that are queued, running, succeeded, succeeded_with_warnings, failed or cancelled")
	f.StringVar(&r.Collection, "collection", "", "only this collection")
	f.IntVar(&r.Limit, "limit", 50, "how many")
	f.BoolVar(&asJSON, "json", false, "print job views as JSON")
	flags = config.AddFlags(f, "url")
	return c
}

func (a *app) printJobs(all api.JobsAnswer) error {
	t := newTable(a.out, "JOB", "NAME", "STATUS", "DONE", "PAGES", "CHUNKS", "MODE", "TOOK", "AGE")
	now := time.Now()
	for _, j := range all.Jobs {
		t.row(j.ID, or(j.Name), j.Status, fmt.Sprintf("%d%%", j.Progress), pages(j), fmt.Sprint(j.Artifacts.Chunks), mode(j), took(j), age(j.CreatedAt, now))
	}
	if err := t.end(); err != nil {
		return err
	}
	if all.Next != "" {
		_, err := fmt.Fprintln(a.out, "There are more; say --limit.")
		return err
	}
	return nil
}

func (a *app) jobCommand() *cobra.Command {
	var wait, story, asJSON bool
	var flags *config.Flags
	c := &cobra.Command{
		Use:   "job ID",
		Short: "Show everything about one job, or its story event by event",
		Example: `  leafmill job 01J9ZK3V --wait
  leafmill job 01J9ZK3V --events`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := a.client(flags)
			if err != nil {
				return err
			}
			ctx := cmd.Context()
			var j api.Job
			if wait && !story {
				j, err = cl.Await(ctx, args[0])
			} else {
				j, err = cl.Job(ctx, args[0], 0)
			}
			if err != nil {
				return err
			}
			if story {
				return a.printStory(ctx, cl, j, wait, asJSON)
			}
			if asJSON {
				err = printJSON(a.out, j)
			} else {
				err = a.printJob(j)
			}
			if err == nil && wait && (j.Status == events.StatusFailed || j.Status == events.StatusCancelled) {
				return exitError{exitFailed, errors.New("")}
			}
			return err
		},
	}
	f := c.Flags()
	f.BoolVar(&wait, "wait", false, "wait until the job has ended; the exit code is 1 when it failed")
	f.BoolVar(&story, "events", false, "print what happened, an event a line; with --wait until the job has ended")
	f.BoolVar(&asJSON, "json", false, "print the job view as JSON, or each event as a line of it")
	flags = config.AddFlags(f, "url")
	return c
}

func (a *app) printJob(j api.Job) error {
	t := newTable(a.out)
	line := func(k, v string) {
		if v != "" {
			t.row(k, v)
		}
	}
	line("job", j.ID)
	line("document", j.Collection+"/"+j.DocumentID)
	line("name", j.Name)
	line("type", strings.TrimSpace(fmt.Sprintf("%s  %d bytes", j.MediaType, j.Size)))
	line("status", j.Status+fmt.Sprintf(", %d%%", j.Progress))
	if !j.Terminal() {
		line("stage", j.Stage)
	}
	if j.Waiting != nil {
		until := ""
		if j.Waiting.Until != nil {
			until = " until " + j.Waiting.Until.Local().Format(time.TimeOnly)
		}
		line("waits", j.Waiting.Reason+until)
	}
	line("units", fmt.Sprintf("%d of %d searchable, %d failed", j.Units.Indexed, j.Units.Total, j.Units.Failed))
	line("pages", pages(j))
	line("chunks", fmt.Sprintf("%d, %d with a vector", j.Artifacts.Chunks, j.Artifacts.EmbeddingsDone))
	line("mode", mode(j))
	line("stages", strings.Join(j.CompletedStages, ", "))
	for _, stage := range []string{"ocr", "chunk", "embed", "index"} {
		if s, ok := j.Timings[stage]; ok {
			line("  "+stage, fmt.Sprintf("%.2fs", s.Seconds))
		}
	}
	for of, u := range j.Usage {
		line("usage", fmt.Sprintf("%s: %d calls, %d tokens, %d ms", of, u.Calls, u.Tokens, u.LatencyMS))
	}
	line("retries", fmt.Sprint(j.RetriesUsed))
	line("created", j.CreatedAt.Local().Format(time.DateTime))
	line("took", took(j))
	if j.Error != nil {
		line("error", j.Error.Message+" ("+j.Error.Code+")")
	}
	for _, w := range j.Warnings {
		text := w.Message + " (" + w.Code + ")"
		if len(w.Units) > 0 {
			text += " units " + strings.Join(w.Units, ", ")
		}
		if w.ResolvedAt != nil {
			text += ", resolved"
		}
		line("warning", text)
	}
	line("text", j.Artifacts.TextPreview)
	return t.end()
}

// historyQuiet is how long the server may be silent before its history counts as told: it
// goes on with what is new, without a sign between.
const historyQuiet = time.Second

// printStory prints a job's events: those there are, or with follow until the job has ended.
func (a *app) printStory(ctx context.Context, cl *client.Client, j api.Job, follow, asJSON bool) error {
	follow = follow && !j.Terminal()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	told := errors.New("the history is told")
	quiet := time.AfterFunc(historyQuiet, func() {
		if !follow {
			cancel(told)
		}
	})
	defer quiet.Stop()
	encode := json.NewEncoder(a.out)
	err := cl.Events(ctx, j.ID, 0, func(e api.StreamEvent) (bool, error) {
		quiet.Reset(historyQuiet)
		last := follow && e.Event == events.NameCompleted && e.Sequence > j.Run
		if asJSON {
			return last, encode.Encode(e)
		}
		_, err := fmt.Fprintf(a.out, "%7d  %s  %-14s %s\n", e.Sequence, e.Time.Local().Format("15:04:05.000"), clean(string(e.Event)), clean(gist(e.Data)))
		return last, err
	})
	if errors.Is(context.Cause(ctx), told) {
		return nil
	}
	return err
}

// gist is what an event's body says in a few words, of the fields that bodies share.
func gist(data json.RawMessage) string {
	var b struct {
		Segment, Name, Status, Reason, Message, Code, Stage string
		Unit                                                int
		Problem                                             *events.Problem
	}
	_ = json.Unmarshal(data, &b) // what cannot be read is not said
	var words []string
	add := func(format, v string) {
		if v != "" && v != "0" {
			words = append(words, fmt.Sprintf(format, v))
		}
	}
	add("%s", b.Name)
	add("units %s", b.Segment)
	add("unit %s", fmt.Sprint(b.Unit))
	add("%s", b.Status)
	add("%s", b.Stage)
	add("%s", b.Reason)
	add("%s", b.Code)
	add("%s", b.Message)
	if b.Problem != nil {
		words = append(words, b.Problem.Message)
	}
	return strings.Join(words, "  ")
}
