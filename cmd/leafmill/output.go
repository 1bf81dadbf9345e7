package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/leafmill/leafmill/events"
	"github.com/leafmill/leafmill/internal/api"
)

// printJSON writes one value, for scripts.
func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// table writes rows in columns. Cells come from documents too: nothing in them reaches the
// terminal but letters.
type table struct {
	w     *tabwriter.Writer
	first error
}

func newTable(w io.Writer, head ...string) *table {
	t := &table{w: tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)}
	if len(head) > 0 {
		t.row(head...)
	}
	return t
}

func (t *table) row(cells ...string) {
	for i := range cells {
		cells[i] = clean(cells[i])
	}
	if _, err := fmt.Fprintln(t.w, strings.TrimRight(strings.Join(cells, "\t"), "\t ")); err != nil && t.first == nil {
		t.first = err
	}
}

func (t *table) end() error {
	if err := t.w.Flush(); err != nil && t.first == nil {
		t.first = err
	}
	return t.first
}

// clean makes a text fit for one line of a terminal: a file name cannot steer it.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t' || r == '\r' || r == '\f':
			return ' '
		case !unicode.IsPrint(r):
			return -1
		}
		return r
	}, s)
}

// age is how long ago something was, short.
func age(t time.Time, now time.Time) string {
	d := now.Sub(t)
	switch {
	case t.IsZero():
		return "-"
	case d < time.Second:
		return "now"
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

// took is how long a job was at work.
func took(j api.Job) string {
	if j.FinishedAt == nil || j.CreatedAt.IsZero() {
		return "-"
	}
	return fmt.Sprintf("%.1fs", j.FinishedAt.Sub(j.CreatedAt).Seconds())
}

// mode is what a finished job's document can be found by.
func mode(j api.Job) string {
	if j.Result == nil {
		return "-"
	}
	return j.Result.Mode
}

// pages of a job, with how many were scans.
func pages(j api.Job) string {
	if j.Artifacts.Pages == 0 {
		return "-"
	}
	if j.Artifacts.PagesOCR > 0 {
		return fmt.Sprintf("%d (%d scanned)", j.Artifacts.Pages, j.Artifacts.PagesOCR)
	}
	return fmt.Sprint(j.Artifacts.Pages)
}

// or is s, or a dash where there is nothing.
func or(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// message is what an error says to a user.
func message(err error) string {
	if f, ok := errors.AsType[*events.Failure](err); ok {
		return f.Message
	}
	return err.Error()
}
