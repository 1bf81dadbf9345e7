package embedded

import (
	"testing"
	"unicode/utf8"
)

// FuzzAnalysis: any text in any language can be analysed (the stemmers and the language
// detection are not ours), and highlights lie inside it, in order.
func FuzzAnalysis(f *testing.F) {
	for _, s := range []string{"", "FY2018 über l'eau", "İstanbul 10€ naïve", "日本語 テスト", "a\xff\xfeb", "'s 's", "e\u0301e\u0301 x", "ßßß", "4x4 b2b"} {
		f.Add(s, s)
	}
	a, err := newAnalyzers()
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text, query string) {
		a.guess(text)
		chunks := make([]int, len(a.languages))
		for l := range chunks {
			chunks[l] = 1
		}
		words := a.words(query, chunks)
		for l := range a.languages {
			a.terms(l, text)
			last := 0
			for _, r := range a.highlights(l, text, words) {
				if r[0] < last || r[1] <= r[0] || r[1] > utf8.RuneCountInString(text) {
					t.Fatalf("highlight %v of %q", r, text)
				}
				last = r[1]
			}
		}
	})
}
