package extract

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"go.uber.org/goleak"

	"github.com/leafmill/leafmill/events"
	"github.com/leafmill/leafmill/internal/sandbox"
)

func TestMain(m *testing.M) {
	sandbox.Main(Parsers())
	goleak.VerifyTestMain(m)
}

func open(t testing.TB, c Config, path string, hint Hint) (*Document, error) {
	t.Helper()
	if c.Dir == "" {
		c.Dir = t.TempDir()
	}
	e, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if left, _ := filepath.Glob(filepath.Join(c.Dir, "work", "*", "task-*")); len(left) > 0 {
			t.Errorf("work directories left behind: %v", left)
		}
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e.Open(t.Context(), path, hint)
}

func mustOpen(t testing.TB, c Config, path string, hint Hint) *Document {
	t.Helper()
	d, err := open(t, c, path, hint)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// file writes a document for a test.
func file(t testing.TB, name string, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// walk reads a document slice by slice as the service does, and checks what every
// document promises.
func walk(t testing.TB, d *Document) []Unit {
	t.Helper()
	var units []Unit
	for len(units) < d.Units {
		s, err := d.Read(t.Context(), len(units)+1)
		if err != nil {
			t.Fatal(err)
		}
		if len(s) == 0 {
			t.Fatalf("an empty slice at unit %d of %d", len(units)+1, d.Units)
		}
		checkSlice(t, s)
		units = append(units, s...)
	}
	for i, u := range units {
		if u.Number != i+1 {
			t.Fatalf("unit %d comes as number %d", i+1, u.Number)
		}
		if u.Scan {
			r, err := d.Recognize(t.Context(), u.Number)
			if err != nil {
				t.Fatalf("unit %d: %v", u.Number, err)
			}
			if r.Number != u.Number || r.Page != u.Page || r.Scan || r.Method != OCR {
				t.Errorf("unit %d was recognised as %+v", u.Number, r)
			}
			units[i] = r
		}
		if text := units[i].Text; !utf8.ValidString(text) || strings.ContainsAny(text, "\x00\r\f") {
			t.Errorf("unit %d: not clean: %.80q", u.Number, text)
		}
	}
	return units
}

func checkSlice(t testing.TB, s []Unit) {
	t.Helper()
	scans, texts := 0, 0
	for _, segment := range Segments(s) {
		size := 0
		for _, u := range segment {
			size += len(u.Text)
		}
		switch {
		case segment[0].Scan && len(segment) > 1, size > SegmentBytes && len(segment) > 1:
			t.Errorf("a segment of %d units, %d bytes", len(segment), size)
		case segment[0].Scan:
			scans++
		default:
			texts++
		}
	}
	if len(s) > SliceUnits || scans > SliceScans || texts > SliceSegments {
		t.Errorf("a slice of %d units, %d scans and %d segments", len(s), scans, texts)
	}
}

func texts(units []Unit) []string {
	all := make([]string, len(units))
	for i, u := range units {
		all[i] = u.Text
	}
	return all
}

// TestDocuments reads real documents with the real tools and compares with the truth.
func TestDocuments(t *testing.T) {
	all := []string{TextLayer, TextLayer, TextLayer, TextLayer}
	for _, test := range []struct {
		file, media, language string
		methods               []string // of the units
		cer                   float64  // at most
		contains, lacks       []string
	}{
		{file: "mixed.pdf", media: "application/pdf", language: "en", methods: []string{TextLayer, OCR, TextLayer, OCR}, cer: .005,
			contains: []string{"Scanned by ACME Gateway 2026-03-01"}},
		{file: "latex-4p.pdf", media: "application/pdf", methods: all},
		{file: "garbage-layer.pdf", media: "application/pdf", language: "eng", methods: []string{OCR}, cer: .005},
		{file: "nasty-js-launch.pdf", media: "application/pdf", methods: []string{TextLayer}, cer: .001},
		{file: "two-column-text.pdf", media: "application/pdf", methods: []string{TextLayer}, cer: .01},
		{file: "multipage.tif", media: "image/tiff", language: "en", methods: []string{OCR, OCR, OCR}, cer: .01},
		{file: "german-300dpi.png", media: "image/png", language: "de-AT", methods: []string{OCR}, cer: .005, contains: []string{"Sie hängt sehr davon ab"}},
		{file: "spanish-photo.jpg", media: "image/jpeg", methods: []string{OCR}, cer: .02},
		{file: "page-cp1252.html", media: "text/html", methods: []string{Parser}, cer: .05,
			contains: []string{"# Größen & Preise", "| Müller’s Straße | 12,50 |"}, lacks: []string{"do not index", "color:red", "hidden text"}},
		{file: "notes.md", media: "text/markdown", methods: []string{Parser}, cer: 0},
		{file: "latin1.txt", media: "text/plain", methods: []string{Parser}, cer: 0},
		{file: "utf16le.csv", media: "text/csv", methods: []string{Parser}, cer: .04}, // the truth is without quotes
	} {
		t.Run(test.file, func(t *testing.T) {
			t.Parallel()
			// The name lies about everything but Markdown and CSV, which content cannot tell.
			d := mustOpen(t, Config{}, filepath.Join("testdata", test.file),
				Hint{Name: "lie" + strings.NewReplacer(".pdf", ".png", ".png", ".pdf").Replace(filepath.Ext(test.file)), Language: test.language})
			units := walk(t, d)
			if d.MediaType != test.media || len(units) != len(test.methods) {
				t.Fatalf("%s with %d units", d.MediaType, len(units))
			}
			for i, u := range units {
				if u.Method != test.methods[i] || u.Err != nil || u.Warning != "" || u.Confidence < .85 || u.Confidence > 1 {
					t.Errorf("unit %d: %+v", u.Number, u)
				}
			}
			got := strings.Join(texts(units), "\f")
			for _, want := range test.contains {
				if strings.Count(got, want) != 1 {
					t.Errorf("%q occurs %d times in\n%s", want, strings.Count(got, want), got)
				}
			}
			for _, not := range test.lacks {
				if strings.Contains(got, not) {
					t.Errorf("found %q", not)
				}
			}
			truth, err := os.ReadFile(filepath.Join("testdata", "truth", test.file+".txt"))
			if errors.Is(err, os.ErrNotExist) && len(got) > 3000 {
				return
			}
			if e := errorRate(string(truth), got); e > test.cer {
				t.Errorf("character error rate %.4f, at most %.4f was expected:\n%s", e, test.cer, got)
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	header := "IHDR\x00\x00\x9c\x40\x00\x00\x9c\x40\x01\x00\x00\x00\x00"
	huge := "\x89PNG\r\n\x1a\n\x00\x00\x00\r" + header + string(binary.BigEndian.AppendUint32(nil, crc32.ChecksumIEEE([]byte(header))))
	for _, test := range []struct {
		name  string
		path  string
		class events.Class
		says  string
	}{
		{"zero bytes", file(t, "a.pdf", nil), events.Empty, ""},
		{"password", "testdata/nasty-encrypted.pdf", events.Encrypted, "password"},
		{"owner's lock", "testdata/owner-locked.pdf", events.Encrypted, "forbids"},
		{"truncated", "testdata/nasty-truncated.pdf", events.Corrupt, ""},
		{"page tree in a circle", "testdata/nasty-pagetree-loop.pdf", events.Corrupt, ""},
		{"40,000 pixels square", file(t, "a.png", []byte(huge)), events.Limit, "40000 x 40000"},
		{"cut off image", file(t, "a.png", []byte(huge[:20])), events.Corrupt, ""},
		{"Word", "testdata/memo.docx", events.Unsupported, "Word"},
		{"mail", "testdata/mail.eml", events.Unsupported, "e-mail"},
		{"binary", file(t, "a.txt", []byte(strings.Repeat("\x01\x02\xfe\xff\x00\x07\x80", 99))), events.Unsupported, "unknown"},
		{"rich text", file(t, "a.txt", []byte(`{\rtf1\ansi Hello}`)), events.Unsupported, "RTF"},
		{"too many pages", file(t, "a.pdf", textPDF(11)), events.Limit, "11 pages"},
		{"too much text", file(t, "a.txt", []byte(strings.Repeat("word ", 300_000))), events.Limit, "1 MB"},
		{"TIFF in a circle", file(t, "a.tif", circle), events.Limit, "10 pages"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			_, err := open(t, Config{MaxPages: 10, MaxText: 1 << 20}, test.path, Hint{Name: "report.pdf", MediaType: "application/pdf"})
			f, ok := errors.AsType[*events.Failure](err)
			if !ok || f.Class != test.class || !strings.Contains(f.Message, test.says) {
				t.Errorf("got %v, want class %s with %q", err, test.class, test.says)
			}
		})
	}
}

// circle is a TIFF whose only directory names itself as the next.
var circle = []byte("II*\x00\x08\x00\x00\x00" + "\x01\x00" + "\x00\x01\x03\x00\x01\x00\x00\x00\x09\x00\x00\x00" + "\x08\x00\x00\x00")

// TestOnePageOfMany has a page that takes for ever between two good ones.
func TestOnePageOfMany(t *testing.T) {
	t.Parallel()
	d := mustOpen(t, Config{TextTimeout: 1500 * time.Millisecond}, file(t, "a.pdf", pdf(sentence(1), "/Laugh Do", sentence(3), "")), Hint{})
	units := walk(t, d)
	if len(units) != 4 || units[3].Err != nil || units[0].Err != nil || units[2].Err != nil || !strings.Contains(units[2].Text, "page 3") {
		t.Fatalf("the other pages: %+v", units)
	}
	if class := events.ClassOf(units[1].Err); class != events.Timeout {
		t.Errorf("the endless page: %v", units[1].Err)
	}
}

func TestWithoutPrograms(t *testing.T) {
	scan := "testdata/garbage-layer.pdf"
	t.Run("without tesseract", func(t *testing.T) {
		only(t, "pdfinfo", "pdftotext", "pdfimages", "pdftoppm")
		d := mustOpen(t, Config{}, scan, Hint{})
		if _, err := d.Recognize(t.Context(), 1); events.ClassOf(err) != events.NoOCR || !strings.Contains(err.Error(), "tesseract-ocr") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("without poppler", func(t *testing.T) {
		only(t, "tesseract")
		if _, err := open(t, Config{}, scan, Hint{}); events.ClassOf(err) != events.NoOCR || !strings.Contains(err.Error(), "poppler-utils") {
			t.Errorf("got %v", err)
		}
		d := mustOpen(t, Config{}, "testdata/notes.md", Hint{})
		if len(walk(t, d)) != 1 {
			t.Error("text needs no programs")
		}
		missing := 0
		for _, tool := range Probe(t.Context(), "eng+xxx") {
			if tool.OK != (tool.Fix == "") || tool.NeededFor == "" {
				t.Errorf("%+v", tool)
			}
			if !tool.OK {
				missing++
			} else if tool.Name == "tesseract" && (tool.Version == "" || tool.Path == "") {
				t.Errorf("%+v", tool)
			}
		}
		if missing != 5 { // poppler's four, and the language
			t.Errorf("%d things are missing: %+v", missing, Probe(t.Context(), "eng+xxx"))
		}
	})
}

// only leaves some programs on the PATH.
func only(t *testing.T, programs ...string) {
	t.Helper()
	dir := t.TempDir()
	for _, p := range programs {
		// A wrapper, not a link: tesseract finds its data beside its program.
		path := lookPath(t, p)
		script := "#!/bin/sh\nexec " + path + " \"$@\"\n"
		if err := os.WriteFile(filepath.Join(dir, p), []byte(script), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir)
}

// errorRate is the edit distance by the length of the truth, in code points, with white
// space folded and quotes made straight.
func errorRate(truth, got string) float64 {
	fold := func(s string) []rune {
		s = strings.NewReplacer("‘", "'", "’", "'", "“", `"`, "”", `"`, "„", `"`, "#", "", "|", " ", "---", "", "\f", " ").Replace(s)
		return []rune(strings.Join(strings.Fields(s), " "))
	}
	a, b := fold(truth), fold(got)
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i, r := range a {
		diagonal := row[0]
		row[0] = i + 1
		for j, q := range b {
			cost := diagonal
			if r != q {
				cost = min(diagonal, row[j], row[j+1]) + 1
			}
			diagonal, row[j+1] = row[j+1], cost
		}
	}
	return float64(row[len(b)]) / math.Max(1, float64(len(a)))
}
