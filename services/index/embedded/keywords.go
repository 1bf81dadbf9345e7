package embedded

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/blevesearch/bleve/v2"
	"github.com/blevesearch/bleve/v2/analysis"
	blevedoc "github.com/blevesearch/bleve/v2/document"
	"github.com/blevesearch/bleve/v2/index/scorch"
	"github.com/blevesearch/bleve/v2/mapping"
	bleveindex "github.com/blevesearch/bleve_index_api"
	"golang.org/x/sync/semaphore"
)

// keywords is the inverted index, in Bleve: one document a chunk, named by its row, with
// its terms in a field of its language and two exact fields to filter by. It is derived:
// its batches are applied to memory and written to disk by and by, and what a crash takes
// from it, open finds missing and reconcile brings back from SQLite.
//
// Bleve keeps and merges the postings; the ranking is ours (bm25.go).
type keywords struct {
	dir       string
	index     bleve.Index
	analyzers *analyzers
	fields    []string // of the languages

	room    *semaphore.Weighted // for batches that Bleve has not written to disk yet
	pending []posting           // committed, not yet applied; the writer's
	dead    []int64             // not seen any more, not yet taken out; the writer's
}

// posting is a chunk on its way into the inverted index.
type posting struct {
	row                  int64
	language             int
	collection, document string
	terms                analysis.TokenStream
}

const (
	collectionField = "c"
	documentField   = "d"
	textOptions     = bleveindex.IndexField
	filterOptions   = bleveindex.IndexField | bleveindex.SkipFreqNorm
)

var (
	versionKey = []byte("leafmill.analysis")
	highestKey = []byte("leafmill.row")
)

// openKeywords opens the index in dir, or makes an empty one when there is none, it is
// damaged, or its texts were analysed otherwise. highest is the highest row that SQLite
// ever gave: an index that knows a higher one has outlived it and is not ours.
func openKeywords(dir string, a *analyzers, highest int64) (*keywords, error) {
	k := &keywords{dir: dir, analyzers: a, room: semaphore.NewWeighted(maxUnwritten)}
	for _, l := range a.languages {
		k.fields = append(k.fields, "text_"+l.code)
	}
	err := k.open(highest)
	if err == nil {
		return k, nil
	}
	if _, missing := os.Stat(dir); missing == nil {
		slog.Warn("the keyword index is built anew", "reason", err)
	}
	if err := os.RemoveAll(dir); err != nil {
		return nil, fmt.Errorf("index: keyword index: %w", err)
	}
	k.index, err = bleve.NewUsing(dir, mapping.NewIndexMapping(), scorch.Name, scorch.Name, options())
	if err != nil {
		return nil, fmt.Errorf("index: keyword index: %w", err)
	}
	b := k.index.NewBatch()
	b.SetInternal(versionKey, []byte(analysisVersion))
	return k, k.batch(b, 1)
}

// persistMilliseconds is how long Bleve gathers batches in memory before it writes them.
const persistMilliseconds = 400

// options trade Bleve's own durability, which SQLite has already given, for batches that
// are searchable in a millisecond, and few files.
func options() map[string]any {
	return map[string]any{
		"unsafe_batch": true,
		"scorchPersisterOptions": map[string]any{
			"PersisterNapTimeMSec":          persistMilliseconds,
			"PersisterNapUnderNumFiles":     1000,
			"NumPersisterWorkers":           1,
			"MaxSizeInMemoryMergePerWorker": 0,
		},
		"scorchMergePlanOptions": map[string]any{
			"MaxSegmentsPerTier":   10,
			"MaxSegmentSize":       5_000_000,
			"TierGrowth":           10.0,
			"SegmentsPerMergeTask": 10,
			"FloorSegmentSize":     2000,
			"ReclaimDeletesWeight": 2.0,
		},
	}
}

func (k *keywords) open(highest int64) (err error) {
	defer func() { // a damaged file is met by a panic here and there
		if p := recover(); p != nil {
			err = fmt.Errorf("damaged: %v", p)
		}
	}()
	if err := verifySegments(filepath.Join(k.dir, "store")); err != nil {
		return err
	}
	idx, err := bleve.OpenUsing(k.dir, options())
	if err != nil {
		return err
	}
	version, err := idx.GetInternal(versionKey)
	if err == nil && string(version) != analysisVersion {
		err = fmt.Errorf("analysed as version %q, now %q", version, analysisVersion)
	}
	if err == nil {
		var row []byte
		if row, err = idx.GetInternal(highestKey); err == nil && len(row) == 8 &&
			int64(binary.BigEndian.Uint64(row)) > highest {
			err = fmt.Errorf("it knows row %d, the store only %d", binary.BigEndian.Uint64(row), highest)
		}
	}
	if err != nil {
		_ = idx.Close()
		return err
	}
	k.index = idx
	return nil
}

// verifySegments checks the checksum that ends every segment file, which Bleve writes and
// does not read.
func verifySegments(dir string) error {
	files, err := filepath.Glob(filepath.Join(dir, "*.zap"))
	if err != nil {
		return err
	}
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		h := crc32.NewIEEE()
		info, err := f.Stat()
		var want [4]byte
		if err == nil && info.Size() > 4 {
			if _, err = io.CopyN(h, f, info.Size()-4); err == nil {
				_, err = io.ReadFull(f, want[:])
			}
		}
		_ = f.Close()
		if err != nil {
			return err
		}
		if h.Sum32() != binary.BigEndian.Uint32(want[:]) {
			return fmt.Errorf("checksum of %s is wrong", filepath.Base(name))
		}
	}
	return nil
}

// flush applies what is pending.
func (k *keywords) flush() error {
	if len(k.pending) == 0 {
		return nil
	}
	if err := k.apply(k.pending, k.dead); err != nil {
		return err
	}
	k.pending, k.dead = nil, nil
	return nil
}

// sweep takes out what is dead.
func (k *keywords) sweep() error {
	if err := k.apply(nil, k.dead); err != nil {
		return err
	}
	k.dead = nil
	return nil
}

// apply puts postings in and takes dead rows out; what it put in is searchable when it
// returns.
func (k *keywords) apply(add []posting, dead []int64) error {
	if len(add) == 0 && len(dead) == 0 {
		return nil
	}
	b := k.index.NewBatch()
	highest, size := int64(0), 0
	for _, p := range add {
		highest = max(highest, p.row)
		size += len(p.terms)
		d := blevedoc.NewDocument(rowID(p.row))
		d.AddField(blevedoc.NewTextFieldCustom(k.fields[p.language], nil, nil, textOptions, analyzed(p.terms)))
		d.AddField(blevedoc.NewTextFieldCustom(collectionField, nil, []byte(p.collection), filterOptions, nil))
		d.AddField(blevedoc.NewTextFieldCustom(documentField, nil, []byte(p.document), filterOptions, nil))
		if err := b.IndexAdvanced(d); err != nil {
			return fmt.Errorf("index: keyword index: %w", err)
		}
	}
	for _, row := range dead {
		b.Delete(rowID(row))
	}
	if highest > 0 {
		b.SetInternal(highestKey, binary.BigEndian.AppendUint64(nil, uint64(highest)))
	}
	return k.batch(b, 100*size+50*len(dead))
}

const (
	maxUnwritten = 64 << 20 // estimated bytes of batches that are not on disk yet
	maxWait      = 10 * time.Second
)

// batch applies a batch when there is room for its size until Bleve has written it.
func (k *keywords) batch(b *bleve.Batch, size int) error {
	weight := min(int64(size), maxUnwritten)
	ctx, cancel := context.WithTimeout(background, maxWait)
	defer cancel()
	if err := k.room.Acquire(ctx, weight); err != nil {
		return fmt.Errorf("index: keyword index: the disk does not keep up: %w", err)
	}
	b.SetPersistedCallback(func(error) { k.room.Release(weight) })
	if err := k.index.Batch(b); err != nil {
		k.room.Release(weight)
		return fmt.Errorf("index: keyword index: %w", err)
	}
	return nil
}

// rows lists the rows that the index has.
func (k *keywords) rows(ctx context.Context) (rows map[int64]bool, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("damaged: %v", p)
		}
	}()
	r, err := k.reader()
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.Close() }()
	ids, err := r.DocIDReaderAll()
	if err != nil {
		return nil, err
	}
	defer func() { _ = ids.Close() }()
	rows = map[int64]bool{}
	for ctx.Err() == nil {
		id, err := ids.Next()
		if err != nil {
			return nil, err
		}
		if id == nil {
			return rows, nil
		}
		name, err := r.ExternalID(id)
		if err != nil {
			return nil, err
		}
		row, err := strconv.ParseInt(name, 10, 64)
		if err != nil {
			return nil, err
		}
		rows[row] = true
	}
	return nil, ctx.Err()
}

func (k *keywords) reader() (bleveindex.IndexReader, error) {
	low, err := k.index.Advanced()
	if err != nil {
		return nil, err
	}
	return low.Reader()
}

// close waits until Bleve has written all, so that the next start need not do it again.
func (k *keywords) close() error {
	ctx, cancel := context.WithTimeout(background, maxWait)
	defer cancel()
	return errors.Join(k.room.Acquire(ctx, maxUnwritten), k.index.Close())
}

func rowID(row int64) string { return strconv.FormatInt(row, 10) }

// analyzed is an analyser for one text whose terms are there already.
type analyzed analysis.TokenStream

func (a analyzed) Analyze([]byte) analysis.TokenStream { return analysis.TokenStream(a) }
