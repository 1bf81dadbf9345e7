package extract

import (
	"context"
	"fmt"

	"github.com/leafmill/leafmill/events"
)

// Kind is the family of a format, which decides how it is read.
type Kind string

// The kinds.
const (
	PDF   Kind = "pdf"
	Image Kind = "image" // PNG, JPEG, or TIFF with one page or more
	HTML  Kind = "html"
	Text  Kind = "text" // plain text, Markdown, CSV, JSON, source code
)

// Methods by which a unit's text was found.
const (
	TextLayer = "text_layer"
	OCR       = "ocr"
	Parser    = "parser"
)

// Bounds of a slice and of what one message carries. Sizes are bytes of UTF-8.
const (
	SliceUnits    = 64      // units of a slice at most
	SliceSegments = 16      // segments of text of a slice at most
	SliceScans    = 4       // scanned pages of a slice at most
	SegmentBytes  = 8 << 10 // text of a segment together, unless one unit has more
	PieceBytes    = 8 << 10 // text of a unit that is no page, at most
)

// Unit is a page of a PDF or image, or a piece of any other document.
type Unit struct {
	Number     int     // from 1
	Page       int     // from 1; always 1 of a document without pages
	Text       string  // may be empty
	Method     string  // TextLayer, OCR or Parser
	Confidence float64 // of recognised text, the mean of its words, 0 to 1; of other text 1
	Scan       bool    // the page has to be recognised; Text is what its text layer says besides, such as a stamp
	Warning    string  // a sentence when the text may be worse than it could be
	Err        error   // this unit cannot be read; the others can
}

// Document is an open document. It holds no resources but memory: there is no Close.
type Document struct {
	MediaType string // as found in the content
	Kind      Kind
	Units     int // number of units, at least 1
	Pages     int // pages of a PDF or image, else 1

	e        *Extractor
	path     string
	key      string // in the cache
	language string

	charset charset  // of a text
	pieces  []string // of a short text
	images  []size   // of an image's pages
}

// Read returns the next slice: units from the number given on, at least one, until 64
// units, 16 segments of text or 4 scanned pages are together or the document ends.
func (d *Document) Read(ctx context.Context, from int) ([]Unit, error) {
	if from < 1 || from > d.Units {
		return nil, fmt.Errorf("extract: unit %d of %d", from, d.Units)
	}
	switch d.Kind {
	case PDF:
		return d.readPDF(ctx, from)
	case Image:
		return d.readImage(from)
	default:
		return d.readText(ctx, from)
	}
}

// Recognize reads the image of a page of a PDF or image. A Failure of class NoOCR says
// that tesseract or poppler is not installed; Limit, Timeout and Corrupt are the page's.
func (d *Document) Recognize(ctx context.Context, number int) (Unit, error) {
	if number < 1 || number > d.Units {
		return Unit{}, fmt.Errorf("extract: unit %d of %d", number, d.Units)
	}
	switch d.Kind {
	case PDF:
		return d.recognizePDF(ctx, number)
	case Image:
		return d.recognizeImage(ctx, number)
	default:
		return Unit{}, fmt.Errorf("extract: %s has no pages to recognise", d.MediaType)
	}
}

// Segments cuts units into what one message carries: consecutive units with up to
// SegmentBytes of text together, or one scanned page. All text of the units is kept.
func Segments(units []Unit) [][]Unit {
	var all [][]Unit
	var m meter
	for i, u := range units {
		if m.add(u) || len(all) == 0 {
			all = append(all, nil)
		}
		all[len(all)-1] = append(all[len(all)-1], units[i])
	}
	return all
}

// meter counts the segments of consecutive units.
type meter struct {
	texts int  // segments of text
	scans int  // scanned pages, each a segment
	open  bool // the last segment is of text
	room  int  // bytes left in it
}

// add counts a unit and says whether it begins a segment.
func (m *meter) add(u Unit) bool {
	if u.Scan {
		m.scans++
		m.open = false
		return true
	}
	if m.open && len(u.Text) <= m.room {
		m.room -= len(u.Text)
		return false
	}
	m.texts++
	m.open, m.room = true, max(0, SegmentBytes-len(u.Text))
	return true
}

// slice collects the units of one reading.
type slice struct {
	units []Unit
	meter meter
}

// add takes the unit, or says that the slice is full without it.
func (s *slice) add(u Unit) bool {
	after := s.meter
	after.add(u)
	if len(s.units) == SliceUnits || s.meter.scans == SliceScans || after.texts > SliceSegments {
		return false
	}
	s.units, s.meter = append(s.units, u), after
	return true
}

// ofDocument says what a child's failure means for the whole document or one page: its
// own failures stay, an exit code becomes Corrupt with the sentence.
func ofDocument(err error, sentence string) error {
	if exited(err) {
		return events.Fail(events.Corrupt, "%s", sentence).Because(err)
	}
	return err
}
