// Package extract turns a document's bytes into its units: pages, or pieces of text.
//
// Guarantees:
//   - what a document is, is decided by its content. A name or a declared media type only
//     settles what content cannot: Markdown or HTML or plain text, and a charset that fits;
//   - the number of units is known once a document is open, before the first is read, and
//     is the same on every machine and at every reading;
//   - the text of a unit is valid UTF-8 without control characters but newline and tab,
//     lines end in "\n"; the pieces of a document without pages joined are its whole text;
//   - the work of a reading depends on the units read, not on the document's length. What
//     was worked out for the whole document lies in a cache, and may vanish from there;
//   - memory, time and disk of every step are bounded, whatever the bytes are;
//   - one page that cannot be read is that unit's error; the others go on;
//   - errors a user can meet are an events.Failure with a sentence.
//
// Programs (poppler's and tesseract) and the HTML parser run in children of
// internal/sandbox. Text is decoded in this process: those decoders are loops over a
// fixed buffer in memory-safe code, and a child would cost a hundred times what they do.
// The same holds for the first bytes of images, which are read for their dimensions.
//
// A program that uses the package calls sandbox.Main(extract.Parsers()) first.
package extract

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/leafmill/leafmill/events"
	"github.com/leafmill/leafmill/internal/sandbox"
)

// Config bounds an Extractor. Only Dir is required; a zero field takes the default.
type Config struct {
	Dir             string // for work and cache, in the service's data folder; may be shared by processes
	DefaultLanguage string // of scans that come without one, as tesseract names them; default "eng+deu+spa"
	DPI             int    // resolution at which PDF pages are recognised; default 200

	OCRWorkers  int // pages recognised at once; default GOMAXPROCS, each takes one core
	TextWorkers int // other children at once; default GOMAXPROCS

	MaxPages  int   // of a document; default 5,000
	MaxPixels int64 // of a page to recognise; default 50 million
	MaxText   int64 // bytes of text of a document without pages; default 200 MB
	MaxCache  int64 // bytes of the cache; default 2 GB, the longest unused go first

	OCRTimeout  time.Duration // of one page, raster and recognition each; default 60 s
	TextTimeout time.Duration // of one range of pages or one parser; default 20 s

	Log *slog.Logger // default slog.Default()
}

func (c Config) withDefaults() Config {
	c.DefaultLanguage = or(c.DefaultLanguage, "eng+deu+spa")
	c.DPI = or(c.DPI, 200)
	c.OCRWorkers = or(c.OCRWorkers, runtime.GOMAXPROCS(0))
	c.TextWorkers = or(c.TextWorkers, runtime.GOMAXPROCS(0))
	c.MaxPages = or(c.MaxPages, 5000)
	c.MaxPixels = or(c.MaxPixels, 50_000_000)
	c.MaxText = or(c.MaxText, 200<<20)
	c.MaxCache = or(c.MaxCache, 2<<30)
	c.OCRTimeout = or(c.OCRTimeout, time.Minute)
	c.TextTimeout = or(c.TextTimeout, 20*time.Second)
	c.Log = or(c.Log, slog.Default())
	return c
}

func or[T comparable](v, fallback T) T {
	var zero T
	if v == zero {
		return fallback
	}
	return v
}

// Extractor opens documents. Its methods, and those of its documents, may be called from
// many goroutines.
type Extractor struct {
	config    Config
	box       *sandbox.Sandbox
	cache     *cache
	hashes    *lru.Cache[fileID, string]
	languages languages
	ocr       semaphore
	text      semaphore
}

// New makes an Extractor and its directories.
func New(c Config) (*Extractor, error) {
	if c.Dir == "" {
		return nil, errors.New("extract: Config.Dir is required: a folder below the data folder")
	}
	c = c.withDefaults()
	box, err := sandbox.New(filepath.Join(c.Dir, "work"))
	if err != nil {
		return nil, fmt.Errorf("extract: %w", err)
	}
	cache, err := newCache(filepath.Join(c.Dir, "cache"), c.MaxCache)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("extract: %w", err), box.Close())
	}
	hashes, err := lru.New[fileID, string](1024)
	if err != nil {
		return nil, errors.Join(err, box.Close())
	}
	return &Extractor{config: c, box: box, cache: cache, hashes: hashes,
		ocr: make(semaphore, c.OCRWorkers), text: make(semaphore, c.TextWorkers)}, nil
}

// Close removes the work folder. The cache stays for the next process.
func (e *Extractor) Close() error { return e.box.Close() }

// Hint is what somebody says about a document. All of it may be empty or wrong.
type Hint struct {
	Name      string // file name
	MediaType string // as declared, perhaps with a charset
	Language  string // of its text: "de", "de-AT", "deu", "eng+deu"; only recognition uses it
	SHA256    string // hex, of the content, when the caller knows it: then it is not computed again
}

// Open finds out what a document is and how many units it has. The file must not change
// while the document is used. It fails with a Failure of class Empty, Encrypted, Corrupt,
// Unsupported, Limit, Timeout or NoOCR (no program to read a PDF with), else with an
// error that is no fault of the document.
func (e *Extractor) Open(ctx context.Context, path string, hint Hint) (*Document, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("extract: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("extract: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("extract: %s is not a regular file", path)
	}
	if info.Size() == 0 {
		return nil, events.Fail(events.Empty, "The file is empty: nothing was uploaded, or the upload was cut off.")
	}
	format, err := sniff(f, info.Size(), hint)
	if err != nil {
		return nil, err
	}
	d := &Document{MediaType: format.mediaType, Kind: format.kind, charset: format.charset, e: e, path: path, language: hint.Language}
	switch format.kind {
	case PDF:
		if d.key, err = e.key(f, info, hint); err != nil {
			return nil, err
		}
		err = d.openPDF(ctx)
	case Image:
		err = d.openImage(f)
	default:
		if info.Size() > smallText {
			if d.key, err = e.key(f, info, hint); err != nil {
				return nil, err
			}
			d.key += "-" + format.id()
		}
		err = d.openText(ctx, f)
	}
	if err != nil {
		return nil, err
	}
	return d, nil
}

// withChild runs f in a fresh work directory when one of the places of s is free.
func (e *Extractor) withChild(ctx context.Context, s semaphore, f func(*sandbox.Work) error) (err error) {
	if err := s.acquire(ctx); err != nil {
		return err
	}
	defer s.release()
	w, err := e.box.Work()
	if err != nil {
		return fmt.Errorf("extract: %w", err)
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	return f(w)
}

// semaphore has as many places as its capacity.
type semaphore chan struct{}

func (s semaphore) acquire(ctx context.Context) error {
	select {
	case s <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s semaphore) release() { <-s }
