package extract

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"mime"
	"os"
	"unicode/utf8"

	"github.com/gogs/chardet"
	htmlcharset "golang.org/x/net/html/charset"
	"golang.org/x/text/encoding"
	"golang.org/x/text/encoding/charmap"
	"golang.org/x/text/encoding/unicode"
)

// charset is how a text is encoded: its name as the WHATWG has it, and the decoder.
type charset struct {
	name string
	enc  encoding.Encoding
}

var (
	utf8Charset = charset{"utf-8", unicode.UTF8BOM}
	utf16LE     = charset{"utf-16le", unicode.UTF16(unicode.LittleEndian, unicode.UseBOM)}
	utf16BE     = charset{"utf-16be", unicode.UTF16(unicode.BigEndian, unicode.UseBOM)}
	// Windows' superset of Latin-1: as a last guess every byte means something.
	windows1252 = charset{"windows-1252", charmap.Windows1252}
)

// decodeHead decodes the beginning of a text, which may end inside a character.
func (c charset) decodeHead(head []byte) []byte {
	text, err := c.enc.NewDecoder().Bytes(head)
	if err != nil {
		return head
	}
	return bytes.TrimSuffix(text, []byte("\uFFFD"))
}

// fits says that a sample decodes without a fault, but perhaps where it was cut.
func (c charset) fits(sample []byte) bool {
	text := c.decodeHead(sample)
	return !bytes.Contains(text[:max(0, len(text)-4)], []byte("\uFFFD"))
}

// sampleBytes is how much of a text is looked at to guess its charset.
const sampleBytes = 64 << 10

// detectCharset decides, in this order: a byte order mark; UTF-16 by its zeros; UTF-8
// when the whole text is (hardly any other text is by accident); what the hint or the
// document declares, when the text decodes by it; the statistics of ICU; windows-1252.
func detectCharset(f *os.File, size int64, head []byte, hint Hint) (charset, error) {
	switch {
	case bytes.HasPrefix(head, []byte("\xEF\xBB\xBF")):
		return utf8Charset, nil
	case bytes.HasPrefix(head, []byte("\xFF\xFE")):
		return utf16LE, nil
	case bytes.HasPrefix(head, []byte("\xFE\xFF")):
		return utf16BE, nil
	}
	if c, ok := zeros(head); ok {
		return c, nil
	}
	valid, first, err := scanUTF8(io.NewSectionReader(f, 0, size))
	if err != nil {
		return charset{}, fmt.Errorf("extract: %w", err)
	}
	escapes := bytes.Contains(head, []byte("\x1b$")) // ISO-2022-JP hides in seven bits
	if valid && !escapes {
		return utf8Charset, nil
	}
	if escapes {
		first = 0
	}
	sample := make([]byte, min(size-first, sampleBytes))
	if _, err := f.ReadAt(sample, first); err != nil && !errors.Is(err, io.EOF) {
		return charset{}, fmt.Errorf("extract: %w", err)
	}
	for _, label := range declared(head, hint) {
		if c, ok := lookup(label); ok && c.fits(sample) {
			return c, nil
		}
	}
	// Single letters in a short Latin text look like anything: its guesses are worth
	// something from a fifth of certainty on.
	if guess, err := chardet.NewTextDetector().DetectBest(sample); err == nil && guess.Confidence >= 20 {
		if c, ok := lookup(guess.Charset); ok && c.fits(sample) {
			return c, nil
		}
	}
	return windows1252, nil
}

// zeros recognises UTF-16 without a mark by every other byte of Latin letters being zero.
func zeros(head []byte) (charset, bool) {
	var n [2]int
	for i, b := range head {
		if b == 0 {
			n[i%2]++
		}
	}
	half := len(head) / 2
	switch {
	case half > 0 && n[1]*10 >= half*3 && n[0]*20 < half:
		return utf16LE, true
	case half > 0 && n[0]*10 >= half*3 && n[1]*20 < half:
		return utf16BE, true
	}
	return charset{}, false
}

// scanUTF8 reads a whole text and says whether it is UTF-8, or was but for a few bytes
// (one broken character in twenty others), and where shortly before its first byte
// beyond ASCII is.
func scanUTF8(r io.Reader) (valid bool, first int64, err error) {
	first = -1
	var good, bad int
	buf := make([]byte, 0, sampleBytes)
	var at int64
	for {
		n, err := r.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		end := errors.Is(err, io.EOF)
		if err != nil && !end {
			return false, 0, err
		}
		i := 0
		for i < len(buf) {
			if buf[i] < utf8.RuneSelf {
				i++
				continue
			}
			if !end && !utf8.FullRune(buf[i:]) {
				break
			}
			if first < 0 {
				first = max(0, at+int64(i)-sampleBytes/4)
			}
			r, size := utf8.DecodeRune(buf[i:])
			if r == utf8.RuneError && size == 1 {
				bad++
			} else {
				good++
			}
			i += size
		}
		if end {
			return bad == 0 || bad*20 <= good, max(0, first), nil
		}
		at += int64(i)
		buf = append(buf[:0], buf[i:]...)
	}
}

// declared lists the labels that somebody gave the text, the document's own last: it has
// often been converted on its way without it.
func declared(head []byte, hint Hint) []string {
	var labels []string
	if _, params, err := mime.ParseMediaType(hint.MediaType); err == nil && params["charset"] != "" {
		labels = append(labels, params["charset"])
	}
	if start := head[:min(len(head), 1024)]; bytes.Contains(bytes.ToLower(start), []byte("charset")) {
		_, name, _ := htmlcharset.DetermineEncoding(start, "")
		labels = append(labels, name)
	}
	return labels
}

// lookup finds a charset by any label the WHATWG knows. UTF-8 and UTF-16 have been ruled
// out when it is asked.
func lookup(label string) (charset, bool) {
	enc, name := htmlcharset.Lookup(label)
	if enc == nil || name == "utf-8" || name == "utf-16le" || name == "utf-16be" || enc == encoding.Replacement {
		return charset{}, false
	}
	return charset{name: name, enc: enc}, true
}
