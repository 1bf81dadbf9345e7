package extract

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/mail"
	"os"
	"path/filepath"
	"strings"

	"github.com/gabriel-vasile/mimetype"

	"github.com/leafmill/leafmill/events"
)

// format is what a document turned out to be.
type format struct {
	mediaType string
	kind      Kind
	charset   charset // of HTML and text
}

// id names what the derived text depends on besides the content.
func (f format) id() string {
	return string(f.kind) + "-" + f.charset.name
}

// headBytes are enough for every signature, and for the look of a text.
const headBytes = 8 << 10

// sniff decides by content. The hint only tells apart what looks the same.
func sniff(f *os.File, size int64, hint Hint) (format, error) {
	head := make([]byte, min(size, headBytes))
	if _, err := f.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) {
		return format{}, fmt.Errorf("extract: %w", err)
	}
	m := mimetype.Detect(head)
	switch {
	case m.Is("application/pdf") || bytes.Contains(head[:min(len(head), 1024)], []byte("%PDF-")):
		// Junk before the signature is common and poppler reads it.
		return format{mediaType: "application/pdf", kind: PDF}, nil
	case m.Is("image/png"), m.Is("image/jpeg"), m.Is("image/tiff"):
		return format{mediaType: m.String(), kind: Image}, nil
	case !isText(m) && !m.Is("application/octet-stream"):
		return format{}, unsupported(m.String())
	}
	cs, err := detectCharset(f, size, head, hint)
	if err != nil {
		return format{}, err
	}
	text := cs.decodeHead(head)
	if controls(text) {
		return format{}, unsupported("application/octet-stream")
	}
	return textFormat(text, cs, hint)
}

// textFormat sniffs again what has been decoded.
func textFormat(text []byte, cs charset, hint Hint) (format, error) {
	m := mimetype.Detect(text)
	media, _, _ := mime.ParseMediaType(m.String())
	if media == "" || !isText(m) {
		media = "text/plain" // such as text that begins with the letters of a signature
	}
	switch {
	case media == "text/rtf", media == "image/svg+xml":
		return format{}, unsupported(media)
	case media == "application/xhtml+xml", media == "text/html" && !(says(hint, "text/markdown", ".md", ".markdown") && fragment(text)):
		return format{mediaType: "text/html", kind: HTML, charset: cs}, nil
	case isMail(text):
		return format{}, unsupported("message/rfc822")
	case says(hint, "text/markdown", ".md", ".markdown"):
		media = "text/markdown"
	case media == "text/plain" && says(hint, "text/csv", ".csv"):
		media = "text/csv"
	case media == "text/plain" && says(hint, "application/json", ".json"):
		media = "application/json"
	}
	return format{mediaType: media, kind: Text, charset: cs}, nil
}

func isText(m *mimetype.MIME) bool {
	for ; m != nil; m = m.Parent() {
		if m.Is("text/plain") {
			return true
		}
	}
	return false
}

// says tells whether the hint names the media type or an extension.
func says(hint Hint, media string, extensions ...string) bool {
	declared, _, _ := mime.ParseMediaType(hint.MediaType)
	ext := strings.ToLower(filepath.Ext(hint.Name))
	for _, e := range extensions {
		if ext == e {
			return true
		}
	}
	return declared == media
}

// fragment says that a text begins with a tag but not as an HTML document does: many a
// Markdown file begins with <p align="center"> or a comment.
func fragment(text []byte) bool {
	start := bytes.ToLower(bytes.TrimSpace(text[:min(len(text), 256)]))
	return !bytes.HasPrefix(start, []byte("<!doctype")) && !bytes.HasPrefix(start, []byte("<html"))
}

// isMail recognises a message by the headers every mail program writes. Its encoded
// attachments would be nonsense as text.
func isMail(text []byte) bool {
	head, _, found := bytes.Cut(bytes.ReplaceAll(text, []byte("\r\n"), []byte("\n")), []byte("\n\n"))
	if !found {
		return false
	}
	m, err := mail.ReadMessage(bytes.NewReader(append(bytes.Clone(head), "\n\n"...)))
	return err == nil && m.Header.Get("MIME-Version") != "" && m.Header.Get("Content-Type") != ""
}

// controls says that more than one in fifty of the characters are control characters that
// no text has.
func controls(text []byte) bool {
	n := 0
	for _, b := range text {
		if b < ' ' && b != '\n' && b != '\r' && b != '\t' && b != '\f' && b != 0x1b || b == 0x7f {
			n++
		}
	}
	return n*50 > len(text)
}

// unsupported says what the format is called and what to do.
func unsupported(media string) error {
	media, _, _ = strings.Cut(media, ";")
	name := map[string]string{
		"application/vnd.openxmlformats-officedocument.wordprocessingml.document":   "Word documents",
		"application/vnd.openxmlformats-officedocument.presentationml.presentation": "PowerPoint presentations",
		"application/vnd.openxmlformats-officedocument.spreadsheetml.sheet":         "Excel workbooks",
		"application/vnd.oasis.opendocument.text":                                   "OpenDocument texts",
		"application/msword":            "old Word documents",
		"application/vnd.ms-excel":      "old Excel workbooks",
		"application/vnd.ms-powerpoint": "old PowerPoint presentations",
		"application/x-ole-storage":     "old Microsoft Office documents",
		"application/epub+zip":          "EPUB books",
		"text/rtf":                      "RTF documents",
		"message/rfc822":                "e-mails",
		"application/octet-stream":      "files of an unknown binary format",
	}[media]
	if name == "" {
		name = "files of the type " + media
	}
	return events.Fail(events.Unsupported, "There is no reader for %s: hand in a PDF, a PNG, JPEG or TIFF image, HTML, Markdown or text.", name)
}
