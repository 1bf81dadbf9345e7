package view

import (
	"encoding/base64"
	"encoding/json"

	"github.com/leafmill/leafmill/events"
)

// Apply folds an event in; err is what decoding it gave. A submission counts however
// malformed it is (a dead letter says why it failed), any other undecodable event is
// ignored: the stage that meets it poisons it.
func (s *State) Apply(m events.Message, err error) {
	begins := m.Event == events.NameSubmitted || m.Event == events.NameSubmittedBulk
	if err != nil && !begins || m.Sequence == 0 {
		return
	}
	s.job = m.Job
	sound := m.Pass.Run > 0 && m.Pass.Version > 0 && m.Pass.Version <= m.Pass.Run && m.Pass.Run <= m.Sequence
	switch b := m.Body.(type) {
	case *events.Deleted:
		if sound {
			s.delete(m)
		}
		return
	case *events.Poisoned:
		if !sound {
			s.onOrphan(m, b)
			return
		}
	}
	if !sound || m.Sequence <= s.deleted.seq {
		return
	}
	switch m.Event { // these count by their own sequence, whatever pass they name
	case events.NameCancelled:
		s.cancelled = max(s.cancelled, m.Sequence)
	case events.NameCompleted:
		s.lastCompleted = max(s.lastCompleted, m.Sequence)
	case events.NameHealed:
		s.lastHealed = max(s.lastHealed, m.Sequence)
	}
	if m.Pass.Version <= s.deleted.seq || !s.enterVersion(m, begins) {
		return
	}
	if s.enterRun(m) {
		s.run.apply(m)
	}
}

// delete clears whatever the fence covers. The order (version, run) makes that right in any
// order: the highest pass is below the fence only when every pass is.
func (s *State) delete(m events.Message) {
	if m.Sequence <= s.deleted.seq {
		return
	}
	p := m.Pass
	s.deleted = fence{seq: m.Sequence, at: micros(m.Time), run: p.Run, version: p.Version,
		collection: p.Collection, document: p.DocumentID, name: clip(p.Name, maxName)}
	if s.version.version <= m.Sequence {
		s.version, s.run = ofVersion{}, ofRun{}
	}
	for _, seq := range []*uint64{&s.cancelled, &s.lastCompleted, &s.lastHealed} {
		if *seq <= m.Sequence {
			*seq = 0
		}
	}
	if s.orphan.seq <= m.Sequence {
		s.orphan = orphan{}
	}
}

func (s *State) onOrphan(m events.Message, b *events.Poisoned) {
	if m.Sequence > s.deleted.seq && (s.orphan.seq == 0 || m.Sequence < s.orphan.seq) {
		s.orphan = orphan{m.Sequence, micros(m.Time),
			problem{clip(b.Code, maxName), clip(b.Stage, maxName), clip(b.Message, maxMessage)}}
	}
}

// enterVersion takes what the event says of its version. It returns false for a lower
// version than the view's.
func (s *State) enterVersion(m events.Message, begins bool) bool {
	v := &s.version
	switch {
	case m.Pass.Version < v.version:
		return false
	case m.Pass.Version > v.version:
		s.version, s.run = ofVersion{version: m.Pass.Version}, ofRun{}
	}
	at := micros(m.Time)
	if v.first == 0 || at < v.first {
		v.first = at
	}
	v.updated = max(v.updated, at)
	if begins {
		v.submission, v.submitted, v.bulk = true, at, m.Event == events.NameSubmittedBulk
	}
	switch b := m.Body.(type) {
	case *events.Submitted:
		v.onSubmitted(b)
	case *events.Extracted:
		v.onExtracted(m, b)
	case *events.Chunked:
		v.onChunked(m, b)
	}
	return true
}

func (v *ofVersion) onSubmitted(b *events.Submitted) {
	v.name, v.media = clip(b.Name, maxName), clip(b.MediaType, maxName)
	if v.size = max(0, b.Size); v.size == 0 {
		v.size = int64(len(b.Text) + base64.StdEncoding.DecodedLen(len(b.Data)))
		if n := len(b.Data); n > 1 {
			for _, c := range b.Data[n-2:] {
				if c == '=' {
					v.size--
				}
			}
		}
	}
	if len(b.Metadata) > 0 {
		if raw, err := json.Marshal(b.Metadata); err == nil && len(raw) <= maxMetadata {
			v.metadata = raw
		}
	}
}

func (v *ofVersion) onExtracted(m events.Message, b *events.Extracted) {
	if b.MediaType != "" && (v.sniffed == 0 || m.Sequence < v.sniffed) {
		v.sniffed, v.sniffedMedia, v.sniffedSize = m.Sequence, clip(b.MediaType, maxName), 0
		if b.Source != nil {
			v.sniffedSize = max(0, b.Source.Size)
		}
	}
	if b.Preview == "" {
		return
	}
	t, first := &v.text, b.Units[0].Unit
	if m.Pass.Run > t.run || m.Pass.Run == t.run && (first < t.unit || first == t.unit && m.Sequence > t.seq) {
		*t = textPreview{m.Pass.Run, m.Sequence, first, clipRunes(clip(b.Preview, 4*maxName), 120)}
	}
}

// onChunked keeps the first three chunks: the lowest that any event of the run showed, each
// in its latest wording.
func (v *ofVersion) onChunked(m events.Message, b *events.Chunked) {
	p := &v.chunks
	if len(b.Preview) == 0 || m.Pass.Run < p.run {
		return
	}
	if m.Pass.Run > p.run {
		*p = chunkPreview{run: m.Pass.Run}
	}
	for _, c := range b.Preview[:min(3, len(b.Preview))] {
		p.add(previewed{m.Sequence, c.Unit, c.N, c.Page, clip(c.ID, maxName), clipRunes(clip(c.Text, 4*maxName), 120)})
	}
}

func (p *chunkPreview) add(c previewed) {
	i := 0
	for ; i < len(p.list); i++ {
		have := &p.list[i]
		if have.unit == c.unit && have.n == c.n {
			if c.seq > have.seq {
				*have = c
			}
			return
		}
		if c.unit < have.unit || c.unit == have.unit && c.n < have.n {
			break
		}
	}
	if i == 3 {
		return
	}
	p.list = append(p.list, previewed{})
	copy(p.list[i+1:], p.list[i:])
	p.list[i] = c
	p.list = p.list[:min(3, len(p.list))]
}

// enterRun takes what every event says of its run. It returns false for a lower run than
// the view's.
func (s *State) enterRun(m events.Message) bool {
	r, p := &s.run, m.Pass
	switch {
	case p.Run < r.run:
		return false
	case p.Run > r.run:
		*r = ofRun{run: p.Run}
	}
	if r.passSeq == 0 || m.Sequence < r.passSeq {
		r.passSeq, r.collection, r.document = m.Sequence, clip(p.Collection, maxName), clip(p.DocumentID, maxName)
		r.name = clip(p.Name, maxName)
	}
	if p.Units > r.units && p.Units <= events.MaxUnits {
		r.units = p.Units
	}
	at := micros(m.Time)
	if r.began == 0 || at < r.began {
		r.began = at
	}
	if m.Event != events.NameRetried {
		r.active = max(r.active, m.Sequence)
	}
	switch m.Event {
	case events.NameSubmitted, events.NameSubmittedBulk, events.NameCancelled:
	case events.NameReplayed, events.NameReplayedBulk:
		r.bulk = m.Event == events.NameReplayedBulk
	default:
		r.working = true
	}
	return true
}

// apply folds in what the event says of its run.
func (r *ofRun) apply(m events.Message) {
	at := micros(m.Time)
	switch b := m.Body.(type) {
	case *events.Replayed:
		for i, name := range stageNames {
			if b.From == name {
				r.from = i
			}
		}
	case *events.ScanFound:
		r.onScanFound(m.Sequence, b)
	case *events.Extracted:
		r.time[ocr].add(at)
		r.onExtracted(m.Sequence, b)
	case *events.Chunked:
		r.time[chunk].add(at)
		r.onChunked(m.Sequence, b)
	case *events.Embedded:
		r.time[embed].add(at)
		r.onOutcome(m.Sequence, b, 0)
	case *events.Degraded:
		r.time[embed].add(at)
		code := r.codeOf(m.Sequence, problem{"embed." + string(b.Reason), "embed", b.Message})
		r.onOutcome(m.Sequence, &b.Embedded, code)
	case *events.Indexed:
		r.time[index].add(at)
		r.onIndexed(m.Sequence, b)
	case *events.Retried:
		r.onRetried(m, b)
	case *events.Poisoned:
		r.onPoisoned(m.Sequence, b)
	case *events.Completed:
		if r.completed.seq == 0 || m.Sequence < r.completed.seq {
			r.completed = factOf(m, b)
		}
	case *events.Healed:
		if m.Sequence > r.healed.seq {
			r.healed = factOf(m, &b.Completed)
		}
	}
}

func factOf(m events.Message, b *events.Completed) fact {
	return fact{m.Sequence, micros(m.Time), b.Status, clip(b.Mode, maxName), b.Chunks, b.Vectors, len(b.Failed), problemOf(b.Problem)}
}

func (r *ofRun) onScanFound(seq uint64, b *events.ScanFound) {
	u := r.unitOf(b.Unit)
	if seq > u.extracted && seq > u.found {
		u.found = seq
		if u.position() == 0 {
			u.page = max(1, b.Page)
		}
	}
}

// locate takes page and length from the latest of the events that carry them. Call it
// before the unit's sequences change.
func (u *unit) locate(seq uint64, e events.Unit) {
	if seq > u.position() {
		u.page, u.length = e.Page, e.Length
	}
}

func (r *ofRun) onExtracted(seq uint64, b *events.Extracted) {
	for _, e := range b.Units {
		u := r.unitOf(e.Unit)
		u.locate(seq, e)
		code := 0
		if e.Problem != nil {
			code = r.codeOf(seq, problemOf(e.Problem)) // also of a replaced event: the first one words it
		}
		if seq > u.extracted {
			u.extracted, u.ocr, u.failedCode = seq, e.Method == "ocr", code
		}
		if u.found < seq {
			u.found = 0
		}
	}
}

// fail records that a message about the unit ended in a problem after its extraction.
func (r *ofRun) fail(u *unit, seq uint64, code int) {
	if seq > u.poisoned {
		u.poisoned, u.poisonedCode = seq, code
	}
}

func (r *ofRun) onChunked(seq uint64, b *events.Chunked) {
	for _, e := range b.Units {
		u := r.unitOf(e.Unit)
		u.locate(seq, e)
		if e.Problem != nil {
			r.fail(u, seq, r.codeOf(seq, problemOf(e.Problem)))
		}
		if seq > u.chunked {
			u.chunked, u.chunks = seq, e.Chunks
		}
	}
}

// onOutcome folds in embedded, and degraded when code is one. The usage of a message counts
// once: it is known already when it is a unit's latest outcome, or in calls.
func (r *ofRun) onOutcome(seq uint64, b *events.Embedded, code int) {
	counted := r.calls.has(seq)
	for _, e := range b.Units {
		u := r.unitOf(e.Unit)
		u.locate(seq, e)
		counted = counted || u.outcome == seq
		if e.Problem != nil {
			r.fail(u, seq, r.codeOf(seq, problemOf(e.Problem)))
		}
		if code > 0 && seq > u.degraded {
			u.degraded, u.degradedCode = seq, code
		}
		switch {
		case seq > u.outcome:
			if u.outcome > 0 {
				r.calls.add(u.outcome, 0)
			}
			u.outcome, u.vectors = seq, e.Vectors
			if u.chunked == 0 {
				u.chunks = e.Chunks
			}
		case seq < u.outcome:
			r.calls.add(seq, 0)
		}
	}
	if !counted {
		r.usage.Calls += max(0, b.Usage.Calls)
		r.usage.Tokens += max(0, b.Usage.Tokens)
		r.usage.LatencyMS += max(0, b.Usage.LatencyMS)
	}
}

func (r *ofRun) onIndexed(seq uint64, b *events.Indexed) {
	for _, e := range b.Units {
		u := r.unitOf(e.Unit)
		switch {
		case e.Problem != nil:
			r.fail(u, seq, r.codeOf(seq, problemOf(e.Problem)))
		case seq > u.indexed:
			u.indexed, u.inChunks, u.inVectors, u.superseded = seq, e.Chunks, e.Vectors, b.Superseded
		}
	}
}

func (r *ofRun) onRetried(m events.Message, b *events.Retried) {
	r.retries.add(m.Sequence, maxRetries)
	if m.Sequence <= r.wait.seq {
		return
	}
	r.wait = wait{seq: m.Sequence}
	delay := min(max(0, b.DelayMS), 1e10) * 1000
	switch {
	case b.Nak:
		r.wait.reason = "retry_wait"
	case hasClass(b.Code, events.RateLimited):
		r.wait.reason = "rate_limited"
	case hasClass(b.Code, events.CircuitOpen):
		r.wait.reason = "breaker_open"
	default:
		return // tried again at once, nothing waits
	}
	r.wait.until = micros(m.Time) + delay
}

func hasClass(code string, c events.Class) bool {
	n := len(code) - len(c)
	return n > 0 && code[n-1] == '.' && code[n:] == string(c)
}

func (r *ofRun) onPoisoned(seq uint64, b *events.Poisoned) {
	code := r.codeOf(seq, problem{b.Code, b.Stage, b.Message})
	switch {
	case code == 0:
	case b.First < 1 || b.First > events.MaxUnits || b.Last != 0 && b.Last < b.First:
		r.codes[code-1].loose = true
	case b.Last == 0:
		r.addOpen(openRange{b.First, seq, code})
	default:
		for n := b.First; n <= min(b.Last, b.First+maxSpan-1, events.MaxUnits); n++ {
			r.fail(r.unitOf(n), seq, code)
		}
	}
}
