package extract

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/text/transform"

	"github.com/leafmill/leafmill/events"
	"github.com/leafmill/leafmill/internal/sandbox"
)

// smallText is the size of a file up to which it is cut into pieces in memory whenever it
// is opened: it is read in one slice or hardly more, so a cache would cost more than it saves.
const smallText = 128 << 10

// Files of a longer text in the cache: the pieces one after another, and where each ends
// in that, 8 bytes little endian.
const (
	textFile = "text"
	endsFile = "ends"
)

// openText cuts a document without pages into pieces.
func (d *Document) openText(ctx context.Context, f *os.File) error {
	d.Pages = 1
	if d.key == "" {
		err := d.eachPiece(ctx, f, func(p []byte) error {
			d.pieces = append(d.pieces, string(p))
			return nil
		})
		if len(d.pieces) == 0 {
			d.pieces = []string{""} // valid, with nothing in it
		}
		d.Units = len(d.pieces)
		return err
	}
	dir, err := d.textDir(ctx)
	if err != nil {
		return err
	}
	info, err := os.Stat(filepath.Join(dir, endsFile))
	if err != nil {
		return fmt.Errorf("extract: %w", err)
	}
	d.Units = max(1, int(info.Size()/8))
	return nil
}

func (d *Document) readText(ctx context.Context, from int) ([]Unit, error) {
	var s slice
	add := func(n int, text string) bool {
		return s.add(Unit{Number: n, Page: 1, Text: text, Method: Parser, Confidence: 1})
	}
	if d.key == "" {
		for n := from; n <= d.Units && add(n, d.pieces[n-1]); n++ {
		}
		return s.units, nil
	}
	texts, err := d.storedPieces(ctx, from)
	if errors.Is(err, fs.ErrNotExist) {
		texts, err = d.storedPieces(ctx, from) // the cache was cleared in between
	}
	if err != nil {
		return nil, err
	}
	for i, text := range texts {
		if !add(from+i, text) {
			break
		}
	}
	return s.units, nil
}

// storedPieces reads the pieces that can be in one slice.
func (d *Document) storedPieces(ctx context.Context, from int) ([]string, error) {
	dir, err := d.textDir(ctx)
	if err != nil {
		return nil, err
	}
	ends, err := os.Open(filepath.Join(dir, endsFile))
	if err != nil {
		return nil, err
	}
	defer ends.Close()
	count := min(SliceUnits, d.Units-from+1)
	raw := make([]byte, 8*(count+1)) // the end before the first, too
	first := int64(from-2) * 8
	if from == 1 {
		_, err = io.ReadFull(io.NewSectionReader(ends, 0, int64(8*count)), raw[8:])
	} else {
		_, err = io.ReadFull(io.NewSectionReader(ends, first, int64(len(raw))), raw)
	}
	if errors.Is(err, io.EOF) && d.Units == 1 {
		return []string{""}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("extract: cache of %s: %w", d.path, err)
	}
	at := func(i int) int64 { return int64(binary.LittleEndian.Uint64(raw[8*i:])) }
	// A slice holds at most its segments' bytes of pieces, and one piece.
	for count > 1 && at(count)-at(0) > (SliceSegments+1)*SegmentBytes {
		count--
	}
	text, err := os.Open(filepath.Join(dir, textFile))
	if err != nil {
		return nil, err
	}
	defer text.Close()
	buf := make([]byte, at(count)-at(0))
	if _, err := text.ReadAt(buf, at(0)); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("extract: cache of %s: %w", d.path, err)
	}
	pieces := make([]string, count)
	for i := range pieces {
		pieces[i] = string(buf[at(i)-at(0) : at(i+1)-at(0)])
	}
	return pieces, nil
}

// textDir is the cache's folder with the document's pieces; they are made when it has none.
func (d *Document) textDir(ctx context.Context) (string, error) {
	if dir, ok := d.e.cache.use(d.key); ok {
		return dir, nil
	}
	return d.e.cache.build(d.key, func(dir string) error {
		f, err := os.Open(d.path)
		if err != nil {
			return fmt.Errorf("extract: %w", err)
		}
		defer f.Close()
		text, err := os.Create(filepath.Join(dir, textFile))
		if err != nil {
			return err
		}
		defer text.Close()
		ends, err := os.Create(filepath.Join(dir, endsFile))
		if err != nil {
			return err
		}
		defer ends.Close()
		var end uint64
		index := bufio.NewWriter(ends)
		err = d.eachPiece(ctx, f, func(p []byte) error {
			end += uint64(len(p))
			_, err := text.Write(p)
			return errors.Join(err, binary.Write(index, binary.LittleEndian, end))
		})
		if err != nil {
			return err
		}
		// A crash must not leave a folder of its name with half of the text.
		return errors.Join(index.Flush(), text.Sync(), ends.Sync())
	})
}

// eachPiece decodes and parses the whole document and gives out its pieces.
func (d *Document) eachPiece(ctx context.Context, f *os.File, emit func([]byte) error) error {
	var total int64
	pieces := &splitter{emit: func(p []byte) error {
		if total += int64(len(p)); total > d.e.config.MaxText {
			return events.Fail(events.Limit, "The document has more than %d MB of text: split it.", d.e.config.MaxText>>20)
		}
		return emit(p)
	}}
	out := transform.NewWriter(pieces, cleaner{})
	in := transform.NewReader(&contextReader{ctx, f}, d.charset.enc.NewDecoder())
	var err error
	if d.Kind == HTML {
		err = d.e.withChild(ctx, d.e.text, func(w *sandbox.Work) error {
			_, err := w.Run(ctx, sandbox.Command{Parser: htmlParser, Stdin: in, Stdout: out,
				Limits: sandbox.Limits{Time: d.e.config.TextTimeout, Output: d.e.config.MaxText + 1}})
			return ofDocument(err, "The HTML cannot be read: it is nested too deeply or broken.")
		})
	} else {
		_, err = io.Copy(out, in)
	}
	if err != nil {
		return err
	}
	if err := out.Close(); err != nil {
		return err
	}
	return pieces.Close()
}

// contextReader ends with its context.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}
