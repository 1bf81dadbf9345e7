package extract

import (
	"bytes"
	"compress/zlib"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/leafmill/leafmill/events"
)

// pdf writes a PDF with one content stream a page. Drawing /Laugh never ends.
func pdf(streams ...string) []byte {
	var out bytes.Buffer
	var offsets []int
	object := func(format string, args ...any) {
		offsets = append(offsets, out.Len())
		fmt.Fprintf(&out, "%d 0 obj\n%s\nendobj\n", len(offsets), fmt.Sprintf(format, args...))
	}
	out.WriteString("%PDF-1.4\n")
	object("<</Type/Catalog/Pages 2 0 R>>")
	var kids strings.Builder
	for i := range streams {
		fmt.Fprintf(&kids, "%d 0 R ", 4+2*i)
	}
	object("<</Type/Pages/Count %d/Kids[%s]>>", len(streams), kids.String())
	object("<</Font<</F1<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>>>/XObject<</Laugh %d 0 R>>>>", 4+2*len(streams))
	for i, s := range streams {
		object("<</Type/Page/Parent 2 0 R/MediaBox[0 0 595 842]/Resources 3 0 R/Contents %d 0 R>>", 5+2*i)
		var packed bytes.Buffer
		z := zlib.NewWriter(&packed)
		_, _ = z.Write([]byte(s))
		_ = z.Close()
		object("<</Filter/FlateDecode/Length %d>>stream\n%s\nendstream", packed.Len(), packed.String())
	}
	// Each laugh is ten of the next.
	for level := range 12 {
		calls := strings.Repeat("/Laugh Do ", 10)
		object("<</Type/XObject/Subtype/Form/BBox[0 0 9 9]/Resources<</XObject<</Laugh %d 0 R>>>>/Length %d>>stream\n%s\nendstream",
			5+2*len(streams)+level, len(calls), calls)
	}
	object("<</Type/XObject/Subtype/Form/BBox[0 0 9 9]/Length 0>>stream\n\nendstream")
	xref := out.Len()
	fmt.Fprintf(&out, "xref\n0 %d\n0000000000 65535 f \n", len(offsets)+1)
	for _, o := range offsets {
		fmt.Fprintf(&out, "%010d 00000 n \n", o)
	}
	fmt.Fprintf(&out, "trailer<</Size %d/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF\n", len(offsets)+1, xref)
	return out.Bytes()
}

// sentence is the content of a page with enough text not to be looked at twice.
func sentence(page int) string {
	return fmt.Sprintf("BT /F1 12 Tf 50 700 Td (This is page %d of a document that the miller and his daughters wrote down when the tide was out.) Tj ET", page)
}

func textPDF(pages int) []byte {
	streams := make([]string, pages)
	for i := range streams {
		streams[i] = sentence(i + 1)
	}
	return pdf(streams...)
}

func lookPath(t testing.TB, program string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		t.Fatalf("%s is needed for the tests (make setup): %v", program, err)
	}
	return path
}

func TestLongPDF(t *testing.T) {
	const pages = 300 // three ranges
	d := mustOpen(t, Config{}, file(t, "long.pdf", textPDF(pages)), Hint{})
	if d.Units != pages || d.Pages != pages {
		t.Fatalf("%d units", d.Units)
	}
	units := walk(t, d)
	for i, u := range units {
		if !strings.HasPrefix(u.Text, fmt.Sprintf("This is page %d of", i+1)) || u.Page != i+1 {
			t.Fatalf("unit %d: %+v", i+1, u)
		}
	}
	// A slice across two ranges, as a redelivery reads it.
	s, err := d.Read(t.Context(), 100)
	if err != nil || len(s) != SliceUnits || s[0].Number != 100 || s[63].Text != units[162].Text {
		t.Errorf("%d units, %v", len(s), err)
	}
}

// TestWorkIsDoneOnce takes the programs away after the first reading, then the cache.
func TestWorkIsDoneOnce(t *testing.T) {
	c := Config{Dir: t.TempDir()}
	path := file(t, "a.pdf", textPDF(140))
	first := walk(t, mustOpen(t, c, path, Hint{}))
	t.Run("from the cache", func(t *testing.T) {
		only(t)
		again := walk(t, mustOpen(t, c, path, Hint{}))
		if fmt.Sprint(again) != fmt.Sprint(first) {
			t.Error("another reading gives other units")
		}
	})
	d := mustOpen(t, c, path, Hint{})
	if err := os.RemoveAll(filepath.Join(c.Dir, "cache")); err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(walk(t, d)) != fmt.Sprint(first) {
		t.Error("without the cache there are other units")
	}
	entries, _ := filepath.Glob(filepath.Join(c.Dir, "cache", "*", "*", "*.json"))
	if len(entries) != 2 {
		t.Fatalf("the ranges were not kept again: %v", entries)
	}
	for _, f := range entries { // as after a crash of the machine
		if err := os.WriteFile(f, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if fmt.Sprint(walk(t, mustOpen(t, c, path, Hint{}))) != fmt.Sprint(first) {
		t.Error("a broken cache gives other units")
	}
}

func TestShutdownIsNoFailureOfTheDocument(t *testing.T) {
	d := mustOpen(t, Config{}, "testdata/garbage-layer.pdf", Hint{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := d.Read(ctx, 1)
	_, rerr := d.Recognize(ctx, 1)
	if !errors.Is(err, context.Canceled) || !errors.Is(rerr, context.Canceled) {
		t.Errorf("got %v and %v", err, rerr)
	}
}

func TestMissingLanguageIsSaid(t *testing.T) {
	d := mustOpen(t, Config{DefaultLanguage: "eng"}, "testdata/garbage-layer.pdf", Hint{Language: "cy+-rf"})
	u, err := d.Recognize(t.Context(), 1)
	if err != nil || !strings.Contains(u.Warning, "tesseract-ocr-cym") || len(u.Text) < 1000 {
		t.Errorf("%+v, %v", u, err)
	}
}

func TestJudge(t *testing.T) {
	prose := strings.Repeat("The tide mill grinds twice a day. ", 5)
	for name, test := range map[string]struct {
		text    string
		covered float64
		scan    bool
		keeps   string
	}{
		"prose over a photo":    {prose, 1, false, prose},
		"stamp on a scan":       {"Received 2026", 1, true, "Received 2026"},
		"caption of a picture":  {"Figure 1", .3, false, "Figure 1"},
		"blank page":            {"", 0, false, ""},
		"scan":                  {"", .97, true, ""},
		"private use":           {prose + strings.Repeat("\ue123", 50), 0, true, ""},
		"a few private bullets": {prose + "\uf0b7\uf0b7", 0, false, prose + "\uf0b7\uf0b7"},
		"replaced":              {"\ufffd\ufffd\ufffd", 0, true, ""},
		"symbols":               {strings.Repeat("#%&$!?;:", 20), 0, true, ""},
		"contents with leaders": {strings.Repeat("Chapter ................................ 12\n", 9), 0, false, strings.Repeat("Chapter ................................ 12\n", 9)},
		"Hindi":                 {strings.Repeat("ज्वार की चक्की दिन में दो बार पीसती है।", 4), 0, false, strings.Repeat("ज्वार की चक्की दिन में दो बार पीसती है।", 4)},
	} {
		p := pdfPage{Text: test.text}
		if suspicious(p.Text) {
			p.judge(test.covered)
		}
		if p.Scan != test.scan || p.Text != test.keeps {
			t.Errorf("%s: %+v", name, p)
		}
	}
}

func TestStampIsKeptOnce(t *testing.T) {
	for _, test := range []struct{ stamp, recognized, want string }{
		{"", "text", "text"},
		{"Copy 7", "Copy 7\n\ntext", "Copy 7\n\ntext"},
		{"Copy 7", "text", "Copy 7\n\ntext"},
	} {
		if got := withStamp(test.stamp, test.recognized); got != test.want {
			t.Errorf("got %q, want %q", got, test.want)
		}
	}
}

func TestForgedFields(t *testing.T) {
	info := []byte("Title:           x\nPages:  1\nPages:           3\nEncrypted:       no\n")
	if got := field(info, "Pages"); got != "3" {
		t.Errorf("got %q", got)
	}
}

func TestLargePages(t *testing.T) {
	d := &Document{e: &Extractor{config: Config{}.withDefaults()}}
	for _, test := range []struct {
		points float64
		dpi    int
		class  events.Class
	}{{595, 200, ""}, {2384, 200, ""}, {3370, 151, ""}, {14400, 0, events.Limit}} {
		dpi, err := d.resolution(pdfPage{Width: test.points, Height: test.points})
		if dpi != test.dpi || (err != nil) != (test.class != "") || err != nil && events.ClassOf(err) != test.class {
			t.Errorf("%v points: %d dpi, %v", test.points, dpi, err)
		}
	}
}
