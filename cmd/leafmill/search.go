package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/leafmill/leafmill/internal/api"
	"github.com/leafmill/leafmill/internal/config"
)

func (a *app) searchCommand() *cobra.Command {
	var r api.SearchRequest
	var asJSON bool
	var flags *config.Flags
	c := &cobra.Command{
		Use:   "search QUERY",
		Short: "Find passages, with the document and page they stand on",
		Example: `  leafmill search "heat pump warranty"
  leafmill search "FY2018 revenue" -k 3 --collection reports --json`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := a.client(flags)
			if err != nil {
				return err
			}
			r.Q = strings.Join(args, " ")
			answer, err := cl.Search(cmd.Context(), r)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(a.out, answer)
			}
			return a.printHits(answer)
		},
	}
	f := c.Flags()
	f.IntVarP(&r.K, "k", "k", 5, "how many passages, 1 to 300")
	f.StringVar(&r.Mode, "mode", api.ModeHybrid, "by meaning and words, words, or meaning: hybrid, keyword, dense")
	f.StringVar(&r.Collection, "collection", "", "only in this collection")
	f.StringVar(&r.DocumentID, "document-id", "", "only in this document")
	f.BoolVar(&asJSON, "json", false, "print the answer as JSON")
	flags = config.AddFlags(f, "url")
	return c
}

func (a *app) printHits(answer api.SearchAnswer) error {
	bold, plain := "", ""
	if terminal(a.out) {
		bold, plain = "\x1b[1m", "\x1b[0m"
	}
	var b strings.Builder
	for i, h := range answer.Results {
		name := h.Name
		if name == "" {
			name = h.DocumentID
		}
		fmt.Fprintf(&b, "%s%s, page %d%s  %.2f\n", bold, clean(name), h.Page, plain, h.Score)
		for _, line := range wrap(passage(h, 320), 92) {
			b.WriteString("    " + mark(line, bold, plain) + "\n")
		}
		if i < len(answer.Results)-1 {
			b.WriteString("\n")
		}
	}
	if len(answer.Results) == 0 {
		b.WriteString("Nothing was found.\n")
	}
	if answer.Degraded {
		fmt.Fprintf(&b, "\n(searched by %s only: no embedding model answers right now)\n", answer.Mode)
	}
	_, err := fmt.Fprint(a.out, b.String())
	return err
}

// Marks stand for the begin and end of a highlight until the lines are wrapped: from the
// private use area, which clean takes out of documents.
const (
	markOn  = '\uE000'
	markOff = '\uE001'
)

// passage is at most limit letters of a hit around its first highlight, with marks.
func passage(h api.Hit, limit int) string {
	text := []rune(h.Text)
	from := 0
	if len(h.Highlights) > 0 {
		from = max(0, min(h.Highlights[0][0]-limit/4, len(text)-limit))
	}
	to := min(len(text), from+limit)
	on, off := map[int]bool{}, map[int]bool{}
	for _, r := range h.Highlights {
		if r[0] >= from && r[1] <= to && r[0] < r[1] {
			on[r[0]], off[r[1]] = true, true
		}
	}
	var b strings.Builder
	if from > 0 {
		b.WriteString("... ")
	}
	for i := from; i < to; i++ {
		if off[i] {
			b.WriteRune(markOff)
		}
		if on[i] {
			b.WriteRune(markOn)
		}
		b.WriteString(clean(string(text[i])))
	}
	if off[to] {
		b.WriteRune(markOff)
	}
	if to < len(text) {
		b.WriteString(" ...")
	}
	return b.String()
}

// wrap breaks a text at blanks into lines of at most width letters, longer words apart.
func wrap(text string, width int) (lines []string) {
	var line []string
	n := 0
	for word := range strings.FieldsSeq(text) {
		w := len([]rune(strings.NewReplacer(string(markOn), "", string(markOff), "").Replace(word)))
		if n > 0 && n+1+w > width {
			lines = append(lines, strings.Join(line, " "))
			line, n = nil, 0
		}
		line = append(line, word)
		n += w + 1
	}
	if len(line) > 0 {
		lines = append(lines, strings.Join(line, " "))
	}
	return lines
}

func mark(line, bold, plain string) string {
	return strings.NewReplacer(string(markOn), bold, string(markOff), plain).Replace(line)
}
