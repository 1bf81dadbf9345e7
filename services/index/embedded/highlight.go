package embedded

import (
	"slices"
	"unicode/utf8"
)

// highlights returns the code point ranges of a text's words that have a term of the
// query, in order and without overlap. It is never nil.
func (a *analyzers) highlights(language int, text string, words []word) [][2]int {
	ranges := [][2]int{}
	wanted := make(map[string]bool, len(words))
	for _, w := range words {
		if t := w.terms[language]; t != "" {
			wanted[t] = true
		}
	}
	if len(wanted) == 0 {
		return ranges
	}
	for _, t := range a.matching(language, text, wanted) {
		if wanted[string(t.Term)] && t.Start >= 0 && t.Start < t.End && t.End <= len(text) {
			ranges = append(ranges, [2]int{t.Start, t.End})
		}
	}
	slices.SortFunc(ranges, func(x, y [2]int) int { return x[0] - y[0] })
	merged := ranges[:0]
	for _, r := range ranges {
		if n := len(merged); n > 0 && r[0] < merged[n-1][1] {
			merged[n-1][1] = max(merged[n-1][1], r[1])
			continue
		}
		merged = append(merged, r)
	}
	// From bytes to code points.
	bytes, points := 0, 0
	to := func(at int) int {
		points += utf8.RuneCountInString(text[bytes:at])
		bytes = at
		return points
	}
	for i, r := range merged {
		merged[i] = [2]int{to(r[0]), to(r[1])}
	}
	return merged
}
