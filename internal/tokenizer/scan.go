package tokenizer

import (
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// word is one word of the normalised text: letters and digits between spaces, or a single punctuation
// mark or Chinese character. Its memory is used again for the next one.
type word struct {
	text       []byte // lower case, without accents; only the first MaxWord+1 runes
	starts     []int  // for each byte of text, where its rune starts in the original
	ends       []int  // and where it ends
	runes      int    // of the normalised word, also those that text leaves out
	start, end int    // the word in the original
}

func (w *word) add(r rune, start, end int) {
	if w.runes == 0 {
		w.start = start
	}
	w.end = end
	w.runes++
	if w.runes > MaxWord {
		return // Unknown already: a text without a space must not cost its size again
	}
	before := len(w.text)
	w.text = utf8.AppendRune(w.text, r)
	for range len(w.text) - before {
		w.starts = append(w.starts, start)
		w.ends = append(w.ends, end)
	}
}

func (w *word) reset() {
	w.text, w.starts, w.ends, w.runes = w.text[:0], w.starts[:0], w.ends[:0], 0
}

// scan does BERT's clean-up and calls emit with each word: control characters and what is not UTF-8 out,
// spaces around Chinese characters, canonical decomposition without its accents, lower case, punctuation
// apart. The word is valid during the call only.
func scan(text string, emit func(*word)) {
	var w word
	flush := func() {
		if w.runes > 0 {
			emit(&w)
			w.reset()
		}
	}
	alone := func(r rune, start, end int) {
		flush()
		w.add(r, start, end)
		flush()
	}
	var decomposed [32]byte
	for at := 0; at < len(text); {
		if c := text[at]; c < utf8.RuneSelf {
			switch ascii[c] {
			case letter:
				w.add(rune(c), at, at+1)
			case capital:
				w.add(rune(c)+'a'-'A', at, at+1)
			case space:
				flush()
			case mark:
				alone(rune(c), at, at+1)
			}
			at++
			continue
		}
		r, size := utf8.DecodeRuneInString(text[at:])
		start, end := at, at+size
		at = end
		switch {
		case r == utf8.RuneError || control(r):
		case unicode.IsSpace(r):
			flush()
		default:
			chinese := isChinese(r)
			if chinese {
				flush()
			}
			for rest := norm.NFD.AppendString(decomposed[:0], text[start:end]); len(rest) > 0; {
				d, n := utf8.DecodeRune(rest)
				rest = rest[n:]
				if unicode.Is(unicode.Mn, d) {
					continue
				}
				if d = unicode.ToLower(d); punctuation(d) {
					alone(d, start, end)
				} else {
					w.add(d, start, end)
				}
			}
			if chinese {
				flush()
			}
		}
	}
	flush()
}

// kind is what an ASCII character does.
type kind uint8

const (
	dropped kind = iota
	letter       // also digits
	capital
	space
	mark
)

// ascii is the kind of each ASCII character.
var ascii = func() (kinds [utf8.RuneSelf]kind) {
	for c := range kinds {
		r := rune(c)
		switch {
		case r == ' ' || r == '\t' || r == '\n' || r == '\r':
			kinds[c] = space
		case unicode.IsControl(r):
			kinds[c] = dropped
		case unicode.IsUpper(r):
			kinds[c] = capital
		case unicode.IsLetter(r) || unicode.IsDigit(r):
			kinds[c] = letter
		default: // BERT takes $, + and ^ for punctuation too
			kinds[c] = mark
		}
	}
	return kinds
}()

// control says whether a rune is one of those that BERT drops: a zero width space, a soft hyphen, a
// private use character. Not unicode.C, which has the unassigned ones too since Go 1.25.
func control(r rune) bool { return unicode.In(r, unicode.Cc, unicode.Cf, unicode.Co) }

func punctuation(r rune) bool {
	return r < utf8.RuneSelf && ascii[r] == mark || unicode.Is(unicode.P, r)
}

// isChinese is BERT's list of CJK ideographs, each a word of its own; its gap at 2B820 is kept.
func isChinese(r rune) bool {
	return r >= 0x4E00 && r <= 0x9FFF ||
		r >= 0x3400 && r <= 0x4DBF ||
		r >= 0x20000 && r <= 0x2A6DF ||
		r >= 0x2A700 && r <= 0x2B73F ||
		r >= 0x2B740 && r <= 0x2B81F ||
		r >= 0x2B920 && r <= 0x2CEAF ||
		r >= 0xF900 && r <= 0xFAFF ||
		r >= 0x2F800 && r <= 0x2FA1F
}
