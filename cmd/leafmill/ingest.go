package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/leafmill/leafmill/events"
	"github.com/leafmill/leafmill/internal/api"
	"github.com/leafmill/leafmill/internal/client"
	"github.com/leafmill/leafmill/internal/config"
)

const (
	uploadsAtOnce = 4
	busyPatience  = 10 * time.Minute // of one upload with a busy server
)

// file is one document to hand in, and what became of it.
type file struct {
	Path  string   `json:"file"`
	Job   string   `json:"job_id,omitempty"`
	Error string   `json:"error,omitempty"`
	View  *api.Job `json:"job,omitempty"` // with --wait
	size  int64
	err   error
}

// failed says whether the document is not on its way, or did not arrive.
func (f *file) failed() bool {
	return f.err != nil || f.View != nil && (f.View.Status == events.StatusFailed || f.View.Status == events.StatusCancelled)
}

// ingestion is one run of the command.
type ingestion struct {
	template  client.Upload
	wait      bool
	asJSON    bool
	reporting string
}

func (a *app) ingestCommand() *cobra.Command {
	var in ingestion
	var flags *config.Flags
	c := &cobra.Command{
		Use:   "ingest FILE|DIR...",
		Short: "Hand in documents",
		Long: `Hands in files, and all files in folders but hidden ones. More than one file goes as bulk:
documents that somebody hands in meanwhile are not kept waiting.`,
		Example: `  leafmill ingest report.pdf --wait
  leafmill ingest letters/ --collection letters
  leafmill ingest manual.pdf --document-id manual   # replaces the manual from before`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			files, err := expand(args)
			if err != nil {
				return err
			}
			if in.template.DocumentID != "" && len(files) > 1 {
				return usage("--document-id names one document, and there are %d files", len(files))
			}
			if !cmd.Flags().Changed("bulk") {
				in.template.Bulk = len(files) > 1
			}
			cl, err := a.client(flags)
			if err != nil {
				return err
			}
			cl.Patience = busyPatience
			return a.ingest(cmd.Context(), cl, in, files)
		},
	}
	f := c.Flags()
	f.StringVar(&in.template.Collection, "collection", "", "put them into this collection")
	f.StringVar(&in.template.DocumentID, "document-id", "", "name of the document; an older one of that name is replaced")
	f.StringVar(&in.template.Language, "language", "", "language of the text, such as de, which helps to read scans")
	f.BoolVar(&in.template.Bulk, "bulk", false, "let others go first (default: when there is more than one file)")
	f.BoolVar(&in.wait, "wait", false, "wait until they can be found")
	f.BoolVar(&in.asJSON, "json", false, "print what became of each file as JSON")
	f.StringVar(&in.reporting, "progress", "auto", "auto (a bar on a terminal), lines or none")
	flags = config.AddFlags(f, "url")
	return c
}

// expand lists the files that arguments mean, in order.
func expand(args []string) ([]*file, error) {
	var files []*file
	add := func(path string, info fs.FileInfo) {
		files = append(files, &file{Path: path, size: info.Size()})
	}
	for _, arg := range args {
		info, err := os.Stat(arg)
		if err != nil {
			return nil, failed("%s cannot be read: %w", arg, errors.Unwrap(err))
		}
		if !info.IsDir() {
			if !info.Mode().IsRegular() {
				return nil, usage("%s is neither a file nor a folder", arg)
			}
			add(arg, info)
			continue
		}
		err = filepath.WalkDir(arg, func(path string, d fs.DirEntry, err error) error {
			switch {
			case err != nil:
				return err
			case path != arg && strings.HasPrefix(d.Name(), "."):
				if d.IsDir() {
					return filepath.SkipDir
				}
				return nil
			case !d.Type().IsRegular():
				return nil
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			add(path, info)
			return nil
		})
		if err != nil {
			return nil, failed("the folder %s cannot be read: %w", arg, err)
		}
	}
	if len(files) == 0 {
		return nil, usage("there are no files in %s", strings.Join(args, ", "))
	}
	return files, nil
}

// ingest hands the files in, a few at once, and tells what became of them.
func (a *app) ingest(ctx context.Context, cl *client.Client, in ingestion, files []*file) error {
	p, err := a.newProgress(in, files)
	if err != nil {
		return err
	}
	busy := cl.OnBusy
	cl.OnBusy = func(wait time.Duration, because error) { p.pause(func() { busy(wait, because) }) }

	// Uploading is bounded by its own number; waiting comes after it, so that a long
	// document does not keep others from being handed in.
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(uploadsAtOnce)
	for _, f := range files {
		if gctx.Err() != nil {
			break
		}
		g.Go(func() error {
			f.Job, f.err = submit(gctx, cl, in.template, f, p)
			p.submitted(f)
			if errors.Is(f.err, client.ErrUnreachable) {
				return f.err // nor will the others get through
			}
			return gctx.Err()
		})
	}
	err = g.Wait()
	if err == nil && in.wait {
		g, gctx := errgroup.WithContext(ctx)
		g.SetLimit(uploadsAtOnce)
		for _, f := range files {
			if f.err != nil {
				continue
			}
			g.Go(func() error {
				var view api.Job
				if view, f.err = cl.Await(gctx, f.Job); f.err == nil {
					f.View = &view
				}
				p.ended(f)
				if errors.Is(f.err, client.ErrUnreachable) {
					return f.err
				}
				return gctx.Err()
			})
		}
		err = g.Wait()
	}
	p.stop()
	if perr := a.printFiles(in, files); perr != nil {
		return perr
	}
	if err != nil {
		return err
	}
	return verdict(files)
}

func submit(ctx context.Context, cl *client.Client, u client.Upload, f *file, p *progress) (string, error) {
	u.Name, u.Size = filepath.Base(f.Path), f.size
	u.Open = func() (io.ReadCloser, error) {
		r, err := os.Open(f.Path)
		if err != nil {
			return nil, err
		}
		return p.reading(f, r), nil
	}
	got, err := cl.Submit(ctx, u)
	return got.JobID, err
}

// verdict is the command's exit: an error when a document failed, of the class that all
// failures share.
func verdict(files []*file) error {
	n, refusals := 0, 0
	for _, f := range files {
		if f.failed() {
			n++
		}
		if _, ok := errors.AsType[*client.Refused](f.err); ok {
			refusals++
		}
	}
	switch {
	case n == 0:
		return nil
	case refusals == len(files):
		return exitError{exitRefused, errors.New("")}
	}
	return exitError{exitFailed, errors.New("")}
}

func (a *app) printFiles(in ingestion, files []*file) error {
	good := 0
	for _, f := range files {
		if f.err != nil {
			f.Error = f.err.Error()
		} else if f.View != nil && f.View.Error != nil {
			f.Error = f.View.Error.Message + " (" + f.View.Error.Code + ")"
		}
		if !f.failed() && f.Job != "" {
			good++
		}
	}
	if in.asJSON {
		return printJSON(a.out, struct {
			Documents []*file `json:"documents"`
			OK        int     `json:"ok"`
			Failed    int     `json:"failed"`
		}{files, good, len(files) - good})
	}
	var t *table
	if in.wait {
		t = newTable(a.out, "DOCUMENT", "STATUS", "PAGES", "CHUNKS", "MODE", "TOOK", "JOB")
	} else {
		t = newTable(a.out, "DOCUMENT", "STATUS", "JOB")
	}
	for _, f := range files {
		status := "handed in"
		switch {
		case f.Error != "":
			status = "failed"
		case f.Job == "":
			status = "not tried"
		}
		if f.View == nil {
			t.row(filepath.Base(f.Path), status, f.Job)
			continue
		}
		j := *f.View
		t.row(filepath.Base(f.Path), j.Status, pages(j), fmt.Sprint(j.Artifacts.Chunks), mode(j), took(j), f.Job)
	}
	if err := t.end(); err != nil {
		return err
	}
	var b strings.Builder
	for _, f := range files {
		if f.Error != "" {
			fmt.Fprintf(&b, "%s: %s\n", clean(f.Path), clean(f.Error))
		}
		if f.View != nil {
			for _, w := range f.View.Warnings {
				fmt.Fprintf(&b, "%s: %s (%s)\n", clean(f.Path), clean(w.Message), w.Code)
			}
		}
	}
	done := "handed in"
	if in.wait {
		done = "searchable"
	}
	fmt.Fprintf(&b, "%d of %d %s.\n", good, len(files), done)
	_, err := io.WriteString(a.out, b.String())
	return err
}

// lines prints a line as each document moves on, for logs.
type lines struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lines) say(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, _ = fmt.Fprintf(l.w, format+"\n", args...)
}
