package chunk

import (
	"strings"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"

	"github.com/leafmill/leafmill/events"
	"github.com/leafmill/leafmill/internal/tokenizer"
)

// TestCutIsExact: sliced by its span, the unit's text is the chunk's, whatever the text.
func TestCutIsExact(t *testing.T) {
	words := rapid.SampledFrom([]string{"mill", "Wasserrad.", "niño", "# Head\n", "\n\n", "水車小屋", "tide;", "🌊", "\t", "x1"})
	rapid.Check(t, func(rt *rapid.T) {
		first := rapid.IntRange(1, 50).Draw(rt, "first")
		e := &events.Extracted{Pass: events.Pass{DocumentID: "d", Version: 7}}
		var texts []events.UnitText
		for i := range rapid.IntRange(1, 4).Draw(rt, "units") {
			text := strings.Join(rapid.SliceOfN(words, 0, 400).Draw(rt, "words"), " ")
			u := events.Unit{Unit: first + i, Page: i + 1, Length: utf8.RuneCountInString(text)}
			if rapid.IntRange(0, 4).Draw(rt, "failed") == 0 {
				u.Problem = &events.Problem{Code: "ocr.corrupt"}
			}
			e.Units = append(e.Units, u)
			texts = append(texts, events.UnitText{Unit: u.Unit, Text: text})
		}
		seen := map[string]bool{}
		for _, c := range cut(e, texts, tokenizer.Approximate(), 128) {
			i := c.Unit - first
			if e.Units[i].Problem != nil {
				rt.Fatalf("chunk %s of a failed unit", c.ID)
			}
			if got := string([]rune(texts[i].Text)[c.Start:c.End]); got != c.Text || c.Text == "" {
				rt.Fatalf("chunk %s is %q, its span %q", c.ID, c.Text, got)
			}
			if c.Tokens > 128 || c.Page != e.Units[i].Page || seen[c.ID] || !strings.HasPrefix(c.ID, "d@7/") {
				rt.Fatalf("chunk %+v", c)
			}
			seen[c.ID] = true
		}
	})
}
