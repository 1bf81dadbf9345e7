package artifacts

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/leafmill/leafmill/events"
)

// Cache keeps copies of originals on the local disk, named by their hash, so that a
// hundred pages do not fetch a file a hundred times. Processes may share its folder. A
// file in it is complete; the longest unused go when the folder exceeds its bound.
type Cache struct {
	store *Store
	dir   string
	max   int64

	mu    sync.Mutex
	added int64 // bytes since the last sweep
}

// Local is a copy on disk.
type Local struct {
	Path   string
	SHA256 string // hex
	Size   int64
}

// NewCache makes the folder. Max bounds it in bytes, roughly: it is checked as files come.
func NewCache(store *Store, dir string, max int64) (*Cache, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("artifacts: %w", err)
	}
	return &Cache{store: store, dir: dir, max: max}, nil
}

// Add copies r, which must have at most limit bytes, into the cache.
func (c *Cache) Add(r io.Reader, limit int64) (Local, error) {
	tmp, err := os.CreateTemp(c.dir, "in-*")
	if err != nil {
		return Local{}, fmt.Errorf("artifacts: %w", err)
	}
	defer func() { _ = os.Remove(tmp.Name()) }()
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(tmp, h), io.LimitReader(r, limit+1))
	if err = errors.Join(err, tmp.Close()); err != nil {
		return Local{}, err
	}
	if n > limit {
		return Local{}, events.Fail(events.Limit, "The document is larger than %d bytes (LEAFMILL_MAX_UPLOAD_BYTES).", limit)
	}
	l := Local{SHA256: hex.EncodeToString(h.Sum(nil)), Size: n}
	l.Path = filepath.Join(c.dir, l.SHA256)
	if err := os.Rename(tmp.Name(), l.Path); err != nil {
		return Local{}, fmt.Errorf("artifacts: %w", err)
	}
	return l, c.sweep(n)
}

// Original copies an object of the bucket originals into the cache.
func (c *Cache) Original(ctx context.Context, object string, limit int64) (Local, error) {
	r, err := c.store.originals.Get(ctx, object)
	if errors.Is(err, jetstream.ErrObjectNotFound) || errors.Is(err, jetstream.ErrNameRequired) {
		return Local{}, events.Fail(events.Invalid, "There is no object %q in the bucket originals.", object).Because(err)
	}
	if err != nil {
		return Local{}, fault(events.BucketOriginals, object, err)
	}
	defer func() { _ = r.Close() }()
	l, err := c.Add(r, limit)
	if err != nil {
		return Local{}, fault(events.BucketOriginals, object, err)
	}
	return l, nil
}

// Fetch gives the local copy of a source, whose hash was checked.
func (c *Cache) Fetch(ctx context.Context, src events.Source) (Local, error) {
	if b, err := hex.DecodeString(src.SHA256); err != nil || len(b) != sha256.Size {
		return Local{}, events.Fail(events.Invalid, "The event's source has no sha256.")
	}
	l := Local{Path: filepath.Join(c.dir, src.SHA256), SHA256: src.SHA256, Size: src.Size}
	if st, err := os.Stat(l.Path); err == nil && st.Size() == src.Size {
		now := time.Now()
		return l, os.Chtimes(l.Path, now, now)
	}
	b, err := c.store.bucket(src.Bucket)
	if err != nil {
		return Local{}, err
	}
	r, err := b.Get(ctx, src.Object)
	if err != nil {
		return Local{}, fault(src.Bucket, src.Object, err)
	}
	defer func() { _ = r.Close() }()
	got, err := c.Add(r, src.Size)
	if err != nil {
		return Local{}, fault(src.Bucket, src.Object, err)
	}
	if got.SHA256 != src.SHA256 {
		return Local{}, events.Fail(events.Invalid, "The object %s/%s has changed since it was submitted.", src.Bucket, src.Object)
	}
	return got, nil
}

// sweep removes the longest unused files once enough has come in to make it worth a look.
func (c *Cache) sweep(added int64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.added += added; c.added < c.max/8 {
		return nil
	}
	c.added = 0
	entries, err := os.ReadDir(c.dir)
	if err != nil {
		return fmt.Errorf("artifacts: %w", err)
	}
	var files []os.FileInfo
	var total int64
	for _, e := range entries {
		if i, err := e.Info(); err == nil && i.Mode().IsRegular() {
			files = append(files, i)
			total += i.Size()
		}
	}
	slices.SortFunc(files, func(a, b os.FileInfo) int { return a.ModTime().Compare(b.ModTime()) })
	for _, f := range files {
		if total <= c.max*3/4 {
			break
		}
		if err := os.Remove(filepath.Join(c.dir, f.Name())); err == nil {
			total -= f.Size()
		}
	}
	return nil
}
