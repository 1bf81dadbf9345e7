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

// TestShortTextsAreStemmed: two words that every text of a language has tell it.
func TestShortTextsAreStemmed(t *testing.T) {
	a, err := newAnalyzers()
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{
		"The heat pump is guaranteed for ten years.": "en",
		"Der Schlüssel ist nicht bei der Pumpe":      "de",
		"El mapa y los otros papeles del molino":     "es",
		"guaranteed 2019":                            "",
	} {
		got := ""
		if l := a.guess(text); l != unknown {
			got = a.languages[l].code
		}
		if got != want {
			t.Errorf("%q is taken for %q, not %q", text, got, want)
		}
	}
}
