package split

import (
	"strings"
	"unicode"

	"github.com/clipperhouse/uax29/v2/sentences"

	"github.com/leafmill/leafmill/internal/tokenizer"
)

// place is how good a cut is before a token.
type place uint8

const (
	never     place = iota // inside a word
	word                   // beside a punctuation mark
	space                  // between words
	line                   // at the end of a line
	sentence               // between sentences
	paragraph              // after a blank line
	heading                // before a heading
)

// rate gives each token the place before it.
func rate(text string, tokens []tokenizer.Token) []place {
	places := make([]place, len(tokens))
	for i, token := range tokens {
		switch {
		case i == 0 || token.Continues:
		case strings.ContainsFunc(text[tokens[i-1].End:token.Start], unicode.IsSpace):
			places[i] = space
		default:
			places[i] = word
		}
	}
	raise := func(i int, p place) {
		if i < len(places) && places[i] != never {
			places[i] = max(places[i], p)
		}
	}

	find, at := finder(tokens), 0
	for s := sentences.FromString(unwrapped(text)); s.Next(); {
		raise(find(at), sentence)
		at += len(s.Value())
	}
	find = finder(tokens)
	title := -1 // the first token of the heading line before
	for _, l := range lines(text) {
		i := find(l.start)
		switch {
		case title >= 0:
			// A heading stays whole, and with what it is the heading of.
			for k := title + 1; k <= i && k < len(places); k++ {
				places[k] = min(places[k], space)
			}
		case l.heading:
			raise(i, heading)
		case l.afterBlank:
			raise(i, paragraph)
		default:
			raise(i, line)
		}
		title = -1
		if l.heading {
			title = i
		}
	}
	return places
}

// finder finds the first token at or after an offset, for offsets that grow.
func finder(tokens []tokenizer.Token) func(offset int) int {
	i := 0
	return func(offset int) int {
		for i < len(tokens) && tokens[i].Start < offset {
			i++
		}
		return i
	}
}

// textLine is a line that is not blank.
type textLine struct {
	start      int // in bytes
	afterBlank bool
	heading    bool // of Markdown: # or underlined
}

// lines lists the lines of a text that are not blank. A # inside a fenced code block is no heading.
func lines(text string) []textLine {
	var out []textLine
	blank, fence := true, ""
	for at := 0; at < len(text); {
		start := at
		content := text[at:]
		if i := strings.IndexByte(content, '\n'); i >= 0 {
			content = content[:i]
			at += i + 1
		} else {
			at = len(text)
		}
		content = strings.TrimSpace(content)
		if content == "" {
			blank = true
			continue
		}
		if fence == "" {
			// An underline makes a heading of the line above when that begins a paragraph.
			if n := len(out); n > 0 && !blank && out[n-1].afterBlank && underline(content) {
				out[n-1].heading = true
				continue
			}
			out = append(out, textLine{start: start, afterBlank: blank, heading: hashes(content)})
		} else {
			out = append(out, textLine{start: start, afterBlank: blank})
		}
		switch {
		case fence != "" && strings.HasPrefix(content, fence) && strings.Trim(content, fence[:1]) == "":
			fence = ""
		case fence == "" && (strings.HasPrefix(content, "```") || strings.HasPrefix(content, "~~~")):
			fence = content[:3]
		}
		blank = false
	}
	return out
}

// hashes says whether a line is a heading by one to six #.
func hashes(content string) bool {
	title := strings.TrimLeft(content, "#")
	n := len(content) - len(title)
	return n >= 1 && n <= 6 && (title == "" || title[0] == ' ' || title[0] == '\t')
}

// underline says whether a line is nothing but === or ---.
func underline(content string) bool {
	return len(content) >= 3 && (strings.Trim(content, "=") == "" || strings.Trim(content, "-") == "")
}

// unwrapped is the text with spaces for the line ends inside paragraphs, byte by byte: sentences go on
// over the end of a line, and Unicode's rules end them there.
func unwrapped(text string) string {
	if !strings.Contains(text, "\n") {
		return text
	}
	out := []byte(text)
	for i := 0; i < len(out); i++ {
		if out[i] != '\n' {
			continue
		}
		end := i + 1
		for end < len(out) && (out[end] == '\n' || out[end] == '\r' || out[end] == ' ' || out[end] == '\t') {
			end++
		}
		if strings.Count(text[i:end], "\n") == 1 {
			out[i] = ' '
			if i > 0 && out[i-1] == '\r' {
				out[i-1] = ' '
			}
		}
		i = end - 1
	}
	return string(out)
}
