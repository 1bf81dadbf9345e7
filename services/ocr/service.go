// Package ocr is the first stage: it takes documents in and says their text.
//
//	submitted, continued -> extracted, scan_found, continued
//	scan_found           -> extracted
//
// The walk of a document publishes one slice of it and says continued: work a message is
// bounded, long documents take turns, and a crash repeats a slice. What a page failed
// with travels in its unit; the rest of the document goes on.
package ocr

import (
	"context"
	"fmt"
	"path/filepath"
	"runtime"
	"time"

	"github.com/leafmill/leafmill/internal/artifacts"
	"github.com/leafmill/leafmill/internal/bus"
	"github.com/leafmill/leafmill/services/ocr/extract"
)

// Config of the service; Dir is required, other zero values are usable.
type Config struct {
	Dir      string // for work and caches, under the data folder
	MaxBytes int64  // of a document (100 MB when 0)
	MaxCache int64  // bytes of originals kept on disk (2 GB when 0)
	Workers  int    // pages recognised at once (the cores when 0)
	Extract  extract.Config
	Bus      bus.RunConfig
	Version  string
}

// Service holds what the handlers share.
type Service struct {
	store   *artifacts.Store
	cache   *artifacts.Cache
	extract *extract.Extractor
	max     int64
}

// Run serves the stage until ctx ends.
func Run(ctx context.Context, conn *bus.Conn, cfg Config) error {
	if cfg.Workers == 0 {
		cfg.Workers = runtime.NumCPU()
	}
	s, err := New(ctx, conn, cfg)
	if err != nil {
		return err
	}
	defer func() { _ = s.extract.Close() }()
	return conn.RunService(ctx, cfg.Bus, bus.Service{
		Info: bus.ServiceInfo{Name: "ocr", Version: cfg.Version, Description: "Reads documents, page by page"},
		Consumers: []bus.Consumer{
			{Durable: "ocr", Workers: 2, Timeout: 10 * time.Minute, Handle: s.OnSubmitted},
			{Durable: "ocr-walk", Workers: 1, Timeout: time.Hour, Handle: s.OnWalk},
			{Durable: "ocr-bulk", Workers: 1, Timeout: time.Hour, Handle: s.OnWalk},
			{Durable: "ocr-pages", Workers: cfg.Workers, Timeout: 5 * time.Minute, Handle: s.OnScanFound},
		},
	})
}

// New prepares the service without running it.
func New(ctx context.Context, conn *bus.Conn, cfg Config) (*Service, error) {
	if cfg.MaxBytes == 0 {
		cfg.MaxBytes = 100 << 20
	}
	if cfg.MaxCache == 0 {
		cfg.MaxCache = 2 << 30
	}
	store, err := artifacts.Open(ctx, conn.JetStream())
	if err != nil {
		return nil, err
	}
	cache, err := artifacts.NewCache(store, filepath.Join(cfg.Dir, "originals"), cfg.MaxCache)
	if err != nil {
		return nil, err
	}
	cfg.Extract.Dir = cfg.Dir
	cfg.Extract.OCRWorkers = cfg.Workers
	ex, err := extract.New(cfg.Extract)
	if err != nil {
		return nil, fmt.Errorf("ocr: %w", err)
	}
	return &Service{store: store, cache: cache, extract: ex, max: cfg.MaxBytes}, nil
}
