package view

import (
	"cmp"
	"time"

	"github.com/leafmill/leafmill/events"
)

// Fact is an event that the view says is due.
type Fact struct {
	Event events.Name // completed or healed
	Body  events.Body // *events.Completed or *events.Healed
	Run   uint64
	// Last is the last event on the fact's subject that the view knows of; 0: none.
	Last uint64
	// Submitted is when the document was handed in.
	Submitted time.Time
}

// Due is what has to be published: completed once every unit of the run has ended or the
// run was cancelled, healed once a completed run stands better than its last fact says.
// It is nil when nothing is. Applying the fact makes it nil.
func (s *State) Due() *Fact {
	r := &s.run
	if r.run == 0 {
		return nil
	}
	last := r.final()
	if last == nil && r.run <= s.cancelled {
		body := s.summary(&tally{})
		body.Status, body.Mode, body.Problem = events.StatusCancelled, "", nil
		body.Units = r.units
		return s.fact(events.NameCompleted, &body, s.lastCompleted)
	}
	if last != nil && !healable(last) {
		return nil
	}
	t := r.count(true)
	if !t.ended() {
		return nil
	}
	body := s.summary(&t)
	if last == nil {
		return s.fact(events.NameCompleted, &body, s.lastCompleted)
	}
	if !better(&body, last) {
		return nil
	}
	return s.fact(events.NameHealed, &events.Healed{Completed: body}, s.lastHealed)
}

func (s *State) fact(name events.Name, body events.Body, last uint64) *Fact {
	return &Fact{Event: name, Body: body, Run: s.run.run, Last: last,
		Submitted: clock(cmp.Or(s.version.submitted, s.version.first))}
}

// summary is the fact's body.
func (s *State) summary(t *tally) events.Completed {
	r := &s.run
	c := events.Completed{Pass: events.Pass{Run: r.run, Version: s.version.version, Units: t.total,
		Name: cmp.Or(s.version.name, r.name)},
		Chunks: t.inChunks, Vectors: t.inVectors, Failed: t.failures}
	c.Collection, c.DocumentID = s.document()
	c.Status, c.Mode = t.outcome()
	if c.Status == events.StatusFailed {
		c.Problem = r.problem(t.first).wire()
	}
	return c
}

func healable(f *fact) bool {
	return f.status == events.StatusFailed || f.status == events.StatusWarnings
}

var rank = map[string]int{
	events.StatusFailed: 1, events.StatusWarnings: 2, events.StatusSucceeded: 3,
	events.ModeKeyword: 1, events.ModePartial: 2, events.ModeFull: 3,
}

// better says whether the run got something that is worth a healed event: a better status
// or mode, or fewer failed units. Of many failed units only each halving counts, so that a
// redrive of thousands of pages says it a few times and not thousands.
func better(c *events.Completed, last *fact) bool {
	if rank[c.Status] < rank[last.status] || rank[c.Mode] < rank[last.mode] {
		return false
	}
	n := len(c.Failed)
	return rank[c.Status] > rank[last.status] || rank[c.Mode] > rank[last.mode] ||
		n < last.failed && (n <= 16 || n <= last.failed/2)
}
