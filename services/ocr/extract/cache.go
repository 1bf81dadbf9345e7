package extract

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// version is part of every key: raise it when the same bytes give other units.
const version = "v1"

// cache keeps folders of what was derived from documents. A folder appears whole or not
// at all; any may vanish at any time. Several processes may share it.
type cache struct {
	dir   string
	max   int64        // bytes
	fresh atomic.Int64 // bytes written since the last pruning
	prune sync.Mutex
}

// cacheEntries is how many documents are kept at most, and entryBytes what one counts at
// least, so that many small ones are pruned too.
const (
	cacheEntries = 50_000
	entryBytes   = 16 << 10
)

func newCache(dir string, limit int64) (*cache, error) {
	c := &cache{dir: dir, max: limit}
	c.fresh.Store(limit) // what lies there already is looked at with the first entry
	return c, os.MkdirAll(dir, 0o700)
}

func (c *cache) path(key string) string { return filepath.Join(c.dir, key[:2], key) }

// use finds an entry and notes that it was used.
func (c *cache) use(key string) (string, bool) {
	dir := c.path(key)
	now := time.Now()
	return dir, os.Chtimes(dir, now, now) == nil
}

// build makes an entry. When another has made it in the meantime, that one stays.
func (c *cache) build(key string, fill func(dir string) error) (string, error) {
	tmp, err := os.MkdirTemp(c.dir, "new-")
	if err != nil {
		return "", fmt.Errorf("extract: cache: %w", err)
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	if err := fill(tmp); err != nil {
		return "", err
	}
	dir := c.path(key)
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return "", fmt.Errorf("extract: cache: %w", err)
	}
	size := sizeOf(tmp)
	if err := os.Rename(tmp, dir); err != nil && !errors.Is(err, fs.ErrExist) && !errors.Is(err, syscall.ENOTEMPTY) {
		return "", fmt.Errorf("extract: cache: %w", err)
	}
	c.wrote(size)
	return dir, nil
}

// put writes one file of an entry, whole or not at all.
func (c *cache) put(key, name string, data []byte) error {
	dir := c.path(key)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("extract: cache: %w", err)
	}
	f, err := os.CreateTemp(dir, "new-")
	if err != nil {
		return fmt.Errorf("extract: cache: %w", err)
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), filepath.Join(dir, name))
	}
	if err != nil {
		return fmt.Errorf("extract: cache: %w", errors.Join(err, os.Remove(f.Name())))
	}
	c.wrote(int64(len(data)))
	return nil
}

// wrote counts, and prunes when an eighth of the cache is new.
func (c *cache) wrote(size int64) {
	if c.fresh.Add(max(size, entryBytes)) < c.max/8 || !c.prune.TryLock() {
		return
	}
	defer c.prune.Unlock()
	c.fresh.Store(0)
	c.removeOld()
}

// removeOld keeps the entries used last, up to the limits, and no unfinished ones of
// processes that are gone.
func (c *cache) removeOld() {
	type entry struct {
		dir  string
		used time.Time
		size int64
	}
	var entries []entry
	var total int64
	dirs, _ := filepath.Glob(filepath.Join(c.dir, "??", "*"))
	for _, dir := range dirs {
		if info, err := os.Stat(dir); err == nil {
			e := entry{dir, info.ModTime(), max(sizeOf(dir), entryBytes)}
			entries = append(entries, e)
			total += e.size
		}
	}
	slices.SortFunc(entries, func(a, b entry) int { return a.used.Compare(b.used) })
	for len(entries) > 0 && (total > c.max*3/4 || len(entries) > cacheEntries) {
		_ = os.RemoveAll(entries[0].dir) // what stays is tried again
		total -= entries[0].size
		entries = entries[1:]
	}
	unfinished, _ := filepath.Glob(filepath.Join(c.dir, "new-*"))
	for _, dir := range unfinished {
		if info, err := os.Stat(dir); err == nil && time.Since(info.ModTime()) > time.Hour {
			_ = os.RemoveAll(dir)
		}
	}
}

func sizeOf(dir string) (size int64) {
	files, _ := os.ReadDir(dir)
	for _, f := range files {
		if info, err := f.Info(); err == nil {
			size += info.Size()
		}
	}
	return size
}

// fileID names a file's content for as long as it is not written.
type fileID struct {
	path     string
	inode    uint64
	size     int64
	modified time.Time
}

// key names a document's entry in the cache by its content.
func (e *Extractor) key(f *os.File, info os.FileInfo, hint Hint) (string, error) {
	if b, err := hex.DecodeString(hint.SHA256); err == nil && len(b) == sha256.Size {
		return hex.EncodeToString(b) + "-" + version, nil
	}
	id := fileID{path: f.Name(), size: info.Size(), modified: info.ModTime()}
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		id.inode = s.Ino
	}
	if key, ok := e.hashes.Get(id); ok {
		return key, nil
	}
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(f, 0, info.Size())); err != nil {
		return "", fmt.Errorf("extract: %w", err)
	}
	key := hex.EncodeToString(h.Sum(nil)) + "-" + version
	e.hashes.Add(id, key)
	return key, nil
}
