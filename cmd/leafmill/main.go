// Leafmill takes documents in and makes them searchable. This program is all of it: the
// services, and the commands that talk to them.
//
// Exit codes, of every command: 0 all went well; 1 a job or a check failed, or the service
// ended with an error; 2 the command line or the configuration is wrong; 3 the server cannot
// be reached; 4 the server refused.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/leafmill/leafmill/internal/sandbox"
	"github.com/leafmill/leafmill/services/ocr/extract"
)

func main() {
	sandbox.Main(extract.Parsers()) // does not return in a child that reads one document
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // the second signal is not ours any more: it ends the process
	// Whoever reads our output may leave: a write then fails, and a service goes on.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	a := &app{out: os.Stdout, err: os.Stderr, environ: os.Environ(), version: buildVersion()}
	code := a.main(ctx, os.Args[1:])
	stop()
	os.Exit(code)
}
