package split

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/leafmill/leafmill/internal/localmodel"
	"github.com/leafmill/leafmill/internal/tokenizer"
)

func wordPiece(t testing.TB) Tokenizer {
	t.Helper()
	w, err := tokenizer.Load(localmodel.In(localmodel.Dir(os.Getenv("LEAFMILL_MODEL_DIR"))).Tokenizer.Path)
	if err != nil {
		t.Fatalf("%v (run make setup)", err)
	}
	return w
}

// check holds the guarantees of the package.
func check(t interface{ Fatalf(string, ...any) }, text string, tok Tokenizer, most int) []Span {
	spans := Text(text, tok, most)
	points := []rune(text)
	at := 0
	for i, s := range spans {
		if s.Start < at || s.End <= s.Start || s.End > len(points) {
			t.Fatalf("chunk %d of %q is %d-%d after %d", i, text, s.Start, s.End, at)
		}
		if got := string(points[s.Start:s.End]); got != s.Text && strings.ToValidUTF8(text, "") == text {
			t.Fatalf("chunk %d of %q is %q, its offsets say %q", i, text, s.Text, got)
		}
		if strings.TrimSpace(s.Text) != s.Text {
			t.Fatalf("chunk %d of %q has spaces around: %q", i, text, s.Text)
		}
		if gap := strings.TrimSpace(string(points[at:s.Start])); gap != "" {
			t.Fatalf("%q of %q is in no chunk", gap, text)
		}
		if again := len(tok.Encode(s.Text)); s.Tokens != again || s.Tokens > max(most, MinMax) || s.Tokens < 1 {
			t.Fatalf("chunk %d of %q has %d tokens, tokenised anew %d", i, text, s.Tokens, again)
		}
		at = s.End
	}
	if rest := string(points[at:]); len(spans) > 0 && strings.TrimSpace(rest) != "" {
		t.Fatalf("%q of %q is in no chunk", rest, text)
	}
	if tokens := len(tok.Encode(text)); (tokens == 0) != (len(spans) == 0) {
		t.Fatalf("%d tokens, %d chunks", tokens, len(spans))
	}
	return spans
}

// documents draws texts of all shapes: prose with paragraphs and headings, lines without an end, long
// words, other scripts, and noise.
func documents() *rapid.Generator[string] {
	atoms := rapid.SampledFrom([]string{"word", "Sentence.", "It ends here. ", "ends? ", "\n", "\n\n", "\r\n", "\n# Heading\n", "\n## Über uns\n\n",
		"```\n# no heading\n```\n", "Title\n=====\n", "antidisestablishmentarianism", strings.Repeat("x", 130), "Straße", "東京は日本の首都です。",
		"e\u0301", "\u200b", "\u00a0", "\f", "\u0085", "😀", "- item\n", "| a | b |\n", "3,5", "...", "-----\n", "안녕하세요 ", "\u0301"})
	return rapid.Custom(func(t *rapid.T) string {
		var b strings.Builder
		for range rapid.IntRange(0, 25).Draw(t, "parts") {
			atom := atoms.Draw(t, "atom")
			for range rapid.SampledFrom([]int{1, 1, 1, 2, 30}).Draw(t, "times") {
				b.WriteString(atom)
				if rapid.Bool().Draw(t, "space") {
					b.WriteString(" ")
				}
			}
		}
		return b.String()
	})
}

func TestGuarantees(t *testing.T) {
	w := wordPiece(t)
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.OneOf(documents(), rapid.String()).Draw(t, "text")
		most := rapid.SampledFrom([]int{0, MinMax, 101, 128, DefaultMax}).Draw(t, "max")
		check(t, text, w, most)
		check(t, text, tokenizer.Approximate(), most)
	})
}

func FuzzText(f *testing.F) {
	for _, seed := range []string{"", " \n", "# A\n\nB. C.\n\n# D", strings.Repeat("a.", 300), "\xff\n\xff", "A\n===\nB"} {
		f.Add(seed)
	}
	w := wordPiece(f)
	f.Fuzz(func(t *testing.T, text string) {
		check(t, text, w, MinMax)
		check(t, text, tokenizer.Approximate(), MinMax)
	})
}

func TestNothing(t *testing.T) {
	for _, text := range []string{"", " ", "\n\n\t\u00a0", "\x00\u200b"} {
		if spans := Text(text, wordPiece(t), DefaultMax); len(spans) != 0 {
			t.Errorf("%q has the chunks %+v", text, spans)
		}
	}
}

// prose is a paragraph of n sentences of 9 tokens each, the full stop included.
func prose(name string, n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "In the %s the man went home %d. ", name, i%10)
	}
	return strings.TrimSpace(b.String())
}

// TestPlaces says where cuts must fall.
func TestPlaces(t *testing.T) {
	w := wordPiece(t)
	if n := len(w.Encode(prose("house", 10))); n != 90 {
		t.Fatalf("the prose has %d tokens for 10 sentences", n)
	}
	hard := func(s string) string { return strings.ReplaceAll(s, " man ", "\nman ") }
	for _, test := range []struct {
		name, text string
		begins     []string // of each chunk
	}{
		{"fits", prose("house", 27), []string{"In the house"}},
		{"a short one with headings fits", "# A\n\n" + prose("house", 2) + "\n\n# B\n\n" + prose("car", 3), []string{"# A"}},
		{"paragraphs before sentences", prose("house", 20) + "\n\n" + prose("car", 20), []string{"In the house", "In the car"}},
		{"sentences", prose("house", 60), []string{"In the house the man went home 0", "In the house the man went home 8", "In the house the man went home 4"}},
		{"sentences over line ends", hard(prose("house", 60)), []string{"In the house the\nman went home 0", "In the house the\nman went home 8", "In the house the\nman went home 4"}},
		{"headings", "# A\n\n" + prose("house", 12) + "\n\n## B\n\n" + prose("car", 12) + "\n\n## C\n" + prose("dog", 12), []string{"# A", "## B", "## C"}},
		{"underlined headings", "A\n===\n\n" + prose("house", 12) + "\n\nB\n---\n" + prose("car", 12), []string{"A\n===", "B\n---"}},
		{"short sections together", "# A\n\n" + prose("house", 4) + "\n\n# B\n\n" + prose("car", 8) + "\n\n# C\n\n" + prose("dog", 20), []string{"# A", "# C"}},
		{"no heading in code", prose("house", 12) + "\n\n```\n# B\n```\n\n" + prose("car", 12), []string{"In the house"}},
		{"a heading stays with its text", prose("house", 26) + "\n\n## B\n\n" + prose("car", 20), []string{"In the house", "## B"}},
		{"no tiny rest", prose("house", 29), []string{"In the house the man went home 0", "In the house the man went home 3"}},
		{"no end of a sentence", strings.Repeat("word ", 300), []string{"word", "word"}},
		{"list", strings.Repeat("- one thing and another\n", 60), []string{"- one", "- one"}},
	} {
		spans := check(t, test.text, w, DefaultMax)
		ok := len(spans) == len(test.begins)
		for i := range min(len(spans), len(test.begins)) {
			ok = ok && strings.HasPrefix(spans[i].Text, test.begins[i])
		}
		if !ok {
			t.Errorf("%s: %d chunks", test.name, len(spans))
			for _, s := range spans {
				t.Logf("  %d tokens: %.40q ... %q", s.Tokens, s.Text, s.Text[max(0, len(s.Text)-30):])
			}
		}
	}
}

// TestFull: chunks of ordinary prose are used well, and none but an only one is tiny.
func TestFull(t *testing.T) {
	w := wordPiece(t)
	for n := 1; n < 200; n++ {
		text := prose("house", n)
		spans := check(t, text, w, DefaultMax)
		total := 0
		for _, s := range spans {
			total += s.Tokens
			if s.Tokens < DefaultMax/tailFill && len(spans) > 1 {
				t.Errorf("%d sentences: a chunk of %d tokens", n, s.Tokens)
			}
			if s.End < len([]rune(text)) && !strings.HasSuffix(s.Text, ".") {
				t.Errorf("%d sentences: a chunk ends %q", n, s.Text[len(s.Text)-20:])
			}
		}
		if least := (total + DefaultMax - 1) / DefaultMax; len(spans) > least+1 {
			t.Errorf("%d tokens in %d chunks", total, len(spans))
		}
	}
}

func BenchmarkText(b *testing.B) {
	w := wordPiece(b)
	text := "# A\n\n" + strings.Repeat(prose("house", 20)+"\n\n", 10)
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		Text(text, w, DefaultMax)
	}
}
