package extract

import (
	"strings"
	"unicode"
)

// Rules for a page's text layer, from measurements on scans with stamps and on layers
// whose characters have no meaning.
const (
	fewRunes    = 64  // fewer than these may be a stamp on a scan
	scanCovered = 0.5 // of the page, by images, makes a page with few characters a scan
	maxGarbage  = 0.1 // of the characters private, replaced or control characters
	minLetters  = 0.5 // of the characters letters, marks or digits
)

// layer counts the characters of a text layer, without spaces.
type layer struct {
	runes   int
	garbage int
	letters int
}

func measure(text string) (l layer) {
	var last rune
	for _, r := range text {
		if unicode.IsSpace(r) {
			continue
		}
		switch {
		case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z': // most of them, without the tables
			l.letters++
		case r == unicode.ReplacementChar, unicode.Is(unicode.Co, r), unicode.IsControl(r):
			l.garbage++
		case unicode.IsLetter(r), unicode.IsDigit(r), unicode.IsMark(r):
			l.letters++
		case r == last:
			continue // the leader dots of a table of contents are one
		}
		l.runes++
		last = r
	}
	return l
}

func (l layer) few() bool { return l.runes < fewRunes }

// useless says that what was read is not what the page shows.
func (l layer) useless() bool {
	n := float64(l.runes)
	return l.runes > 0 && (float64(l.garbage) > maxGarbage*n || !l.few() && float64(l.letters) < minLetters*n)
}

func suspicious(text string) bool {
	l := measure(text)
	return l.few() || l.useless()
}

// judge decides whether the page has to be recognised and what of its text stays.
func (p *pdfPage) judge(covered float64) {
	l := measure(p.Text)
	switch {
	case l.useless():
		p.Scan, p.Text = true, ""
	case l.few() && covered >= scanCovered:
		p.Scan = true
	}
}

// withStamp puts what a scan's text layer says before what was recognised, unless
// recognition has read it too: a stamp is printed on the page as a rule.
func withStamp(stamp, recognized string) string {
	words := strings.Fields(stamp)
	if len(words) == 0 {
		return recognized
	}
	seen := map[string]bool{}
	for _, w := range strings.Fields(recognized) {
		seen[w] = true
	}
	found := 0
	for _, w := range words {
		if seen[w] {
			found++
		}
	}
	if found*10 >= len(words)*8 {
		return recognized
	}
	return stamp + "\n\n" + recognized
}
