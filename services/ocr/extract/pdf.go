package extract

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/leafmill/leafmill/events"
	"github.com/leafmill/leafmill/internal/sandbox"
)

// rangePages is how many pages are looked at together, from one page more than a multiple
// of it: more than a slice, because a start of the child costs as much as six pages, and
// fewer than would keep the first slice waiting. The result of a range lies in the cache.
const rangePages = 128

// rangePatience bounds the reading of a range page by page, after it failed as a whole.
const rangePatience = 2 * time.Minute

// pdfInfo is the cache's info.json.
type pdfInfo struct{ Pages int }

// pdfPage is a page in the cache's files of ranges.
type pdfPage struct {
	Text    string  `json:",omitempty"`
	Scan    bool    `json:",omitempty"`
	Width   float64 `json:",omitempty"` // in points, of scans
	Height  float64 `json:",omitempty"`
	Class   string  `json:",omitempty"` // of the failure of this page
	Message string  `json:",omitempty"`
}

func (p *pdfPage) fail(f *events.Failure) { p.Class, p.Message = string(f.Class), f.Message }

func (p *pdfPage) unit(number int) Unit {
	u := Unit{Number: number, Page: number, Text: p.Text, Scan: p.Scan, Method: TextLayer, Confidence: 1}
	if p.Scan {
		u.Method, u.Confidence = OCR, 0
	}
	if p.Class != "" {
		u.Err = events.Fail(events.Class(p.Class), "%s", p.Message)
	}
	return u
}

// openPDF counts the pages.
func (d *Document) openPDF(ctx context.Context) error {
	const name = "info.json"
	info, ok := cached[pdfInfo](d, name)
	if !ok {
		out, err := d.poppler(ctx, "pdfinfo", d.path)
		if err != nil {
			return err
		}
		if strings.Contains(field(out, "Encrypted"), "copy:no") {
			return events.Fail(events.Encrypted, "The PDF's owner forbids copying its text: hand in a copy without that restriction.")
		}
		if info.Pages, err = strconv.Atoi(field(out, "Pages")); err != nil || info.Pages < 1 {
			return events.Fail(events.Corrupt, "The PDF has no readable pages.")
		}
		d.keep(name, info)
	}
	if info.Pages > d.e.config.MaxPages {
		return events.Fail(events.Limit, "The PDF has %d pages, more than the limit of %d: split it.", info.Pages, d.e.config.MaxPages)
	}
	d.Units, d.Pages = info.Pages, info.Pages
	return nil
}

func (d *Document) readPDF(ctx context.Context, from int) ([]Unit, error) {
	var s slice
	for n := from; n <= d.Units; {
		first, pages, err := d.pdfRange(ctx, n)
		if err != nil {
			return nil, err
		}
		for ; n < first+len(pages); n++ {
			if !s.add(pages[n-first].unit(n)) {
				return s.units, nil
			}
		}
		if len(s.units) == SliceUnits || s.meter.scans == SliceScans {
			break // do not look at the next range for nothing
		}
	}
	return s.units, nil
}

// pdfPageOf is what is known of one page.
func (d *Document) pdfPageOf(ctx context.Context, number int) (pdfPage, error) {
	first, pages, err := d.pdfRange(ctx, number)
	if err != nil {
		return pdfPage{}, err
	}
	return pages[number-first], nil
}

// pdfRange looks at the range of pages around one.
func (d *Document) pdfRange(ctx context.Context, number int) (first int, pages []pdfPage, err error) {
	first = (number-1)/rangePages*rangePages + 1
	count := min(rangePages, d.Units-first+1)
	name := fmt.Sprintf("pages-%05d.json", first)
	if pages, ok := cached[[]pdfPage](d, name); ok && len(pages) == count {
		return first, pages, nil
	}
	pages, err = d.lookAt(ctx, first, count)
	if err != nil {
		return 0, nil, err
	}
	lasting := true
	for _, p := range pages {
		lasting = lasting && (p.Class == "" || !events.Class(p.Class).Transient())
	}
	if lasting { // a page that took too long may be read another time
		d.keep(name, pages)
	}
	return first, pages, nil
}

// lookAt reads the text layer of pages and finds the scans among them.
func (d *Document) lookAt(ctx context.Context, first, count int) ([]pdfPage, error) {
	pages, err := d.textLayer(ctx, first, count)
	if err != nil {
		return nil, err
	}
	// Only pages with little or strange text are worth a look at their size and images. One
	// that failed is kept out of it: it would fail the others again.
	for from := 0; from < count; {
		to, last := from, -1
		for ; to < count && pages[to].Class == ""; to++ {
			if suspicious(pages[to].Text) {
				if last < 0 {
					from = to
				}
				last = to
			}
		}
		if last >= 0 {
			span := pages[from : last+1]
			covered, err := d.coverage(ctx, span, first+from)
			if err != nil {
				return nil, err
			}
			for i := range span {
				if suspicious(span[i].Text) {
					span[i].judge(covered[i])
				}
			}
		}
		from = to + 1
	}
	return pages, nil
}

// textLayer runs pdftotext over a range, and over each of its pages when that fails.
func (d *Document) textLayer(ctx context.Context, first, count int) ([]pdfPage, error) {
	texts, err := d.pdftotext(ctx, first, count)
	if err == nil && len(texts) == count {
		return texts, nil
	}
	if err != nil && !ofPage(err) {
		return nil, err
	}
	if count == 1 {
		if err == nil {
			// No page came out, or the text itself has form feeds.
			if len(texts) > 1 {
				joined := pdfPage{}
				for _, t := range texts {
					joined.Text += t.Text + "\n"
				}
				return []pdfPage{joined}, nil
			}
			err = events.Fail(events.Corrupt, "Page %d of the PDF cannot be read.", first)
		}
		f, _ := errors.AsType[*events.Failure](err)
		failed := pdfPage{}
		failed.fail(f)
		return []pdfPage{failed}, nil
	}
	pages := make([]pdfPage, count)
	deadline := time.Now().Add(rangePatience)
	for i := range pages {
		if time.Now().After(deadline) {
			pages[i].fail(events.Fail(events.Timeout, "Page %d was not read: the pages around it took too long.", first+i))
			continue
		}
		one, err := d.textLayer(ctx, first+i, 1)
		if err != nil {
			return nil, err
		}
		pages[i] = one[0]
	}
	return pages, nil
}

func (d *Document) pdftotext(ctx context.Context, first, count int) ([]pdfPage, error) {
	out, err := d.poppler(ctx, "pdftotext", "-enc", "UTF-8", "-eol", "unix", "-q",
		"-f", strconv.Itoa(first), "-l", strconv.Itoa(first+count-1), d.path, "-")
	if err != nil {
		return nil, err
	}
	var pages []pdfPage
	for text := range bytes.SplitSeq(bytes.TrimSuffix(out, []byte("\f")), []byte("\f")) {
		pages = append(pages, pdfPage{Text: strings.Trim(clean(text), "\n")})
	}
	if len(out) == 0 {
		return nil, nil
	}
	return pages, nil
}

var pageSize = regexp.MustCompile(`(?m)^Page\s+(\d+) size:\s+([\d.]+) x ([\d.]+) pts`)

// coverage finds the sizes of pages, and which part of each its images cover. When the
// images cannot be listed, pages count as covered: recognition will show.
func (d *Document) coverage(ctx context.Context, pages []pdfPage, first int) ([]float64, error) {
	span := []string{"-f", strconv.Itoa(first), "-l", strconv.Itoa(first + len(pages) - 1)}
	covered := make([]float64, len(pages))
	sizes, err := d.poppler(ctx, "pdfinfo", append(span, d.path)...)
	if err != nil && !ofPage(err) {
		return nil, err
	}
	for _, m := range pageSize.FindAllSubmatch(sizes, -1) {
		if n, err := strconv.Atoi(string(m[1])); err == nil && n >= first && n < first+len(pages) {
			p := &pages[n-first]
			p.Width, _ = strconv.ParseFloat(string(m[2]), 64)
			p.Height, _ = strconv.ParseFloat(string(m[3]), 64)
		}
	}
	images, err := d.poppler(ctx, "pdfimages", append(append([]string{"-list"}, span...), d.path)...)
	if err != nil {
		if !ofPage(err) {
			return nil, err
		}
		for i := range covered {
			covered[i] = 1
		}
		return covered, nil
	}
	for line := range strings.Lines(string(images)) {
		n, inches, ok := imageArea(line)
		if !ok || n < first || n >= first+len(pages) {
			continue
		}
		if p := pages[n-first]; p.Width > 0 && p.Height > 0 {
			covered[n-first] += inches * 72 * 72 / (p.Width * p.Height)
		}
	}
	return covered, nil
}

// imageArea reads a line of `pdfimages -list`: page, number, type, width, height, ...,
// x-ppi, y-ppi, size, ratio. Masks lie over an image that is listed itself.
func imageArea(line string) (page int, squareInches float64, ok bool) {
	f := strings.Fields(line)
	if len(f) < 13 || f[2] != "image" && f[2] != "stencil" {
		return 0, 0, false
	}
	var n [5]float64
	for i, s := range []string{f[0], f[3], f[4], f[len(f)-4], f[len(f)-3]} {
		v, err := strconv.ParseFloat(s, 64)
		if err != nil {
			return 0, 0, false
		}
		n[i] = v
	}
	if n[3] <= 0 || n[4] <= 0 {
		return 0, 0, false
	}
	return int(n[0]), n[1] / n[3] * n[2] / n[4], true
}

// poppler runs one of its tools and returns what it prints.
func (d *Document) poppler(ctx context.Context, tool string, args ...string) ([]byte, error) {
	var out bytes.Buffer
	err := d.e.withChild(ctx, d.e.text, func(w *sandbox.Work) error {
		_, err := w.Run(ctx, sandbox.Command{Tool: tool, Args: args, Stdout: &out,
			Limits: sandbox.Limits{Time: d.e.config.TextTimeout}})
		return err
	})
	if errors.Is(err, sandbox.ErrNoTool) {
		return nil, noPoppler(err)
	}
	if exit, ok := errors.AsType[*sandbox.ExitError](err); ok {
		if strings.Contains(exit.Stderr, "Incorrect password") || strings.Contains(exit.Stderr, "security handler") {
			return nil, events.Fail(events.Encrypted, "The PDF needs a password: hand in a copy without one.").Because(err)
		}
		return nil, events.Fail(events.Corrupt, "The PDF is damaged or cut off: open it in a viewer and save it again.").Because(err)
	}
	if err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

func noPoppler(err error) *events.Failure {
	return events.Fail(events.NoOCR, "PDFs cannot be read here because poppler is not installed: apt-get install poppler-utils.").Because(err)
}

// ofPage says that an error may be the fault of one page of a range.
func ofPage(err error) bool {
	if _, ok := errors.AsType[*events.Failure](err); !ok {
		return false
	}
	switch events.ClassOf(err) {
	case events.Timeout, events.Limit, events.Corrupt:
		return true
	}
	return false
}

// field finds "Name:   value" in the output of pdfinfo. A title may hold line breaks and so
// forge a field, but titles are printed first: the last of a name is poppler's own.
func field(out []byte, name string) (value string) {
	for line := range strings.Lines(string(out)) {
		if v, ok := strings.CutPrefix(line, name+":"); ok {
			value = strings.TrimSpace(v)
		}
	}
	return value
}

// cached reads a file of the document's cache entry. One that cannot be read is none.
func cached[T any](d *Document, name string) (v T, ok bool) {
	dir, ok := d.e.cache.use(d.key)
	if !ok {
		return v, false
	}
	data, err := os.ReadFile(filepath.Join(dir, name))
	return v, err == nil && json.Unmarshal(data, &v) == nil
}

// keep writes a file of the document's cache entry. Without it the work is done again.
func (d *Document) keep(name string, v any) {
	data, err := json.Marshal(v)
	if err == nil {
		err = d.e.cache.put(d.key, name, data)
	}
	if err != nil {
		d.e.config.Log.Warn("cannot keep what was found out about a document", "error", err)
	}
}
