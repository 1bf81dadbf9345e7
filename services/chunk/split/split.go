// Package split cuts the text of one unit into chunks for a model that reads so many tokens at a time.
//
// It is a pure function. Guarantees:
//
//   - chunks are in order, do not overlap, begin and end with a character that is no space, and together
//     hold every character of the unit that is not a space between two chunks;
//   - a chunk has at most the given number of tokens, and tokenising its text anew gives exactly those:
//     a cut never falls inside a word;
//   - Text is the slice of the unit by Start and End, counted in code points;
//   - a unit without tokens (spaces, control characters) has no chunks;
//   - the same text gives the same chunks.
//
// Cuts fall, in this order of preference, before a heading, between paragraphs, between sentences, at the
// end of a line, between words.
package split

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/leafmill/leafmill/internal/tokenizer"
)

// DefaultMax is the most tokens of a chunk: the 256 that the local model was trained to read, without the
// two specials around them.
const DefaultMax = 254

// MinMax is the least limit that can be kept: a word may have so many tokens and is never cut.
const MinMax = tokenizer.MaxWord

// Tokenizer counts the tokens of a text and knows where they lie.
type Tokenizer interface {
	Encode(text string) []tokenizer.Token
}

// Span is one chunk.
type Span struct {
	Start, End int    // in code points of the unit's text
	Text       string // the unit's text between them
	Tokens     int    // without the model's specials
}

// How full a chunk should be, in parts of the maximum, before a cut of a kind is taken. The fuller chunk
// carries more context; the better place keeps together what belongs together.
const (
	headingFill   = 3 // a third: then a new section begins a new chunk
	paragraphFill = 2 // half
	sentenceFill  = 4 // a quarter: long sentences
	lineFill      = 2
	tailFill      = 5 // a last chunk shorter than a fifth is avoided
)

// Text cuts one unit's text into chunks of at most so many tokens; a number below MinMax is taken as MinMax.
func Text(text string, tok Tokenizer, most int) []Span {
	tokens := tok.Encode(text)
	if len(tokens) == 0 {
		return nil
	}
	most = max(most, MinMax)
	places := rate(text, tokens)

	var spans []Span
	var points counter
	for from := 0; from < len(tokens); {
		to := next(places, from, len(tokens), most)
		start, end := 0, len(text)
		if from > 0 {
			start = tokens[from].Start
		}
		if to < len(tokens) {
			end = tokens[to].Start
		}
		start += len(text[start:end]) - len(strings.TrimLeftFunc(text[start:end], unicode.IsSpace))
		end = start + len(strings.TrimRightFunc(text[start:end], unicode.IsSpace))
		spans = append(spans, Span{Start: points.at(text, start), End: points.at(text, end), Text: text[start:end], Tokens: to - from})
		from = to
	}
	return spans
}

// next chooses where the chunk that begins at token from ends: the first token of the next one, or all.
func next(places []place, from, all, most int) int {
	left := all - from
	// The furthest cut: a full chunk, or less when that would leave a tiny rest.
	limit := from + most
	tail := most / tailFill
	if left <= most {
		// All fits. It is only cut where a section begins, and both parts are worth being a chunk.
		if cut := first(places, from+most/headingFill, all-tail, heading); cut > 0 {
			return cut
		}
		return all
	}
	if left < most+tail {
		limit = all - tail
	}
	if cut := first(places, from+most/headingFill, limit, heading); cut > 0 {
		return cut
	}
	for _, wish := range []struct {
		least place
		fill  int
	}{{paragraph, paragraphFill}, {sentence, sentenceFill}, {line, lineFill}, {space, lineFill}, {word, most}} {
		if cut := last(places, from+max(most/wish.fill, 1), limit, wish.least); cut > 0 {
			return cut
		}
	}
	// The limit was drawn in for the rest's sake and one long word lies before it.
	return last(places, from+1, from+most, word)
}

// first is the first token in [from, to] before which a place at least so good lies, else 0.
func first(places []place, from, to int, least place) int {
	for i := from; i <= to; i++ {
		if places[i] >= least {
			return i
		}
	}
	return 0
}

// last is the last token in [from, to] before which a place at least so good lies, else 0.
func last(places []place, from, to int, least place) int {
	for i := to; i >= from; i-- {
		if places[i] >= least {
			return i
		}
	}
	return 0
}

// counter turns growing byte offsets into code points, walking the text once.
type counter struct{ bytes, points int }

func (c *counter) at(text string, offset int) int {
	c.points += utf8.RuneCountInString(text[c.bytes:offset])
	c.bytes = offset
	return c.points
}
