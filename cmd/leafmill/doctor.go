package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/leafmill/leafmill/internal/client"
	"github.com/leafmill/leafmill/internal/config"
	"github.com/leafmill/leafmill/internal/localmodel"
	"github.com/leafmill/leafmill/services/ocr/extract"
)

// Verdicts of a check.
const (
	checkOK      = "ok"
	checkMissing = "missing" // Leafmill runs without, and Lacks says what does not work
	checkBroken  = "broken"  // Leafmill does not run
)

// check is one thing that the doctor looked at.
type check struct {
	What    string `json:"check"`
	Verdict string `json:"verdict"`
	Found   string `json:"found,omitempty"`
	Lacks   string `json:"lacks,omitempty"` // what will not work
	Fix     string `json:"fix,omitempty"`
}

func (a *app) doctorCommand() *cobra.Command {
	var asJSON bool
	var flags *config.Flags
	c := &cobra.Command{
		Use:   "doctor",
		Short: "Say what is missing on this machine, what will not work without it, and how to fix it",
		Long: `Looks at the programs, the model, the disk, the addresses and the server. The exit code is 1 only
when something is broken without which "leafmill up" does not run.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := a.load(flags)
			if err != nil {
				return err
			}
			checks := diagnose(cmd.Context(), l)
			if asJSON {
				err = printJSON(a.out, checks)
			} else {
				err = a.printChecks(checks)
			}
			for _, c := range checks {
				if c.Verdict == checkBroken && err == nil {
					err = exitError{exitFailed, errors.New("")}
				}
			}
			return err
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print the checks as JSON")
	flags = config.AddAllFlags(c.Flags(), "data", "http", "nats", "url", "model-dir")
	return c
}

func (a *app) printChecks(checks []check) error {
	t := newTable(a.out, "CHECK", "", "FOUND")
	for _, c := range checks {
		t.row(c.What, c.Verdict, c.Found)
	}
	if err := t.end(); err != nil {
		return err
	}
	for _, c := range checks {
		if c.Verdict == checkOK {
			continue
		}
		if _, err := fmt.Fprintf(a.out, "\n%s: %s\n  to fix it: %s\n", clean(c.What), clean(c.Lacks), clean(c.Fix)); err != nil {
			return err
		}
	}
	return nil
}

// diagnose makes all checks, in an order that reads well.
func diagnose(ctx context.Context, l *config.Loaded) []check {
	var checks []check
	for _, t := range extract.Probe(ctx, l.OCR.Languages) {
		c := check{What: t.Name, Verdict: checkOK, Found: t.Version}
		if !t.OK {
			c.Verdict, c.Lacks, c.Fix = checkMissing, "needed for "+t.NeededFor+"; those fail without it", t.Fix
		}
		checks = append(checks, c)
	}
	checks = append(checks, checkModel(l)...)
	checks = append(checks, disk(l.Data))
	running := server(ctx, l)
	checks = append(checks, port(ctx, "http address", "--http", l.HTTP, running.Verdict == checkOK),
		port(ctx, "nats address", "--nats", l.NATS, running.Verdict == checkOK))
	return append(checks, running)
}

const noVectors = "documents are found by keywords only"

func checkModel(l *config.Loaded) []check {
	switch l.Embed.Provider {
	case config.ProviderNone:
		return []check{{What: "embedding", Verdict: checkOK, Found: "switched off (" + config.EnvName("embed-provider") + "=none): " + noVectors}}
	case config.ProviderOpenAI:
		return []check{{What: "embedding", Verdict: checkOK, Found: vectors(l)}}
	}
	files := localmodel.In(localmodel.Dir(l.ModelDir))
	var checks []check
	for _, f := range []struct {
		what string
		file localmodel.File
	}{{"model", files.Model}, {"model's tokenizer", files.Tokenizer}, {"onnx runtime", files.Runtime}} {
		c := check{What: f.what, Verdict: checkOK, Found: f.file.Path}
		if err := f.file.Check(); err != nil {
			c.Verdict, c.Found, c.Lacks, c.Fix = checkMissing, "", message(err)+" Without it "+noVectors+".", "make setup, or scripts/setup"
		}
		checks = append(checks, c)
	}
	return checks
}

// diskLow is how little free space is worth a word: the gateway refuses documents at less.
const diskLow = 1 << 30

// disk looks whether the data folder, or the nearest folder above that exists, can be written
// and has room.
func disk(data string) check {
	c := check{What: "data folder", Verdict: checkOK}
	dir, err := filepath.Abs(data)
	if err != nil {
		dir = data
	}
	for {
		if _, err = os.Stat(dir); err == nil || filepath.Dir(dir) == dir {
			break
		}
		dir = filepath.Dir(dir)
	}
	if err == nil {
		err = unix.Access(dir, unix.W_OK)
	}
	if err != nil {
		return check{What: c.What, Verdict: checkBroken, Lacks: fmt.Sprintf("%s cannot be written (%v); nothing can be kept", dir, err),
			Fix: "choose another folder with --data, or change its owner"}
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err == nil {
		free := st.Bavail * uint64(st.Bsize)
		c.Found = fmt.Sprintf("%s, %s free", data, humanize.IBytes(free))
		if free < diskLow {
			c.Verdict, c.Lacks, c.Fix = checkMissing, "there is little room; new documents are soon refused", "make room, or choose another folder with --data"
		}
	}
	return c
}

// port looks whether an address can be listened on; what is a URL belongs to another machine.
func port(ctx context.Context, what, flag, addr string, running bool) check {
	if strings.Contains(addr, "://") {
		return check{What: what, Verdict: checkOK, Found: "is a server's URL: nothing is listened on here"}
	}
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
	if err == nil {
		_ = ln.Close() // it was only tried
		return check{What: what, Verdict: checkOK, Found: addr + " is free"}
	}
	if running && errors.Is(err, unix.EADDRINUSE) {
		return check{What: what, Verdict: checkOK, Found: addr + " is in use, and a Leafmill answers"}
	}
	return check{What: what, Verdict: checkBroken, Lacks: fmt.Sprintf("%s cannot be listened on (%v); leafmill up does not start", addr, err),
		Fix: "stop what uses it, or choose another address with " + flag}
}

// serverPatience is how long the doctor waits for a server.
const serverPatience = 3 * time.Second

func server(ctx context.Context, l *config.Loaded) check {
	ctx, cancel := context.WithTimeout(ctx, serverPatience)
	defer cancel()
	c := check{What: "server", Verdict: checkOK, Found: l.URL + " is ready"}
	_, ready, err := client.New(l.URL, l.APIKey).Ready(ctx)
	switch {
	case err != nil:
		c.Verdict, c.Found, c.Lacks = checkMissing, "", "no Leafmill answers at "+l.URL+"; ingest, search and jobs need one"
		c.Fix = "leafmill up, or say where it is with --server or " + config.EnvName("url")
	case !ready:
		c.Verdict, c.Found, c.Lacks = checkMissing, l.URL, "the server is not ready"
		c.Fix = "see " + l.URL + "/readyz"
	}
	return c
}
