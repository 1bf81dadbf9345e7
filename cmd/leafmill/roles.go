package main

import (
	"context"
	"errors"
	"path/filepath"
	"runtime"

	"github.com/leafmill/leafmill/events"
	"github.com/leafmill/leafmill/internal/artifacts"
	"github.com/leafmill/leafmill/internal/bus"
	"github.com/leafmill/leafmill/internal/config"
	"github.com/leafmill/leafmill/internal/guard"
	"github.com/leafmill/leafmill/internal/localmodel"
	"github.com/leafmill/leafmill/internal/tokenizer"
	"github.com/leafmill/leafmill/services/chunk"
	"github.com/leafmill/leafmill/services/chunk/split"
	"github.com/leafmill/leafmill/services/embed"
	"github.com/leafmill/leafmill/services/embed/model"
	"github.com/leafmill/leafmill/services/gateway"
	"github.com/leafmill/leafmill/services/index"
	"github.com/leafmill/leafmill/services/index/embedded"
	"github.com/leafmill/leafmill/services/ocr"
	"github.com/leafmill/leafmill/services/ocr/extract"
	"github.com/leafmill/leafmill/services/status"
)

// role is a service: what `leafmill run` calls it, and what runs it until ctx ends.
type role struct {
	name string
	run  func(ctx context.Context, n *node, conn *bus.Conn) error
}

// roles are all services. `leafmill up` runs them all, each on a connection of its own:
// they talk over JetStream in one process as they do in many.
func roles() []role {
	return []role{
		{"gateway", runGateway},
		{"ocr", runOCR},
		{"chunk", runChunk},
		{"embed", runEmbed},
		{"index", runIndex},
		{"status", runStatus},
	}
}

func roleNames() []string {
	var names []string
	for _, r := range roles() {
		names = append(names, r.name)
	}
	return names
}

func runGateway(ctx context.Context, n *node, conn *bus.Conn) error {
	store, err := artifacts.Open(ctx, conn.JetStream())
	if err != nil {
		return err
	}
	g, err := gateway.New(conn, store, gateway.Config{Listener: n.http, Keys: n.cfg.APIKeys, Insecure: n.cfg.Insecure,
		Hosts: n.cfg.Hosts, MaxUpload: n.cfg.MaxUploadBytes, DataDir: n.diskOfStream(), MinFree: uint64(n.cfg.MinFreeBytes), Grace: n.cfg.Grace,
		Registry: n.reg, Version: n.version, Log: n.log.With("service", "gateway")})
	if err != nil {
		return err
	}
	return g.Run(ctx)
}

func runOCR(ctx context.Context, n *node, conn *bus.Conn) error {
	c := n.cfg.OCR
	return ocr.Run(ctx, conn, ocr.Config{Dir: filepath.Join(n.cfg.Data, "ocr"), MaxBytes: n.cfg.MaxUploadBytes,
		MaxCache: c.CacheBytes, Workers: c.Workers, Bus: n.runConfig(), Version: n.version,
		Extract: extract.Config{DefaultLanguage: c.Languages, DPI: c.DPI, MaxPages: n.cfg.MaxPages, MaxPixels: c.MaxPixels,
			MaxCache: c.CacheBytes, OCRTimeout: c.Timeout, Log: n.log.With("service", "ocr")}})
}

func runChunk(ctx context.Context, n *node, conn *bus.Conn) error {
	var tok split.Tokenizer = tokenizer.Approximate()
	path := localmodel.In(localmodel.Dir(n.cfg.ModelDir)).Tokenizer.Path
	if w, err := tokenizer.Load(path); err == nil {
		tok = w
	} else {
		n.log.Warn("no tokenizer: chunks are cut by estimate", "error", err, "fix", "make setup")
	}
	return chunk.Run(ctx, conn, chunk.Config{Tokenizer: tok, Tokens: n.cfg.ChunkTokens - specialTokens, Workers: n.cfg.ChunkWorkers,
		Bus: n.runConfig(), Version: n.version})
}

// specialTokens are those that the model puts around every text.
const specialTokens = 2

func runEmbed(ctx context.Context, n *node, conn *bus.Conn) (err error) {
	c := n.cfg.Embed
	m, err := openModel(n.cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	return embed.Run(ctx, conn, embed.Config{Model: m, Workers: c.Workers, Bus: n.runConfig(), Version: n.version, Log: n.log.With("service", "embed"),
		Guard: guard.Config{Timeout: c.Timeout, Retries: c.Retries, BreakerFailures: c.BreakerFailures,
			OpenTimeout: c.BreakerOpenTimeout, MaxRetryAfter: c.RetryAfterMax}})
}

// openModel opens the configured model. A local one that is not installed is no error:
// documents are found by keywords until it is.
func openModel(cfg *config.Loaded) (model.Model, error) {
	c := cfg.Embed
	switch c.Provider {
	case config.ProviderOpenAI:
		return model.NewOpenAI(model.OpenAIConfig{BaseURL: c.BaseURL, APIKey: c.APIKey, Model: c.Model,
			QueryPrefix: c.QueryPrefix, PassagePrefix: c.PassagePrefix})
	case config.ProviderNone:
		return model.None{Why: "No embedding model is configured; set LEAFMILL_EMBED_PROVIDER to local or openai."}, nil
	}
	m, err := model.OpenLocal(localmodel.Dir(cfg.ModelDir), runtime.NumCPU())
	if f, ok := errors.AsType[*events.Failure](err); ok && f.Class == events.MissingModel {
		return model.None{Why: f.Message}, nil
	}
	return m, err
}

func runIndex(ctx context.Context, n *node, conn *bus.Conn) (err error) {
	sync := embedded.SyncAlways
	if n.cfg.Sync == config.SyncInterval {
		sync = embedded.SyncInterval
	}
	dir := filepath.Join(n.cfg.Data, "index")
	backend, err := embedded.Open(ctx, embedded.Options{Dir: dir, Sync: sync})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, backend.Close()) }()
	// Another index, on another folder, would take a share of the chunks: one is at work.
	owner, err := folderID(dir)
	if err != nil {
		return err
	}
	if err := conn.Claim(ctx, "index", owner); err != nil {
		return whenStopped(ctx, err)
	}
	fusion := index.DefaultFusion()
	fusion.Floor = n.cfg.Embed.Floor
	return index.Run(ctx, conn, backend, index.Config{Workers: n.cfg.IndexWorkers, Fusion: fusion,
		Bus: n.runConfig(), Version: n.version, Log: n.log.With("service", "index")})
}

// whenStopped is nil when the error is only that of being told to stop.
func whenStopped(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func runStatus(ctx context.Context, n *node, conn *bus.Conn) (err error) {
	dir, release, err := slot(n.cfg.Data, "status")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, release()) }()
	s, err := status.New(ctx, conn, status.Config{Dir: dir, Version: n.version, Metrics: n.reg, Log: n.log.With("service", "status")})
	if err != nil {
		return err
	}
	n.readiness("status", s.Ready)
	return s.Run(ctx)
}
