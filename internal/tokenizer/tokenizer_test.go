package tokenizer

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/leafmill/leafmill/internal/localmodel"
)

// encoder is what both tokenizers do.
type encoder interface{ Encode(string) []Token }

func load(t testing.TB) *WordPiece {
	t.Helper()
	w, err := Load(localmodel.In(localmodel.Dir(os.Getenv("LEAFMILL_MODEL_DIR"))).Tokenizer.Path)
	if err != nil {
		t.Fatalf("%v (run make setup)", err)
	}
	return w
}

func ids(tokens []Token) []int32 {
	out := make([]int32, len(tokens))
	for i, token := range tokens {
		out[i] = token.ID
	}
	return out
}

// TestGolden compares with the ids that Hugging Face's tokenizers gave, specials put around and cut at
// the number of tokens they were cut at.
func TestGolden(t *testing.T) {
	raw, err := os.ReadFile("testdata/golden.json")
	if err != nil {
		t.Fatal(err)
	}
	var golden struct {
		Items []struct {
			Text      string  `json:"text"`
			MaxTokens int     `json:"max_tokens"`
			IDs       []int32 `json:"ids"`
		} `json:"items"`
	}
	if err := json.Unmarshal(raw, &golden); err != nil {
		t.Fatal(err)
	}
	if len(golden.Items) != 10 {
		t.Fatalf("%d texts, not 10", len(golden.Items))
	}
	w := load(t)
	for _, item := range golden.Items {
		got := ids(w.Encode(item.Text))
		got = got[:min(len(got), item.MaxTokens-2)]
		got = append(append([]int32{CLS}, got...), SEP)
		if diff := cmp.Diff(item.IDs, got); diff != "" {
			t.Errorf("%.40q: ids differ (-want +got):\n%s", item.Text, diff)
		}
	}
}

// TestOddTexts has the places where tokenizers go wrong; ids by Hugging Face's tokenizers 0.23.
func TestOddTexts(t *testing.T) {
	w := load(t)
	for _, test := range []struct {
		name, text string
		want       []Token
	}{
		{"spaces", " \n\t\u00a0\u2028 ", []Token{}},
		{"only what is dropped", "\x00\u200b\u00ad\ufffd\xff\u0301", []Token{}},
		{"specials are text", "[CLS]x[SEP]", []Token{{1031, 0, 1, false}, {18856, 1, 3, false}, {2015, 3, 4, true},
			{1033, 4, 5, false}, {1060, 5, 6, false}, {1031, 6, 7, false}, {19802, 7, 10, false}, {1033, 10, 11, false}}},
		{"decomposed accent", "cafe\u0301 x", []Token{{7668, 0, 4, false}, {1060, 7, 8, false}}},
		{"composed accent", "café", []Token{{7668, 0, 5, false}}},
		{"Chinese apart", "a日b", []Token{{1037, 0, 1, false}, {1864, 1, 4, false}, {1038, 4, 5, false}}},
		{"joined over a control", "th\x00e", []Token{{1996, 0, 4, false}}},
		{"unknown", "\U0001F600", []Token{{Unknown, 0, 4, false}}},
		{"100 letters", strings.Repeat("the", 33) + "s", append(
			[]Token{{1996, 0, 3, false}}, piecesOf(10760, 3, 96, 3, Token{24138, 96, 100, true})...)},
		{"101 letters", strings.Repeat("a", 101), []Token{{Unknown, 0, 101, false}}},
	} {
		if diff := cmp.Diff(test.want, w.Encode(test.text)); diff != "" {
			t.Errorf("%s: (-want +got):\n%s", test.name, diff)
		}
	}
}

// piecesOf is the same piece again and again, then a last one.
func piecesOf(id int32, from, to, step int, last Token) []Token {
	var out []Token
	for ; from < to; from += step {
		out = append(out, Token{id, from, from + step, true})
	}
	return append(out, last)
}

func TestLoadRefuses(t *testing.T) {
	const good = `{"normalizer":{"type":"BertNormalizer","clean_text":true,"handle_chinese_chars":true,"strip_accents":null,"lowercase":true},` +
		`"pre_tokenizer":{"type":"BertPreTokenizer"},"truncation":{"max_length":2},` +
		`"model":{"type":"WordPiece","unk_token":"[UNK]","continuing_subword_prefix":"##","max_input_chars_per_word":100,` +
		`"vocab":{"[UNK]":100,"[CLS]":101,"[SEP]":102,"a":1,"##b":2,"##":3}}}`
	w, err := parse([]byte(good))
	if err != nil {
		t.Fatal(err)
	}
	if got := ids(w.Encode("ab a ab c")); !slices.Equal(got, []int32{1, 2, 1, 1, 2, 100}) {
		t.Errorf("the small vocabulary gives %v", got)
	}
	for _, change := range [][2]string{
		{`"lowercase":true`, `"lowercase":false`}, {`"strip_accents":null`, `"strip_accents":false`},
		{`"BertPreTokenizer"`, `"Whitespace"`}, {`"WordPiece"`, `"BPE"`}, {`"[CLS]":101`, `"[CLS]":1`},
		{`:100,"vocab"`, `:50,"vocab"`}, {`{"normalizer"`, `["normalizer"`}, {`"a":1`, `"a":"1"`},
	} {
		bad := strings.Replace(good, change[0], change[1], 1)
		if bad == good {
			t.Fatalf("%s is not in the file", change[0])
		}
		if _, err := parse([]byte(bad)); err == nil {
			t.Errorf("accepted with %s", change[1])
		}
	}
	if _, err := Load(filepath.Join(t.TempDir(), "none.json")); err == nil {
		t.Error("a missing file was loaded")
	}
}

func TestApproximationIsCareful(t *testing.T) {
	w := load(t)
	for _, text := range []string{
		"The canonical NF-κB pathway, in mammals, is based on signal-induced degradation of cytoplasmic inhibitors.",
		"Die Landesregierung hat am 3. März 2024 beschlossen, die Wasserversorgungsunternehmen stärker zu prüfen.",
		"¿Cuántos años tenía el niño español cuando llegó a la ciudad por primera vez, y quién lo acompañaba?",
		"Сегодня хорошая погода, и мы идём гулять.", "東京は日本の首都です。", "FY2018: 1,577 (USD millions)",
	} {
		count, really := len(Approximate().Encode(text)), len(w.Encode(text))
		if float64(count) < 0.9*float64(really) || count > 2*really {
			t.Errorf("%.20q: %d tokens approximated, %d really", text, count, really)
		}
	}
}

// check holds the guarantees of the package for one text.
func check(t interface{ Fatalf(string, ...any) }, e encoder, text string, cut int) {
	tokens := e.Encode(text)
	at := 0
	for i, token := range tokens {
		if token.Start < at || token.End <= token.Start || token.End > len(text) {
			t.Fatalf("token %d of %q has the span %d-%d after %d", i, text, token.Start, token.End, at)
		}
		if !utf8.RuneStart(text[token.Start]) || token.End < len(text) && utf8.ValidString(text) && !utf8.RuneStart(text[token.End]) {
			t.Fatalf("token %d of %q cuts a rune: %d-%d", i, text, token.Start, token.End)
		}
		at = token.Start
		if token.Continues && i == 0 {
			t.Fatalf("the first token of %q continues nothing", text)
		}
	}
	if len(tokens) == 0 {
		return
	}
	i := cut % len(tokens)
	if tokens[i].Continues {
		return
	}
	left, right := e.Encode(text[:tokens[i].Start]), e.Encode(text[tokens[i].Start:])
	if got := append(ids(left), ids(right)...); !slices.Equal(got, ids(tokens)) {
		t.Fatalf("%q cut before token %d gives\n%v, not\n%v", text, i, got, ids(tokens))
	}
	// Without the spaces around it, a part is the same too.
	if got := e.Encode(strings.TrimSpace(text[:tokens[i].Start])); !slices.Equal(ids(got), ids(left)) {
		t.Fatalf("%q trimmed gives other tokens", text[:tokens[i].Start])
	}
}

func texts() *rapid.Generator[string] {
	return rapid.OneOf(
		rapid.String(),
		rapid.StringMatching(`([A-Za-z]{1,12}[ ,.\n-]{1,2}){0,30}`),
		rapid.StringOf(rapid.RuneFrom([]rune("ab .\n\u0301\u0000\u200b日豈éßİſ한\u037e[]#12"))),
		rapid.Map(rapid.SliceOf(rapid.Byte()), func(b []byte) string { return string(b) }),
	)
}

func TestGuarantees(t *testing.T) {
	w := load(t)
	rapid.Check(t, func(t *rapid.T) {
		text, cut := texts().Draw(t, "text"), rapid.IntRange(0, 1000).Draw(t, "cut")
		check(t, w, text, cut)
		check(t, Approximate(), text, cut)
	})
}

// TestEveryRune holds the guarantees for every code point between letters.
func TestEveryRune(t *testing.T) {
	w := load(t)
	for r := rune(0); r <= unicode.MaxRune; r++ {
		if r >= 0x3400 && r <= 0xd7ff && r%16 != 0 || r >= 0x20000 && r < 0xe0000 && r%64 != 0 || r >= 0xf0000 && r%64 != 0 {
			continue // thousands of ideographs, syllables and private ones behave the same
		}
		text := "ab" + string(r) + "cd " + string(r)
		check(t, w, text, int(r))
		check(t, Approximate(), text, int(r))
	}
}

// TestLongWordIsCheap: a word without end must not cost memory beyond its text.
func TestLongWordIsCheap(t *testing.T) {
	var long word
	for at := range 1 << 20 {
		long.add('e', at, at+1)
	}
	if cap(long.text) > 1024 || cap(long.starts) > 1024 {
		t.Errorf("a word of a million letters keeps %d of them", cap(long.text))
	}
	text := strings.Repeat("é", 1<<20)
	want := []Token{{ID: Unknown, End: len(text)}}
	if diff := cmp.Diff(want, load(t).Encode(text)); diff != "" {
		t.Error(diff)
	}
}

func FuzzEncode(f *testing.F) {
	for _, seed := range []string{"", "A man is eating food.", "Straße 3,5 €", "東京は日本", "\xff\xfe", "[CLS] ##ing", "e\u0301\u0301", "\u1100\u1161"} {
		f.Add(seed, 3)
	}
	w := load(f)
	f.Fuzz(func(t *testing.T, text string, cut int) {
		check(t, w, text, max(cut, 0))
		check(t, Approximate(), text, max(cut, 0))
	})
}

func BenchmarkEncode(b *testing.B) {
	w := load(b)
	text := strings.Repeat("The canonical NF-κB pathway, in mammals, is based on degradation (IκB inhibitors). ", 12)
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		w.Encode(text)
	}
}
