package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/mattn/go-isatty"
	"github.com/spf13/cobra"

	"github.com/leafmill/leafmill/internal/client"
	"github.com/leafmill/leafmill/internal/config"
	"github.com/leafmill/leafmill/internal/telemetry"
)

// Exit codes.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitUnreachable = 3
	exitRefused     = 4
)

// version is set by the linker: -X main.version=v1.2.3.
var version string

// buildVersion is the version of the build, or of the module when `go install` made it.
func buildVersion() string {
	if version != "" {
		return version
	}
	if b, ok := debug.ReadBuildInfo(); ok && b.Main.Version != "" && b.Main.Version != "(devel)" {
		return b.Main.Version
	}
	return "v0.0.0-dev"
}

// app is what every command is given.
type app struct {
	out, err io.Writer
	environ  []string
	version  string
	started  bool // a command has begun: what fails now is no fault of the command line
}

// main runs one command line and returns the exit code.
func (a *app) main(ctx context.Context, args []string) int {
	root := a.root()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	code := exitCode(err)
	if !a.started {
		code = exitUsage
	}
	// What was told already is not told again, nor is a stop that the user asked for, nor
	// that nobody reads any more.
	if text := err.Error(); text != "" && !errors.Is(err, context.Canceled) && !errors.Is(err, syscall.EPIPE) {
		_, _ = fmt.Fprintln(a.err, "leafmill: "+strings.ReplaceAll(text, "\n", "\n  "))
	}
	if code == exitUsage && !a.started {
		_, _ = fmt.Fprintln(a.err, "See leafmill --help, or --help after a command.")
	}
	return code
}

// exitError is an error with its exit code. An empty text was told already.
type exitError struct {
	code int
	error
}

func (e exitError) Unwrap() error { return e.error }

func failed(format string, args ...any) error {
	return exitError{exitFailed, fmt.Errorf(format, args...)}
}

func usage(format string, args ...any) error {
	return exitError{exitUsage, fmt.Errorf(format, args...)}
}

func exitCode(err error) int {
	if e, ok := errors.AsType[exitError](err); ok {
		return e.code
	}
	if errors.Is(err, client.ErrUnreachable) {
		return exitUnreachable
	}
	if _, ok := errors.AsType[*client.Refused](err); ok {
		return exitRefused
	}
	return exitFailed
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "leafmill",
		Short: "Makes documents searchable, page by page",
		Long: `Leafmill takes documents in, reads scans too, and makes them searchable for people and
for language models. Start it with "leafmill up", hand in files with "leafmill ingest".`,
		Example: `  leafmill up
  leafmill ingest report.pdf letters/ --wait
  leafmill search "heat pump warranty"`,
		SilenceErrors: true, SilenceUsage: true,
		PersistentPreRun: func(*cobra.Command, []string) { a.started = true },
	}
	root.SetOut(a.out)
	root.SetErr(a.err)
	root.AddGroup(&cobra.Group{ID: "serve", Title: "Services:"}, &cobra.Group{ID: "use", Title: "Documents:"},
		&cobra.Group{ID: "care", Title: "Care:"})
	for _, g := range []struct {
		id       string
		commands []*cobra.Command
	}{
		{"serve", []*cobra.Command{a.upCommand(), a.runCommand()}},
		{"use", []*cobra.Command{a.ingestCommand(), a.searchCommand(), a.jobsCommand(), a.jobCommand()}},
		{"care", []*cobra.Command{a.doctorCommand(), a.configCommand(), a.statusCommand(), a.versionCommand()}},
	} {
		for _, c := range g.commands {
			c.GroupID = g.id
			root.AddCommand(c)
		}
	}
	root.CompletionOptions.SetDefaultShellCompDirective(cobra.ShellCompDirectiveNoFileComp)
	return root
}

// load reads the configuration. Its warnings go to the user's terminal.
func (a *app) load(flags *config.Flags) (*config.Loaded, error) {
	l, err := config.Load(config.Sources{Flags: flags, Environ: a.environ})
	if err != nil {
		return nil, exitError{exitUsage, err}
	}
	for _, w := range l.Warnings {
		_, _ = fmt.Fprintln(a.err, "leafmill: "+w)
	}
	return l, nil
}

// client makes the client that a client command talks with.
func (a *app) client(flags *config.Flags) (*client.Client, error) {
	l, err := a.load(flags)
	if err != nil {
		return nil, err
	}
	c := client.New(l.URL, l.APIKey)
	c.OnBusy = func(wait time.Duration, because error) {
		_, _ = fmt.Fprintf(a.err, "leafmill: the server is busy, asking again in %s: %v\n", wait.Round(time.Second), because)
	}
	return c, nil
}

func (a *app) logger(l *config.Loaded) (*slog.Logger, error) {
	return telemetry.Logger(a.err, l.LogLevel, l.LogFormat)
}

// terminal says whether somebody looks at what is written to w.
func terminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && isatty.IsTerminal(f.Fd())
}
