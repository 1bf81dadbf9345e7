package view

import (
	"github.com/leafmill/leafmill/events"
)

// Codes that the view itself finds.
const (
	codeNoText     = "ocr.no_text"      // nothing to search in the whole document
	codeUnproven   = "index.internal"   // fewer chunks searchable than were made
	codeSuperseded = "index.superseded" // a newer version is complete
)

var problems = map[string]problem{
	codeNoText:     {codeNoText, "ocr", "No text was found in the document; there is nothing to search in it."},
	codeUnproven:   {codeUnproven, "index", "Not every passage became searchable; replay the job from its index stage."},
	codeSuperseded: {codeSuperseded, "index", "A newer version of this document is complete; searches show that one."},
}

// verdict is how a unit stands.
type verdict int

const (
	pending verdict = iota
	indexed
	failed
)

// judge says whether the unit has ended, and the code of its failure.
//
// A dead letter ends a unit unless something later is on its way (a redrive). A dead
// letter of the walk ends what the walk never reached; what it had published ends by
// itself. An error-free indexed overrides both.
func (r *ofRun) judge(u *unit) (verdict, string) {
	if u.failedCode > 0 {
		if u.found > u.extracted {
			return pending, ""
		}
		return failed, r.codes[u.failedCode-1].code
	}
	moving := u.moving()
	if u.indexed > 0 {
		switch {
		case u.superseded || u.inChunks == u.chunks:
			return indexed, ""
		case moving > max(u.indexed, u.poisoned):
			return pending, ""
		}
		return failed, codeUnproven
	}
	if u.poisonedCode > 0 && u.poisoned > moving {
		return failed, r.codes[u.poisonedCode-1].code
	}
	if o := r.openAt(u.n); o != nil && moving == 0 {
		return failed, r.codes[o.code-1].code
	}
	return pending, ""
}

// passed is how many stages the unit has gone through.
func (r *ofRun) passed(u *unit) int {
	n := r.from
	switch {
	case u.indexed > 0:
		n = stages
	case u.outcome > 0:
		n = max(n, index)
	case u.chunked > 0:
		n = max(n, embed)
	case u.extracted > 0:
		n = max(n, chunk)
	}
	return n
}

// tally is what the units of a run come to.
type tally struct {
	total, indexed, failed, pending int
	passed                          [stages]int // units that went through each stage
	failedBefore                    [stages]int // units that failed before the end of each stage
	through                         int         // stages gone through, a failed unit having gone through all
	pages, pagesOCR                 int
	chunks, embedded                int // as made, as embedded
	inChunks, inVectors             int // searchable
	superseded                      bool
	first                           string // the code of the first failed unit
	byCode                          map[string]*ranges
	degraded                        map[string]*ranges // units that lack vectors now
	resolved                        map[string]*ranges // units that had one of these codes
	failures                        []events.Unit      // the failed units, when asked for
}

// maxFailures bounds the failed units that a fact lists, so that it fits an event.
const maxFailures = 3000

// count goes through the units once. With list it collects the failed ones too.
func (r *ofRun) count(list bool) tally {
	t := tally{total: r.units, byCode: map[string]*ranges{}, degraded: map[string]*ranges{}, resolved: map[string]*ranges{}}
	if k := len(r.list); k > 0 {
		t.total = max(t.total, r.list[k-1].n)
	}
	if t.total == 0 {
		// A document of unknown length ends only by a dead letter of its beginning.
		if o := r.openAt(1); o != nil {
			t.first = r.codes[o.code-1].code
			note(t.byCode, t.first, 0)
		}
		return t
	}
	i, page := 0, 1
	for n := 1; n <= t.total; n++ {
		if i < len(r.list) && r.list[i].n == n {
			u := &r.list[i]
			i++
			if u.page > 0 {
				page = u.page
			}
			r.countUnit(&t, u, page, list)
			continue
		}
		blank := unit{n: n}
		r.countUnit(&t, &blank, page, list)
	}
	return t
}

func (r *ofRun) countUnit(t *tally, u *unit, page int, list bool) {
	v, code := r.judge(u)
	passed := r.passed(u)
	for s := range passed {
		t.passed[s]++
	}
	t.pages = max(t.pages, u.page)
	if u.ocr {
		t.pagesOCR++
	}
	t.chunks += u.chunks
	t.embedded += u.vectors
	switch v {
	case pending:
		t.pending++
		t.through += min(passed, index)
	case indexed:
		t.indexed++
		t.through += stages
		t.inChunks += u.inChunks
		t.inVectors += u.inVectors
		t.superseded = t.superseded || u.superseded
	case failed:
		t.failed++
		t.through += stages
		for s := passed; s < stages; s++ {
			t.failedBefore[s]++
		}
		if t.first == "" {
			t.first = code
		}
		note(t.byCode, code, u.n)
		if list && len(t.failures) < maxFailures {
			e := events.Unit{Unit: u.n, Page: page, Length: u.length}
			if len(t.failures) < 100 {
				e.Problem = r.problem(code).wire()
			}
			t.failures = append(t.failures, e)
		}
	}
	if u.poisonedCode > 0 && v != failed {
		r.noteOnce(t, t.byCode, u.poisonedCode, u.n, v == indexed)
	}
	if u.degradedCode > 0 {
		r.noteOnce(t, t.degraded, u.degradedCode, u.n, v == indexed && u.inVectors == u.inChunks)
	}
}

// noteOnce puts the unit among those that lack something, or those that got it.
func (r *ofRun) noteOnce(t *tally, lacking map[string]*ranges, code, n int, resolved bool) {
	if resolved {
		lacking = t.resolved
	}
	note(lacking, r.codes[code-1].code, n)
}

func note(m map[string]*ranges, code string, n int) {
	g := m[code]
	if g == nil {
		g = new(ranges)
		m[code] = g
	}
	g.add(n)
}

// problem is what is known of a code.
func (r *ofRun) problem(code string) problem {
	for _, c := range r.codes {
		if c.code == code {
			return c.problem
		}
	}
	return problems[code]
}

// ended says that nothing of the run is on its way any more.
func (t *tally) ended() bool {
	return t.pending == 0 && (t.total > 0 || t.first != "")
}

// outcome is how a run stands whose units have all ended.
func (t *tally) outcome() (status, mode string) {
	switch {
	case t.indexed == 0:
		return events.StatusFailed, ""
	case t.inVectors == t.inChunks:
		mode = events.ModeFull
	case t.inVectors == 0:
		mode = events.ModeKeyword
	default:
		mode = events.ModePartial
	}
	if t.failed > 0 || mode != events.ModeFull || t.inChunks == 0 || t.superseded {
		return events.StatusWarnings, mode
	}
	return events.StatusSucceeded, mode
}

// maxRanges bounds the ranges of one warning.
const maxRanges = 100

// ranges collects ascending numbers as ranges; 0 stands for none.
type ranges struct {
	list []events.Range
	more bool
}

func (g *ranges) add(n int) {
	k := len(g.list)
	switch {
	case n == 0:
	case k > 0 && g.list[k-1].Last >= n-1:
		g.list[k-1].Last = max(n, g.list[k-1].Last)
	case k == maxRanges:
		g.more = true
	default:
		g.list = append(g.list, events.Range{First: n, Last: n})
	}
}

func (g *ranges) strings() []string {
	out := make([]string, 0, len(g.list)+1)
	for _, r := range g.list {
		out = append(out, r.String())
	}
	if g.more {
		out = append(out, "…")
	}
	return out
}
