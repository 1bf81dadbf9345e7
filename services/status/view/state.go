// Package view folds the events of a job into what is known about it: the job view that
// users see, and what the run's end is proven by. It does no I/O and reads no clock.
//
// Guarantees:
//   - [State.Apply] gives the same [State.View] and [State.Due] for any order and any
//     number of repeats of a job's events. Each field is a maximum, a minimum or a set:
//     "latest" is by the stream's sequence, never by arrival.
//   - Later passes win: events of a lower (version, run) than the view's are ignored, a
//     higher one begins anew. What belongs to the version (name, previews) outlives a replay.
//   - A State of a document of 5,000 units takes some 60 KB encoded (see [State.MarshalBinary]).
package view

import (
	"slices"
	"strings"
	"time"

	"github.com/leafmill/leafmill/events"
)

// The stages, in order, as the view counts them.
const (
	ocr = iota
	chunk
	embed
	index
	stages
)

var stageNames = [stages]string{"ocr", "chunk", "embed", "index"}

// Bounds of what a job's state may grow to, whatever is published.
const (
	maxRetries  = 4096     // retried events counted; more are shown as this many
	maxSpan     = 4096     // units of one closed range
	maxCodes    = 1 << 10  // different codes in a run
	maxMetadata = 16 << 10 // bytes of a submission's metadata shown in the view
	maxMessage  = 500      // bytes of a problem's sentence
	maxName     = 1 << 10  // bytes of a name, a code or a media type
)

// State is everything known about a job. The zero State knows nothing. It is not safe for
// concurrent use.
type State struct {
	job           string
	cancelled     uint64 // fence: runs up to it stop
	deleted       fence  // fence: versions up to it go
	orphan        orphan // a dead letter of no known pass
	lastCompleted uint64 // last sequences of the job's completed and healed subjects
	lastHealed    uint64

	version ofVersion
	run     ofRun
}

// fence is a deletion and the document it names.
type fence struct {
	seq        uint64
	at         int64
	run        uint64
	version    uint64
	collection string
	document   string
	name       string
}

// orphan is the first dead letter that names no pass: all that is known of a job whose
// submission nobody could read.
type orphan struct {
	seq uint64
	at  int64
	problem
}

type problem struct{ code, stage, message string }

// ofVersion is what every run of a version shares. Times are microseconds, 0 is unset.
type ofVersion struct {
	version        uint64
	first, updated int64 // earliest and latest event
	submitted      int64
	submission     bool
	bulk           bool
	size           int64
	media          string
	name           string
	metadata       []byte // JSON object

	sniffed      uint64 // sequence that media and size were found by, when not by the submission
	sniffedMedia string
	sniffedSize  int64

	text   textPreview
	chunks chunkPreview
}

// textPreview is the beginning of the lowest unit that has text, of the latest run that has one.
type textPreview struct {
	run, seq uint64
	unit     int
	text     string
}

// chunkPreview is the first three chunks of the latest run that has some.
type chunkPreview struct {
	run  uint64
	list []previewed // by unit and n
}

type previewed struct {
	seq           uint64
	unit, n, page int
	id, text      string
}

// ofRun is what one run has brought.
type ofRun struct {
	run                        uint64
	passSeq                    uint64 // the event that collection, document and name are of: the earliest
	collection, document, name string
	units                      int
	began                      int64
	bulk                       bool
	working                    bool   // more than its beginning is known
	from                       int    // the stage a replay starts at
	active                     uint64 // the latest event that is not a retry
	wait                       wait
	time                       [stages]span
	retries                    set
	calls                      set // outcomes that are no unit's latest any more
	usage                      events.Usage
	codes                      []coded
	open                       []openRange // no entry is dominated; by first and by sequence
	list                       []unit      // by number
	completed, healed          fact
}

type span struct{ first, last int64 }

func (s *span) add(at int64) {
	if s.first == 0 || at < s.first {
		s.first = at
	}
	s.last = max(s.last, at)
}

// wait is the latest retry: why the job waits, unless something happened since.
type wait struct {
	seq    uint64
	reason string
	until  int64
}

// coded is a failure's code in this run, with the message of its first event.
type coded struct {
	seq   uint64
	loose bool // said of no unit
	problem
}

// openRange is a dead letter of a walk: this unit and all after it.
type openRange struct {
	first int
	seq   uint64
	code  int
}

// fact is a completed or healed event.
type fact struct {
	seq     uint64
	at      int64
	status  string
	mode    string
	chunks  int
	vectors int
	failed  int
	problem
}

// unit holds the latest event of each kind about a unit; sequences are 0 while there is none.
type unit struct {
	n, page, length                                                 int
	found, extracted, chunked, outcome, degraded, indexed, poisoned uint64
	chunks, vectors, inChunks, inVectors                            int
	failedCode, degradedCode, poisonedCode                          int // index into codes + 1
	ocr, superseded                                                 bool
}

// position is the event that page and length are of.
func (u *unit) position() uint64 { return max(u.extracted, u.chunked, u.outcome) }

// moving is the latest event that another stage will answer.
func (u *unit) moving() uint64 { return max(u.found, u.extracted, u.chunked, u.outcome) }

// unitOf finds or makes the entry of a unit.
func (r *ofRun) unitOf(n int) *unit {
	if k := len(r.list); k == 0 || r.list[k-1].n < n {
		r.list = append(r.list, unit{n: n})
		return &r.list[k]
	}
	i, ok := slices.BinarySearchFunc(r.list, n, func(u unit, n int) int { return u.n - n })
	if !ok {
		r.list = slices.Insert(r.list, i, unit{n: n})
	}
	return &r.list[i]
}

// codeOf finds or makes the entry of a code and returns its index + 1; 0 when there is no room.
func (r *ofRun) codeOf(seq uint64, p problem) int {
	p.code, p.stage, p.message = clip(p.code, maxName), clip(p.stage, maxName), clip(p.message, maxMessage)
	for i := range r.codes {
		c := &r.codes[i]
		if c.code == p.code {
			// Of the events with this code the first one speaks; of two problems in one event, one of them always.
			if seq < c.seq || seq == c.seq && p.message < c.message {
				c.seq, c.problem = seq, p
			}
			return i + 1
		}
	}
	if len(r.codes) == maxCodes {
		return 0
	}
	r.codes = append(r.codes, coded{seq: seq, problem: p})
	return len(r.codes)
}

// addOpen keeps, for each unit, the latest of the open ranges that cover it.
func (r *ofRun) addOpen(o openRange) {
	for _, have := range r.open {
		if have.first <= o.first && have.seq >= o.seq {
			return
		}
	}
	r.open = slices.DeleteFunc(r.open, func(have openRange) bool { return o.first <= have.first && o.seq > have.seq })
	i, _ := slices.BinarySearchFunc(r.open, o.first, func(have openRange, first int) int { return have.first - first })
	r.open = slices.Insert(r.open, i, o)
}

// openAt is the open range that covers a unit, or nil.
func (r *ofRun) openAt(n int) *openRange {
	for i := len(r.open) - 1; i >= 0; i-- {
		if r.open[i].first <= n {
			return &r.open[i]
		}
	}
	return nil
}

// set is a set of sequences, sorted.
type set []uint64

func (s set) has(v uint64) bool {
	_, ok := slices.BinarySearch(s, v)
	return ok
}

// add puts v in; of more than limit the lowest stay, so that the order does not matter.
func (s *set) add(v uint64, limit int) {
	i, ok := slices.BinarySearch(*s, v)
	if ok || limit > 0 && i >= limit {
		return
	}
	*s = slices.Insert(*s, i, v)
	if limit > 0 && len(*s) > limit {
		*s = (*s)[:limit]
	}
}

// Known says whether any event told of the job. Views exist only of known jobs.
func (s *State) Known() bool {
	return s.version.version > 0 || s.orphan.seq > 0 || s.deleted.seq > 0
}

// Order is what lists are sorted by: the sequence of the job's submission.
func (s *State) Order() uint64 {
	switch {
	case s.version.version > 0:
		return s.version.version
	case s.deleted.seq > 0:
		return s.deleted.version
	}
	return s.orphan.seq
}

// Units is how many units the state holds: its cost in memory.
func (s *State) Units() int { return len(s.run.list) }

// micros is a time as the state keeps it; one that no event can have is 1970.
func micros(t time.Time) int64 {
	if us := t.UnixMicro(); us > 0 && t.Year() < 10000 {
		return us
	}
	return 1
}

func clock(us int64) time.Time { return time.UnixMicro(us).UTC() }

func clockOrNil(us int64) *time.Time {
	if us == 0 {
		return nil
	}
	t := clock(us)
	return &t
}

// clip cuts a text to n bytes of valid UTF-8.
func clip(s string, n int) string {
	if len(s) > n {
		s = s[:n]
	}
	return strings.ToValidUTF8(s, "")
}

// clipRunes cuts a text to n code points.
func clipRunes(s string, n int) string {
	for i := range s {
		if n == 0 {
			return s[:i]
		}
		n--
	}
	return s
}

func (p problem) wire() *events.Problem {
	return &events.Problem{Code: p.code, Stage: p.stage, Message: p.message}
}

func problemOf(p *events.Problem) problem {
	if p == nil {
		return problem{}
	}
	return problem{clip(p.Code, maxName), clip(p.Stage, maxName), clip(p.Message, maxMessage)}
}
