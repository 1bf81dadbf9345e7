package view

import (
	"encoding/json"
	"fmt"
	"time"

	"pgregory.net/rapid"

	"github.com/leafmill/leafmill/events"
)

var epoch = time.Date(2026, 3, 1, 9, 0, 0, 0, time.UTC)

// said is an event as Apply gets it.
type said struct {
	m   events.Message
	err error
}

func (e said) GoString() string { return fmt.Sprintf("%d %s %s", e.m.Sequence, e.m.Event, e.m.Raw) }

// stored is an event after its way through JSON and Decode.
func stored(seq uint64, name events.Name, job string, body any) said {
	data, ok := body.([]byte)
	if !ok {
		var err error
		if data, err = json.Marshal(body); err != nil {
			panic(err)
		}
	}
	m, err := events.Decode(events.Stored{Sequence: seq, Subject: name.Subject(job),
		Time: epoch.Add(time.Duration(seq) * 250 * time.Millisecond), Data: data})
	return said{m, err}
}

func fold(story ...said) *State {
	s := new(State)
	for _, e := range story {
		s.Apply(e.m, e.err)
	}
	return s
}

// teller writes a job's story as the pipeline would.
type teller struct {
	seq   uint64
	job   string
	pass  events.Pass
	story []said
}

func (t *teller) say(name events.Name, body any) {
	t.seq++
	t.story = append(t.story, stored(t.seq, name, t.job, body))
}

func submit(job string, units int) *teller {
	t := &teller{job: job, seq: 100}
	t.say(events.NameSubmitted, events.Submitted{Text: "Tide mills", Name: "mill.txt"})
	t.pass = events.Pass{Run: t.seq, Version: t.seq, Collection: "default", DocumentID: job, Units: units}
	return t
}

func span_(first, last int, f func(*events.Unit)) ([]events.Unit, string) {
	var list []events.Unit
	for n := first; n <= last; n++ {
		u := events.Unit{Unit: n, Page: n, Length: 100 + n}
		f(&u)
		list = append(list, u)
	}
	return list, events.RangeOf(list).String()
}

func (t *teller) extracted(first, last int, p *events.Problem) {
	list, seg := span_(first, last, func(u *events.Unit) {
		u.Method, u.Problem = "ocr", p
		if p != nil {
			u.Length = 0
		}
	})
	t.say(events.NameExtracted, events.Extracted{Pass: t.pass, Segment: seg, Units: list,
		Preview: fmt.Sprintf("text of %d", first), MediaType: "application/pdf"})
}

func (t *teller) chunked(first, last, chunks int) {
	list, seg := span_(first, last, func(u *events.Unit) { u.Chunks = chunks })
	b := events.Chunked{Pass: t.pass, Segment: seg, Units: list}
	for n := 1; n <= min(3, chunks); n++ {
		b.Preview = append(b.Preview, events.Chunk{ID: fmt.Sprintf("%d.%d", first, n), Unit: first, N: n, Page: first, Text: "chunk"})
	}
	t.say(events.NameChunked, b)
}

func (t *teller) embedded(first, last, chunks int) {
	list, seg := span_(first, last, func(u *events.Unit) { u.Chunks, u.Vectors = chunks, chunks })
	t.say(events.NameEmbedded, events.Embedded{Pass: t.pass, Segment: seg, Units: list, Usage: events.Usage{Calls: 1, Tokens: 10, LatencyMS: 5}})
}

func (t *teller) degraded(first, last, chunks int, reason events.Class) {
	list, seg := span_(first, last, func(u *events.Unit) { u.Chunks = chunks })
	t.say(events.NameDegraded, events.Degraded{Embedded: events.Embedded{Pass: t.pass, Segment: seg, Units: list,
		Usage: events.Usage{Calls: 3}}, Reason: reason, Message: "No vectors."})
}

func (t *teller) indexed(first, last, chunks, vectors int) {
	list, seg := span_(first, last, func(u *events.Unit) { u.Chunks, u.Vectors = chunks, vectors })
	t.say(events.NameIndexed, events.Indexed{Pass: t.pass, Segment: seg, Units: list})
}

func (t *teller) through(first, last, chunks int) {
	t.extracted(first, last, nil)
	t.chunked(first, last, chunks)
	t.embedded(first, last, chunks)
	t.indexed(first, last, chunks, chunks)
}

func (t *teller) poisoned(cause events.Name, first, last int, code string) {
	t.say(events.NamePoisoned, events.Poisoned{Pass: t.pass, Cause: events.Cause{Sequence: t.pass.Run, Subject: cause.Subject(t.job)},
		Segment: events.Range{First: first, Last: last}.String(), First: first, Last: last, Stage: "ocr", Code: code, Message: "It failed: " + code})
}

// due publishes what is due, as the service does, and returns it.
func (t *teller) due() *Fact {
	f := fold(t.story...).Due()
	if f != nil {
		t.say(f.Event, f.Body)
	}
	return f
}

// anyStory draws a story in which everything may happen, likely or not: several versions
// and runs, replays, fences, events of passes that never began, units that contradict each
// other, dead letters of every shape, malformed bodies.
func anyStory(rt *rapid.T) []said {
	job := "j"
	seq := uint64(rapid.IntRange(1, 50).Draw(rt, "seq"))
	type pass struct{ run, version uint64 }
	passes := []pass{{seq, seq}}
	count := rapid.IntRange(1, 4).Draw(rt, "units")
	code := rapid.SampledFrom([]string{"ocr.corrupt", "embed.timeout", "index.internal", "ocr.limit"})
	message := rapid.SampledFrom([]string{"One.", "Two.", "Three."})
	small := rapid.IntRange(0, 2)
	var story []said
	add := func(name events.Name, body any) {
		story = append(story, stored(seq, name, job, body))
		seq += uint64(rapid.IntRange(1, 4).Draw(rt, "gap"))
	}
	if rapid.Bool().Draw(rt, "submitted") {
		add(events.NameSubmitted, events.Submitted{Text: "x", Name: "a.txt", Metadata: map[string]any{"k": 1}})
	}
	for range rapid.IntRange(1, 25).Draw(rt, "events") {
		at := rapid.SampledFrom(passes).Draw(rt, "pass")
		p := events.Pass{Run: at.run, Version: at.version, Collection: "c", DocumentID: "d",
			Units: rapid.SampledFrom([]int{count, count, count, 0, count + 1}).Draw(rt, "total")}
		first := rapid.IntRange(1, count).Draw(rt, "first")
		last := rapid.IntRange(first, count).Draw(rt, "last")
		problem := func() *events.Problem {
			if rapid.IntRange(0, 4).Draw(rt, "fails") > 0 {
				return nil
			}
			return &events.Problem{Code: code.Draw(rt, "code"), Stage: "ocr", Message: message.Draw(rt, "message")}
		}
		units := func() ([]events.Unit, string) {
			return span_(first, last, func(u *events.Unit) {
				u.Page, u.Length = 1+small.Draw(rt, "page"), small.Draw(rt, "length")
				u.Chunks = small.Draw(rt, "chunks")
				u.Vectors = rapid.IntRange(0, u.Chunks).Draw(rt, "vectors")
				u.Method = rapid.SampledFrom([]string{"ocr", "parser"}).Draw(rt, "method")
				u.Problem = problem()
			})
		}
		list, seg := units()
		emb := events.Embedded{Pass: p, Segment: seg, Units: list, Usage: events.Usage{Calls: small.Draw(rt, "calls"), Tokens: 7, LatencyMS: 3}}
		done := events.Completed{Pass: p, Status: rapid.SampledFrom([]string{"succeeded", "succeeded_with_warnings", "failed", "cancelled"}).Draw(rt, "status"),
			Mode: rapid.SampledFrom([]string{"full_rag", "partial_rag", "keyword_only", ""}).Draw(rt, "mode"), Problem: problem()}
		switch rapid.IntRange(0, 19).Draw(rt, "kind") {
		case 0:
			passes = append(passes, pass{seq, seq})
			add(events.NameSubmitted, events.Submitted{Text: "y", Name: "b.txt", DocumentID: "d", Collection: "c"})
		case 1:
			passes = append(passes, pass{seq, at.version})
			add(events.NameReplayedBulk, events.Replayed{Version: at.version, Base: at.run, Collection: "c", DocumentID: "d", Units: count,
				From: rapid.SampledFrom(stageNames[:]).Draw(rt, "from")})
		case 2:
			add(events.NameScanFound, events.ScanFound{Pass: p, Unit: first, Page: first})
		case 3, 4:
			add(events.NameExtracted, events.Extracted{Pass: p, Segment: seg, Units: list, MediaType: message.Draw(rt, "type"), Preview: message.Draw(rt, "preview")})
		case 5, 6:
			c := events.Chunked{Pass: p, Segment: seg, Units: list}
			for n := range small.Draw(rt, "previews") {
				c.Preview = append(c.Preview, events.Chunk{Unit: first, N: n + 1, Text: message.Draw(rt, "text")})
			}
			add(events.NameChunked, c)
		case 7, 8:
			add(events.NameEmbedded, emb)
		case 9:
			add(events.NameDegraded, events.Degraded{Embedded: emb, Reason: rapid.SampledFrom([]events.Class{events.Timeout, events.CircuitOpen}).Draw(rt, "reason"), Message: message.Draw(rt, "why")})
		case 10, 11, 12:
			add(events.NameIndexed, events.Indexed{Pass: p, Segment: seg, Units: list, Superseded: rapid.IntRange(0, 9).Draw(rt, "superseded") == 0})
		case 13:
			add(events.NameRetried, events.Retried{Pass: p, Stage: "embed", Code: code.Draw(rt, "code"), DelayMS: 1000, Nak: rapid.Bool().Draw(rt, "nak")})
		case 14, 15:
			if rapid.IntRange(0, 5).Draw(rt, "unknown") == 0 {
				p = events.Pass{}
			}
			r := rapid.SampledFrom([]events.Range{{First: first, Last: last}, {First: first}, {First: 1}, {}}).Draw(rt, "range")
			add(events.NamePoisoned, events.Poisoned{Pass: p, Cause: events.Cause{Sequence: 1}, First: r.First, Last: r.Last, Stage: "ocr",
				Code: code.Draw(rt, "code"), Message: message.Draw(rt, "message")})
		case 16:
			add(rapid.SampledFrom([]events.Name{events.NameCancelled, events.NameDeleted}).Draw(rt, "fence"), events.Cancelled{Pass: p})
		case 17:
			add(events.NameCompleted, done)
		case 18:
			add(events.NameHealed, events.Healed{Completed: done})
		case 19:
			add(rapid.SampledFrom([]events.Name{events.NameSubmitted, events.NameExtracted, events.NameCompleted}).Draw(rt, "malformed"), []byte("{"))
		}
	}
	return story
}
