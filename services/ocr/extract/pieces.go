package extract

import (
	"bytes"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/clipperhouse/uax29/v2/graphemes"
	"github.com/clipperhouse/uax29/v2/sentences"
	"golang.org/x/text/transform"
)

// cleaner makes text that every later stage can take: valid UTF-8, lines ended by "\n",
// no control characters but newline and tab. A form feed, which separates pages where
// units are joined, becomes a newline. It keeps no state.
type cleaner struct{ transform.NopResetter }

// Transform implements transform.Transformer.
func (cleaner) Transform(dst, src []byte, atEOF bool) (nDst, nSrc int, err error) {
	for nSrc < len(src) {
		out, size := "", 1
		switch b := src[nSrc]; {
		case b >= ' ' && b < 0x7f || b == '\n' || b == '\t':
			if nDst == len(dst) {
				return nDst, nSrc, transform.ErrShortDst
			}
			dst[nDst] = b
			nDst, nSrc = nDst+1, nSrc+1
			continue
		case b == '\r':
			if nSrc+1 == len(src) && !atEOF {
				return nDst, nSrc, transform.ErrShortSrc
			}
			if nSrc+1 < len(src) && src[nSrc+1] == '\n' {
				size = 2
			}
			out = "\n"
		case b == '\f' || b == '\v':
			out = "\n"
		case b >= utf8.RuneSelf:
			if !atEOF && !utf8.FullRune(src[nSrc:]) {
				return nDst, nSrc, transform.ErrShortSrc
			}
			var r rune
			r, size = utf8.DecodeRune(src[nSrc:])
			switch {
			case r == utf8.RuneError:
				out = "\uFFFD"
			case r == 0x85:
				out = "\n"
			case r > 0x9f:
				out = string(src[nSrc : nSrc+size])
			}
		}
		if nDst+len(out) > len(dst) {
			return nDst, nSrc, transform.ErrShortDst
		}
		nDst += copy(dst[nDst:], out)
		nSrc += size
	}
	return nDst, nSrc, nil
}

// clean makes text of a tool's output.
func clean(b []byte) string {
	out, _, err := transform.Bytes(cleaner{}, b)
	if err != nil {
		return strings.ToValidUTF8(string(b), "\uFFFD") // it has no errors of its own
	}
	return string(out)
}

// splitter cuts clean text into pieces of at most PieceBytes while it is written.
type splitter struct {
	buf  []byte
	emit func(piece []byte) error // must not keep the bytes
}

// Write takes text that may end inside a character.
func (s *splitter) Write(p []byte) (int, error) {
	s.buf = append(s.buf, p...)
	rest := s.buf
	for len(rest) > PieceBytes {
		n := cut(rest[:PieceBytes])
		if err := s.emit(rest[:n]); err != nil {
			return 0, err
		}
		rest = rest[n:]
	}
	s.buf = append(s.buf[:0], rest...)
	return len(p), nil
}

// Close gives out the last piece.
func (s *splitter) Close() error {
	if len(s.buf) == 0 {
		return nil
	}
	return s.emit(s.buf)
}

// cut says where to end a piece that has to end within the window: after the last
// paragraph, else after the last sentence, else after the last line or word, of its second
// half; else between two characters as a reader sees them; else between two code points.
// It is never 0 and never inside a code point.
func cut(window []byte) int {
	end := len(window)
	last := end - 1
	for last > 0 && !utf8.RuneStart(window[last]) {
		last--
	}
	if last > 0 && !utf8.FullRune(window[last:]) {
		end = last
	}
	half := end / 2
	for !utf8.RuneStart(window[half]) {
		half--
	}
	late := window[half:end]
	if i := bytes.LastIndex(late, []byte("\n\n")); i >= 0 {
		return half + i + 2
	}
	if n := lastSentence(late); n > 0 {
		return half + n
	}
	if i := bytes.LastIndexByte(late, '\n'); i >= 0 {
		return half + i + 1
	}
	if i := bytes.LastIndexByte(late, ' '); i >= 0 {
		return half + i + 1
	}
	// The last grapheme may go on behind the window.
	near := end - min(end, 256)
	for !utf8.RuneStart(window[near]) {
		near--
	}
	last = 0
	for g := graphemes.FromBytes(window[near:end]); g.Next(); {
		last = g.Start()
	}
	if last > 0 {
		return near + last
	}
	return end
}

// lastSentence is the end of the last whole sentence, or 0. A line is no sentence, unless
// it ends like one.
func lastSentence(text []byte) int {
	end := 0
	for s := sentences.FromBytes(text); s.Next(); {
		if s.End() == len(text) {
			break // it may go on behind the window
		}
		r, _ := utf8.DecodeLastRune(bytes.TrimRightFunc(s.Value(), func(r rune) bool {
			return unicode.IsSpace(r) || unicode.In(r, unicode.Pe, unicode.Pf, unicode.Pi) || r == '"' || r == '\''
		}))
		if unicode.In(r, unicode.STerm) {
			end = s.End()
		}
	}
	return end
}
