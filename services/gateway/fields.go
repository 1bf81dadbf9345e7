package gateway

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"path"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/leafmill/leafmill/events"
)

// set takes a form field or a query parameter. Unknown ones are ignored.
func (in *intake) set(key, value string) error {
	if key != "metadata" && len(value) > maxField {
		return invalid("The field %q is too long.", key)
	}
	if value == "" {
		return nil
	}
	switch key {
	case "name":
		in.Name = fileName(value)
	case "media_type":
		media, params, err := mime.ParseMediaType(value)
		if err != nil || !strings.Contains(media, "/") {
			return invalid("The media_type is not a media type.")
		}
		in.MediaType = declared(media, params)
	case "document_id":
		if !events.ValidDocument(value) {
			return invalid("The document_id must be 1 to 128 characters of A-Z a-z 0-9 . _ : -")
		}
		in.DocumentID = value
	case "collection":
		if !events.ValidCollection(value) {
			return invalid("The collection must be 1 to 128 characters of A-Z a-z 0-9 . _ : -")
		}
		in.Collection = value
	case "language":
		if !validLanguage(value) {
			return invalid("The language must be a code such as de or deu+eng.")
		}
		in.Language = value
	case "bulk":
		b, err := strconv.ParseBool(value)
		if err != nil {
			return invalid("The field bulk must be true or false.")
		}
		in.bulk = b
	case "metadata":
		return in.setMetadata([]byte(value))
	}
	return nil
}

// setMetadata keeps numbers as they are written.
func (in *intake) setMetadata(data []byte) error {
	if len(data) > maxMetadata {
		return invalid("The metadata is larger than %d bytes.", maxMetadata)
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	var m map[string]any
	if err := d.Decode(&m); err != nil || m == nil {
		return invalid("The metadata must be a JSON object.")
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return invalid("The metadata must be one JSON object.")
	}
	in.Metadata = m
	return nil
}

// validLanguage takes tesseract's and BCP 47's codes. The first character is a letter, as
// the value may become an argument of a program.
func validLanguage(s string) bool {
	if len(s) > 64 {
		return false
	}
	for i, c := range s {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		if !letter && (i == 0 || !strings.ContainsRune("0123456789_-+", c)) {
			return false
		}
	}
	return s != ""
}

// fileName is what a client calls its file, for people to read: no folders, no control
// characters, bounded.
func fileName(s string) string {
	s = path.Base(strings.ReplaceAll(s, `\`, "/"))
	s = strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, s)
	for len(s) > maxName {
		_, n := utf8.DecodeLastRuneInString(s)
		s = s[:len(s)-n]
	}
	if s = strings.TrimSpace(s); s == "." || s == "/" || s == ".." {
		return ""
	}
	return s
}

// declared is the media type a client gave, "" when it says nothing.
func declared(media string, params map[string]string) string {
	if media == "application/octet-stream" {
		return ""
	}
	if s := mime.FormatMediaType(media, params); len(s) <= maxName {
		return s
	}
	return media[:min(len(media), maxName)]
}

// traceparent passes a W3C trace context on.
func traceparent(r *http.Request) string {
	t := r.Header.Get(events.HeaderTrace)
	if len(t) != 55 || t[2] != '-' || t[35] != '-' || t[52] != '-' {
		return ""
	}
	for i, c := range t {
		if i != 2 && i != 35 && i != 52 && !strings.ContainsRune("0123456789abcdef", c) {
			return ""
		}
	}
	return t
}
