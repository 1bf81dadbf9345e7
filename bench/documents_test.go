package bench

import (
	"bytes"
	"fmt"
	"image/jpeg"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// pdf writes a PDF of the given page contents; all pages may use the font F and the image I.
func pdf(contents []string, image []byte) []byte {
	var b bytes.Buffer
	var offsets []int
	object := func(format string, args ...any) {
		offsets = append(offsets, b.Len())
		fmt.Fprintf(&b, "%d 0 obj\n", len(offsets))
		fmt.Fprintf(&b, format, args...)
		b.WriteString("\nendobj\n")
	}
	b.WriteString("%PDF-1.4\n")
	kids := make([]string, len(contents))
	for i := range contents {
		kids[i] = fmt.Sprintf("%d 0 R", 5+2*i)
	}
	object("<< /Type /Catalog /Pages 2 0 R >>")
	object("<< /Type /Pages /Count %d /Kids [%s] >>", len(kids), strings.Join(kids, " "))
	object("<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>")
	if image != nil {
		c, err := jpeg.DecodeConfig(bytes.NewReader(image))
		if err != nil {
			panic(err)
		}
		object("<< /Type /XObject /Subtype /Image /Width %d /Height %d /ColorSpace /DeviceGray /BitsPerComponent 8 /Filter /DCTDecode /Length %d >>\nstream\n%s\nendstream",
			c.Width, c.Height, len(image), image)
	} else {
		object("null")
	}
	for i, content := range contents {
		object("<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents %d 0 R /Resources << /Font << /F 3 0 R >> /XObject << /I 4 0 R >> >> >>", 6+2*i)
		object("<< /Length %d >>\nstream\n%s\nendstream", len(content), content)
	}
	start := b.Len()
	fmt.Fprintf(&b, "xref\n0 %d\n0000000000 65535 f \n", len(offsets)+1)
	for _, o := range offsets {
		fmt.Fprintf(&b, "%010d 00000 n \n", o)
	}
	fmt.Fprintf(&b, "trailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n", len(offsets)+1, start)
	return b.Bytes()
}

// vocabulary draws English words of the samples by Zipf's law: as many tokens a word as
// ordinary text has.
type vocabulary struct {
	known []string
	zipf  *rand.Zipf
}

func newVocabulary(seed uint64) *vocabulary {
	var known []string
	seen := map[string]bool{}
	for _, name := range []string{"letter.txt", "notes.md"} {
		text, err := os.ReadFile(filepath.Join("..", "samples", name))
		if err != nil {
			panic(err)
		}
		for _, w := range strings.FieldsFunc(strings.ToLower(string(text)), func(r rune) bool { return r < 'a' || r > 'z' }) {
			if !seen[w] {
				seen[w] = true
				known = append(known, w)
			}
		}
	}
	r := rand.New(rand.NewPCG(seed, 1))
	r.Shuffle(len(known), func(i, j int) { known[i], known[j] = known[j], known[i] })
	return &vocabulary{known, rand.NewZipf(r, 1.1, 4, uint64(len(known)-1))}
}

func (v *vocabulary) words(n int) string {
	out := make([]string, n)
	for i := range out {
		out[i] = v.known[v.zipf.Uint64()]
	}
	return strings.Join(out, " ")
}

// textPDF has pages of about 300 words.
func textPDF(pages int, seed uint64) []byte {
	v := newVocabulary(seed)
	contents := make([]string, pages)
	for i := range contents {
		var c strings.Builder
		c.WriteString("BT /F 10 Tf 14 TL 50 800 Td\n")
		for range 30 {
			fmt.Fprintf(&c, "(%s.) Tj T*\n", v.words(10))
		}
		c.WriteString("ET")
		contents[i] = c.String()
	}
	return pdf(contents, nil)
}

// scanPDF shows one gray JPEG on every page.
func scanPDF(image []byte, pages int) []byte {
	contents := make([]string, pages)
	for i := range contents {
		contents[i] = fmt.Sprintf("%% page %d\nq 595 0 0 842 0 0 cm /I Do Q", i)
	}
	return pdf(contents, image)
}

func TestDocumentsAreReadable(t *testing.T) {
	if data := textPDF(3, 1); !bytes.HasPrefix(data, []byte("%PDF")) || !bytes.Contains(data, []byte("/Count 3")) {
		t.Error("the text PDF is malformed")
	}
}
