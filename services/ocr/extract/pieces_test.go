package extract

import (
	"bytes"
	"io"
	"os"
	"strings"
	"testing"
	"unicode/utf8"

	"golang.org/x/text/encoding/htmlindex"
	"golang.org/x/text/transform"
	"pgregory.net/rapid"
)

// pieces cuts a text that arrives in parts of any size.
func pieces(t rapid.TB, r io.Reader) []string {
	var all []string
	s := &splitter{emit: func(p []byte) error { all = append(all, string(p)); return nil }}
	w := transform.NewWriter(s, cleaner{})
	if _, err := io.Copy(w, r); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return all
}

// checkPieces holds for any bytes whatever.
func checkPieces(t rapid.TB, raw []byte, all []string) {
	want := clean(raw)
	if got := strings.Join(all, ""); got != want {
		t.Fatalf("the pieces joined are not the text: %d bytes, want %d", len(got), len(want))
	}
	for i, p := range all {
		if len(p) > PieceBytes || p == "" || !utf8.ValidString(p) {
			t.Fatalf("piece %d has %d bytes, valid %v", i, len(p), utf8.ValidString(p))
		}
		if i < len(all)-1 && len(p) < PieceBytes/3 {
			t.Fatalf("piece %d has only %d bytes", i, len(p))
		}
	}
	for _, r := range want {
		if r < ' ' && r != '\n' && r != '\t' || r >= 0x7f && r < 0xa0 {
			t.Fatalf("control character %U", r)
		}
	}
}

func TestPieces(t *testing.T) {
	parts := rapid.SampledFrom([]string{"word ", "Ein Satz. ", "「文。」", "\n", "\n\n", "\r\n", "\r", "e\u0301", "👩‍👩‍👧",
		"\x00", "\f", "\xff", "\xe2\x82", "\u0085", "日本語", strings.Repeat("x", 3000), strings.Repeat("é", 1500), strings.Repeat("👍🏽", 600)})
	rapid.Check(t, func(t *rapid.T) {
		raw := []byte(strings.Join(rapid.SliceOfN(parts, 0, 60).Draw(t, "parts"), ""))
		step := rapid.IntRange(1, 5000).Draw(t, "step")
		checkPieces(t, raw, pieces(t, &stutter{bytes.NewReader(raw), step}))
	})
}

// stutter reads at most some bytes at a time.
type stutter struct {
	r    io.Reader
	step int
}

func (s *stutter) Read(p []byte) (int, error) { return s.r.Read(p[:min(len(p), s.step)]) }

func TestWhereTextIsCut(t *testing.T) {
	prose := strings.Repeat("The mill turns twice a day.\nThat is all there\nis to it. ", 200)
	for name, test := range map[string]struct{ text, before, after string }{
		"paragraph":           {strings.Repeat("w", 7000) + ". And\n\nthen " + prose, "And\n\n", "then"},
		"sentence":            {prose, ". ", "The mill"},
		"line":                {strings.Repeat("cell;cell\n", 2000), "cell;cell\n", "cell;"},
		"word":                {strings.Repeat("cell ", 3000), "cell ", "cell"},
		"no break at all":     {strings.Repeat("x", 9000), "x", "x"},
		"combining accents":   {strings.Repeat("e\u0301", 9000), "e\u0301", "e"},
		"families of emoji":   {strings.Repeat("👩‍👩‍👧", 1000), "👩‍👩‍👧", "👩‍👩‍👧"},
		"late paragraph only": {"a\n\n" + strings.Repeat("cell ", 3000), "cell ", "cell"},
		"Chinese sentence":    {strings.Repeat("磨坊每天转两次。", 700), "。", "磨"},
	} {
		all := pieces(t, strings.NewReader(test.text))
		if len(all) < 2 || !strings.HasSuffix(all[0], test.before) || !strings.HasPrefix(all[1], test.after) {
			t.Errorf("%s: cut between %q and %q", name, tailOf(all[0]), all[min(1, len(all)-1)][:20])
		}
	}
}

func tailOf(s string) string { return s[max(0, len(s)-30):] }

func TestCharsets(t *testing.T) {
	const (
		german   = "Größe;Straße;Preis in €\nJürgen Müller;Köln;12,50 €\nÄpfel;Übersee;3,20 €\n"
		russian  = "Мельница работает два раза в день, когда уходит прилив. Сегодня хорошая погода, и мы идём гулять."
		japanese = "これは日本語の文章です。今日は天気がいいので、公園に行きます。"
		chinese  = "这是一个中文文本。今天天气很好，我们去公园散步。"
	)
	for _, test := range []struct {
		charset, text, declared string
	}{
		{"utf-8", german, ""},
		{"utf-8", japanese, "text/plain; charset=windows-1252"}, // a lie
		{"windows-1252", german, ""},
		{"windows-1252", german, "text/plain; charset=utf-8"}, // a lie
		{"windows-1252", "L'été à la mer, où l'on goûte les crêpes — “bien sûr”.", ""},
		{"windows-1251", russian, ""},
		{"koi8-r", russian, ""},
		{"shift_jis", japanese, ""},
		{"euc-jp", japanese, ""},
		{"iso-2022-jp", japanese, ""},
		{"gb18030", chinese, ""},
		{"big5", "這是一個中文文本。今天天氣很好，我們去公園散步。", ""},
		{"euc-kr", "이것은 한국어 텍스트입니다. 오늘은 날씨가 좋아서 공원에 갑니다.", ""},
		{"iso-8859-2", "Zażółć gęślą jaźń.", "text/plain; charset=iso-8859-2"},
		{"utf-16le", german, ""},
		{"utf-16be", german, ""},
		{"windows-1252", "<html><meta charset=windows-1252><p>" + german, ""},
		{"shift_jis", "<html><meta charset=Shift_JIS><p>報告", ""},
	} {
		enc, err := htmlindex.Get(test.charset)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := enc.NewEncoder().Bytes([]byte(test.text))
		if err != nil {
			t.Fatal(err)
		}
		// Long enough not to be cut off in the sample only, with ASCII before.
		d := mustOpen(t, Config{}, file(t, "a", raw), Hint{MediaType: test.declared})
		got := strings.Join(texts(walk(t, d)), "")
		plain := test.text[strings.LastIndex(test.text, ">")+1:]
		if strings.Join(strings.Fields(got), " ") != strings.Join(strings.Fields(plain), " ") {
			t.Errorf("%s (declared %q) was read as %s: %q", test.charset, test.declared, d.charset.name, got)
		}
	}
}

func TestWhatTextIs(t *testing.T) {
	for _, test := range []struct {
		text string
		hint Hint
		want string
	}{
		{"plain words", Hint{}, "text/plain"},
		{"plain words", Hint{Name: "a.pdf", MediaType: "application/pdf"}, "text/plain"},
		{"# Title", Hint{Name: "README.MD"}, "text/markdown"},
		{"<p align=center>logo</p>\n\n# Title", Hint{Name: "README.md"}, "text/markdown"},
		{"<!doctype html><p>page", Hint{Name: "README.md"}, "text/html"},
		{"<div>part</div>", Hint{Name: "a.html"}, "text/html"},
		{"name,town\nAna,Vigo\n", Hint{MediaType: "text/csv; header=present"}, "text/csv"},
		{`{"a": [1, 2]}`, Hint{}, "application/json"},
		{"PK", Hint{}, "text/plain"},
		{"From the mill, with love", Hint{}, "text/plain"},
		{" \n", Hint{}, "text/plain"},
	} {
		d := mustOpen(t, Config{}, file(t, "a", []byte(test.text)), test.hint)
		if d.MediaType != test.want || d.Units != 1 {
			t.Errorf("%q %+v is %s with %d units", test.text, test.hint, d.MediaType, d.Units)
		}
	}
}

func TestNothingVisible(t *testing.T) {
	d := mustOpen(t, Config{}, file(t, "a.html", []byte("<!doctype html><title>t</title><script>x()</script>")), Hint{})
	units := walk(t, d)
	if len(units) != 1 || units[0].Text != "" || units[0].Err != nil {
		t.Errorf("%+v", units)
	}
}

// TestLongText goes through the cache, from the end to the beginning.
func TestLongText(t *testing.T) {
	var raw bytes.Buffer
	for raw.Len() < 3<<20 {
		raw.WriteString("Größe und Gewicht der Mühlsteine.\r\nZeile zwei.\r\n\r\n")
	}
	c := Config{Dir: t.TempDir()}
	path := file(t, "long.txt", raw.Bytes())
	d := mustOpen(t, c, path, Hint{})
	all := texts(walk(t, d))
	checkPieces(t, raw.Bytes(), all)
	for _, from := range []int{d.Units, d.Units / 2, 2, 1} {
		s, err := d.Read(t.Context(), from)
		if err != nil || s[0].Text != all[from-1] {
			t.Fatalf("unit %d: %v", from, err)
		}
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if s, err := d.Read(t.Context(), 5); err != nil || s[0].Text != all[4] {
		t.Errorf("the original was decoded again: %v", err)
	}
}

func TestHTML(t *testing.T) {
	for in, want := range map[string]string{
		`<h2>A</h2><p>b <b>c</b></p><ul><li>d<li>e</ul>`:             "## A\n\nb **c**\n\n- d\n- e",
		`<table><tr><td>a<td>b<tr><td>1<td>2</table>`:                "| a | b |\n|---|---|\n| 1 | 2 |",
		`<a href="https://example.org/">x</a> <a href="#top">y</a>`:  "[x](https://example.org/) y",
		`<p>a<img src="data:image/png;base64,AAAA" alt=" a mill ">b`: "aa millb",
		`<p>2 * 3 _ 4 [x]`: "2 * 3 _ 4 [x]",
		`<p>seen<noscript>no</noscript><template>no</template><!--c-->`: "seen",
	} {
		var out bytes.Buffer
		if err := htmlToMarkdown(strings.NewReader(in), &out); err != nil || out.String() != want {
			t.Errorf("%s\ngot  %q, %v\nwant %q", in, out.String(), err, want)
		}
	}
}

func FuzzPieces(f *testing.F) {
	f.Add([]byte("a\r\n\x00b\xff"), 3)
	f.Add([]byte(strings.Repeat("e\u0301", 6000)), 1000)
	f.Fuzz(func(t *testing.T, raw []byte, step int) {
		checkPieces(t, raw, pieces(t, &stutter{bytes.NewReader(raw), max(1, step)}))
	})
}

// FuzzSniff checks that any bytes are refused with a failure or give the format's promises.
func FuzzSniff(f *testing.F) {
	for _, seed := range []string{"", "%PDF-1.4", "\xff\xfea\x00", "<html><meta charset=gbk>\xc4\xe3", "II*\x00\x08\x00\x00\x00\x00\x00", "\x1b$B$3", "PK\x03\x04"} {
		f.Add([]byte(seed), "a.md", "text/plain; charset=utf-7")
	}
	f.Add(circle, "", "")
	f.Fuzz(func(t *testing.T, raw []byte, name, media string) {
		path := file(t, "a", raw)
		r, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if len(raw) == 0 {
			return
		}
		form, err := sniff(r, int64(len(raw)), Hint{Name: name, MediaType: media})
		if err != nil {
			return
		}
		d := &Document{MediaType: form.mediaType, Kind: form.kind, charset: form.charset, path: path,
			e: &Extractor{config: Config{MaxPages: 100}.withDefaults()}}
		switch form.kind {
		case Image:
			if d.openImage(r) == nil && (d.Units < 1 || d.Units > 100) {
				t.Errorf("%d pages", d.Units)
			}
		case Text:
			if err := d.openText(t.Context(), r); err != nil || d.Units < 1 {
				t.Errorf("%d units, %v", d.Units, err)
			}
		}
	})
}

func FuzzHTML(f *testing.F) {
	f.Add("<table><tr><td>a<table><tr><td></table>")
	f.Add("<svg><![CDATA[x]]></svg><a href=://>")
	f.Add(strings.Repeat("<b><i>", 300))
	f.Fuzz(func(t *testing.T, in string) {
		var out bytes.Buffer
		_ = htmlToMarkdown(strings.NewReader(in), &out)
	})
}
