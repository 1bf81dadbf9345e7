package embedded

import (
	"fmt"
	"math/bits"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/abadojack/whatlanggo"
	"github.com/blevesearch/bleve/v2/analysis"
	"github.com/blevesearch/bleve/v2/analysis/lang/cjk"
	"github.com/blevesearch/bleve/v2/analysis/lang/da"
	"github.com/blevesearch/bleve/v2/analysis/lang/de"
	"github.com/blevesearch/bleve/v2/analysis/lang/en"
	"github.com/blevesearch/bleve/v2/analysis/lang/es"
	"github.com/blevesearch/bleve/v2/analysis/lang/fi"
	"github.com/blevesearch/bleve/v2/analysis/lang/fr"
	"github.com/blevesearch/bleve/v2/analysis/lang/it"
	"github.com/blevesearch/bleve/v2/analysis/lang/nl"
	"github.com/blevesearch/bleve/v2/analysis/lang/no"
	"github.com/blevesearch/bleve/v2/analysis/lang/pt"
	"github.com/blevesearch/bleve/v2/analysis/lang/ru"
	"github.com/blevesearch/bleve/v2/analysis/lang/sv"
	"github.com/blevesearch/bleve/v2/analysis/token/lowercase"
	bleveunicode "github.com/blevesearch/bleve/v2/analysis/tokenizer/unicode"
	"github.com/blevesearch/bleve/v2/registry"
	"github.com/blevesearch/snowballstem"
	"github.com/blevesearch/snowballstem/danish"
	"github.com/blevesearch/snowballstem/dutch"
	"github.com/blevesearch/snowballstem/english"
	"github.com/blevesearch/snowballstem/finnish"
	"github.com/blevesearch/snowballstem/french"
	"github.com/blevesearch/snowballstem/german"
	"github.com/blevesearch/snowballstem/italian"
	"github.com/blevesearch/snowballstem/norwegian"
	"github.com/blevesearch/snowballstem/portuguese"
	"github.com/blevesearch/snowballstem/russian"
	"github.com/blevesearch/snowballstem/spanish"
	"github.com/blevesearch/snowballstem/swedish"
	"golang.org/x/text/unicode/norm"
)

// analysisVersion names what the analysers do. A change of their output must change it:
// the keyword index is then built anew at the next start.
const analysisVersion = "2"

// unknown is the language of texts too short or too strange to tell: words as they are,
// folded, without stop words.
const unknown = 0

// language is how texts of one language become terms.
type language struct {
	code     string
	analyzer *analysis.DefaultAnalyzer
	stop     analysis.TokenMap // also in the analyzer
	stemmer  int               // index of the stemFilter in the analyzer; -1: none
}

// analyzers holds every language; a chunk stores its code, and memory its number.
type analyzers struct {
	languages []language
	tokenizer analysis.Tokenizer
	detect    whatlanggo.Options
	detected  map[whatlanggo.Lang]int
	stops     map[string]uint32 // the languages, as bits, in which a word is a stop word
}

// newAnalyzers builds the analysers: Unicode words, lower case, elisions and possessives
// off, words also split where letters meet digits, stop words out, Snowball stems, and
// accents off where the language takes a letter without its accent for the same letter.
func newAnalyzers() (*analyzers, error) {
	cache := registry.NewCache()
	tokenizer, err := cache.TokenizerNamed(bleveunicode.Name)
	if err != nil {
		return nil, err
	}
	a := &analyzers{
		tokenizer: tokenizer,
		stops:     map[string]uint32{},
		detect:    whatlanggo.Options{Whitelist: map[whatlanggo.Lang]bool{}},
		detected:  map[whatlanggo.Lang]int{},
	}
	for _, l := range []struct {
		code   string
		lang   whatlanggo.Lang
		before string // a filter of the language that must see whole words
		stop   string
		stem   func(*snowballstem.Env) bool
		fold   bool
	}{
		{code: "und", lang: -1, fold: true},
		{"en", whatlanggo.Eng, en.PossessiveName, en.StopName, english.Stem, true},
		{"de", whatlanggo.Deu, "", de.StopName, german.Stem, true},
		{"es", whatlanggo.Spa, "", es.StopName, spanish.Stem, true},
		{"fr", whatlanggo.Fra, fr.ElisionName, fr.StopName, french.Stem, true},
		{"it", whatlanggo.Ita, it.ElisionName, it.StopName, italian.Stem, true},
		{"pt", whatlanggo.Por, "", pt.StopName, portuguese.Stem, true},
		{"nl", whatlanggo.Nld, "", nl.StopName, dutch.Stem, true},
		{"sv", whatlanggo.Swe, "", sv.StopName, swedish.Stem, false},
		{"da", whatlanggo.Dan, "", da.StopName, danish.Stem, false},
		{"no", whatlanggo.Nob, "", no.StopName, norwegian.Stem, false},
		{"fi", whatlanggo.Fin, "", fi.StopName, finnish.Stem, false},
		{"ru", whatlanggo.Rus, "", ru.StopName, russian.Stem, false},
	} {
		filters := []analysis.TokenFilter{lowercase.NewLowerCaseFilter()}
		if l.before != "" {
			f, err := cache.TokenFilterNamed(l.before)
			if err != nil {
				return nil, fmt.Errorf("index: %s: %w", l.before, err)
			}
			filters = append(filters, f)
		}
		filters = append(filters, splitFilter{})
		var words analysis.TokenMap
		if l.stop != "" {
			f, err := cache.TokenFilterNamed(l.stop)
			if err != nil {
				return nil, fmt.Errorf("index: %s: %w", l.stop, err)
			}
			if words, err = cache.TokenMapNamed(l.stop); err != nil {
				return nil, fmt.Errorf("index: %s: %w", l.stop, err)
			}
			filters = append(filters, f)
		}
		stemmer := -1
		if l.stem != nil {
			stemmer = len(filters)
			filters = append(filters, stemFilter{stem: l.stem})
		}
		if l.fold {
			filters = append(filters, foldFilter{})
		}
		a.add(l.lang, language{l.code, &analysis.DefaultAnalyzer{Tokenizer: tokenizer, TokenFilters: filters}, words, stemmer})
	}
	// Chinese, Japanese and Korean have no spaces: pairs of characters stand for words.
	width, err := cache.TokenFilterNamed(cjk.WidthName)
	if err != nil {
		return nil, err
	}
	bigrams, err := cache.TokenFilterNamed(cjk.BigramName)
	if err != nil {
		return nil, err
	}
	a.add(whatlanggo.Cmn, language{"cjk", &analysis.DefaultAnalyzer{Tokenizer: tokenizer,
		TokenFilters: []analysis.TokenFilter{width, lowercase.NewLowerCaseFilter(), bigrams}}, nil, -1})
	for _, lang := range []whatlanggo.Lang{whatlanggo.Jpn, whatlanggo.Kor} {
		a.detected[lang] = a.detected[whatlanggo.Cmn]
	}
	return a, nil
}

func (a *analyzers) add(lang whatlanggo.Lang, l language) {
	if lang >= 0 {
		a.detect.Whitelist[lang] = true
		a.detected[lang] = len(a.languages)
	}
	for word := range l.stop {
		a.stops[word] |= 1 << len(a.languages)
	}
	a.languages = append(a.languages, l)
}

// byCode is the number of a stored code or a BCP 47 tag.
func (a *analyzers) byCode(code string) (int, bool) {
	code, _, _ = strings.Cut(strings.ToLower(code), "-")
	switch code {
	case "zh", "ja", "ko":
		code = "cjk"
	case "nb", "nn":
		code = "no"
	}
	i := slices.IndexFunc(a.languages, func(l language) bool { return l.code == code })
	return max(i, 0), i >= 0
}

// Detection looks at the first bytes only; of shorter texts, and of those it cannot tell,
// it believes a few stop words.
const (
	manyStops     = 5
	fewStops      = 2
	detectAtMost  = 600
	detectAtLeast = 60
)

// guess tells the language of a text, or unknown. Stop words tell nearly all running text
// in microseconds; what they leave open is decided by trigrams, which take a hundred times
// as long.
func (a *analyzers) guess(text string) int {
	if len(text) < detectAtLeast && !strings.ContainsFunc(text, isCJK) {
		return a.byStopWords(text, fewStops)
	}
	if len(text) > detectAtMost {
		text = strings.ToValidUTF8(text[:detectAtMost], "")
	}
	if l := a.byStopWords(text, manyStops); l != unknown {
		return l
	}
	info := whatlanggo.DetectWithOptions(text, a.detect)
	if info.Lang < 0 || !info.IsReliable() {
		return a.byStopWords(text, fewStops)
	}
	return a.detected[info.Lang] // unknown when it is none of ours
}

// byStopWords is the language of which the text has at least so many stop words, and twice
// as many as of any other.
func (a *analyzers) byStopWords(text string, least int) int {
	var counts [32]int
	for word := range strings.FieldsFuncSeq(strings.ToLower(text), func(r rune) bool { return !unicode.IsLetter(r) }) {
		for in := a.stops[word]; in != 0; in &= in - 1 {
			counts[bits.TrailingZeros32(in)]++
		}
	}
	best, second := unknown, 0
	for l, n := range counts {
		if n > counts[best] {
			best, second = l, counts[best]
		} else if l != best {
			second = max(second, n)
		}
	}
	if counts[best] < least || counts[best] < 2*second {
		return unknown
	}
	return best
}

func isCJK(r rune) bool {
	return unicode.In(r, unicode.Han, unicode.Hiragana, unicode.Katakana, unicode.Hangul)
}

func (a *analyzers) terms(language int, text string) analysis.TokenStream {
	return a.languages[language].analyzer.Analyze([]byte(text))
}

// matching is terms, but words that cannot have one of the wanted terms may be left
// unstemmed: stemmers leave the first letter as it is where it has no accent.
func (a *analyzers) matching(language int, text string, wanted map[string]bool) analysis.TokenStream {
	l := a.languages[language]
	if l.stemmer < 0 {
		return a.terms(language, text)
	}
	only := new([256]bool)
	for t := range wanted {
		only[t[0]] = true
	}
	filters := slices.Clone(l.analyzer.TokenFilters)
	filters[l.stemmer] = stemFilter{filters[l.stemmer].(stemFilter).stem, only}
	analyzer := analysis.DefaultAnalyzer{Tokenizer: a.tokenizer, TokenFilters: filters}
	return analyzer.Analyze([]byte(text))
}

// splitFilter adds the parts of words in which letters meet digits: fy2018 also gives fy
// and 2018. Parts of one character say too little.
type splitFilter struct{}

func (splitFilter) Filter(in analysis.TokenStream) analysis.TokenStream {
	out := in
	copied := false
	for i, t := range in {
		parts := splitAtDigits(t.Term)
		if len(parts) > 1 && !copied {
			out = append(make(analysis.TokenStream, 0, len(in)+8), in[:i]...)
			copied = true
		}
		if copied {
			out = append(out, t)
		}
		if len(parts) < 2 {
			continue
		}
		at := t.Start
		for _, p := range parts {
			part := &analysis.Token{Term: p, Start: at, End: at + len(p), Position: t.Position, Type: t.Type}
			if t.End-t.Start != len(t.Term) { // lower case changed the length: the whole word stands for the part
				part.Start, part.End = t.Start, t.End
			}
			at += len(p)
			if len(p) > 1 {
				out = append(out, part)
			}
		}
	}
	return out
}

func splitAtDigits(word []byte) [][]byte {
	const none, letter, digit = 0, 1, 2
	var parts [][]byte
	start, last := 0, none
	for i, r := range string(word) {
		kind := none
		switch {
		case unicode.IsDigit(r):
			kind = digit
		case unicode.IsLetter(r):
			kind = letter
		}
		if kind+last == letter+digit && kind != none && last != none {
			parts = append(parts, word[start:i:i])
			start = i
		}
		last = kind
	}
	if parts == nil {
		return nil
	}
	return append(parts, word[start:len(word):len(word)])
}

// stemFilter replaces words by their Snowball stems.
type stemFilter struct {
	stem func(*snowballstem.Env) bool
	only *[256]bool // the ASCII letters whose words are stemmed; nil: all
}

func (f stemFilter) Filter(in analysis.TokenStream) analysis.TokenStream {
	env := snowballstem.NewEnv("")
	for _, t := range in {
		if len(t.Term) == 0 || t.Term[0] >= '0' && t.Term[0] <= '9' ||
			f.only != nil && t.Term[0] < utf8.RuneSelf && !f.only[t.Term[0]] {
			continue
		}
		env.SetCurrent(string(t.Term))
		f.stem(env)
		if stem := env.Current(); stem != "" {
			t.Term = []byte(stem)
		}
	}
	return in
}

// foldFilter takes the accents off.
type foldFilter struct{}

func (foldFilter) Filter(in analysis.TokenStream) analysis.TokenStream {
	for _, t := range in {
		if isASCII(t.Term) {
			continue
		}
		folded := make([]byte, 0, len(t.Term))
		for _, r := range string(norm.NFKD.Bytes(t.Term)) {
			switch {
			case unicode.Is(unicode.Mn, r):
			case r == 'ß':
				folded = append(folded, "ss"...)
			default:
				folded = utf8.AppendRune(folded, r)
			}
		}
		if len(folded) > 0 {
			t.Term = folded
		}
	}
	return in
}

func isASCII(b []byte) bool {
	for _, c := range b {
		if c >= utf8.RuneSelf {
			return false
		}
	}
	return true
}
