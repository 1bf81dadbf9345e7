package view

import (
	"cmp"
	"encoding/json"
	"slices"

	"github.com/leafmill/leafmill/events"
	"github.com/leafmill/leafmill/internal/api"
)

// View is the job view of the state.
func (s *State) View() api.Job {
	j := api.Job{ID: s.job, CompletedStages: []string{}, Warnings: []api.Warning{},
		Artifacts: api.Artifacts{ChunksPreview: []api.ChunkPreview{}},
		Usage:     map[string]api.Usage{}, Timings: map[string]api.StageTime{}}
	switch {
	case s.version.version > 0:
		s.describe(&j)
		s.run.show(&j, s.version.version)
	case s.deleted.seq > 0:
		s.deleted.show(&j)
	default:
		s.orphan.show(&j)
	}
	return j
}

// show is all that stays of a deleted document.
func (f *fence) show(j *api.Job) {
	j.Collection, j.DocumentID, j.Name, j.Version, j.Run = f.collection, f.document, f.name, f.version, f.run
	j.Status, j.Progress = events.StatusCancelled, 100
	j.Error = &events.Problem{Code: "status.deleted", Stage: "status", Message: "The document was deleted."}
	j.CreatedAt, j.UpdatedAt, j.FinishedAt = clock(f.at), clock(f.at), clockOrNil(f.at)
}

// show is a job whose submission nobody could tell from noise.
func (o *orphan) show(j *api.Job) {
	j.Collection, j.DocumentID = events.DefaultCollection, j.ID
	j.Status, j.Progress = events.StatusFailed, 100
	j.Stage, j.Error = o.stage, o.wire()
	j.CreatedAt, j.UpdatedAt, j.FinishedAt = clock(o.at), clock(o.at), clockOrNil(o.at)
}

// describe fills in what belongs to the version.
func (s *State) describe(j *api.Job) {
	v, r := &s.version, &s.run
	j.Version, j.Run = v.version, r.run
	j.Collection, j.DocumentID = s.document()
	j.Name = cmp.Or(v.name, r.name)
	j.MediaType, j.Size = cmp.Or(v.sniffedMedia, v.media), cmp.Or(v.size, v.sniffedSize)
	j.Bulk = v.bulk || r.bulk
	j.CreatedAt, j.UpdatedAt = clock(cmp.Or(v.submitted, v.first)), clock(v.updated)
	if len(v.metadata) > 0 {
		_ = json.Unmarshal(v.metadata, &j.Metadata) // ours, from a map
	}
	j.Artifacts.TextPreview = v.text.text
	for _, c := range v.chunks.list {
		j.Artifacts.ChunksPreview = append(j.Artifacts.ChunksPreview, api.ChunkPreview{ID: c.id, Page: c.page, Text: c.text})
	}
}

// document names the document; a run known only by a dead letter may not say.
func (s *State) document() (collection, document string) {
	collection, document = s.run.collection, s.run.document
	if !events.ValidCollection(collection) {
		collection = events.DefaultCollection
	}
	if !events.ValidDocument(document) {
		document = s.job
	}
	return collection, document
}

// final is the fact that the run's status is of: the latest healed, else completed.
func (r *ofRun) final() *fact {
	switch {
	case r.healed.seq > r.completed.seq:
		return &r.healed
	case r.completed.seq > 0:
		return &r.completed
	}
	return nil
}

// show fills in what belongs to the run.
func (r *ofRun) show(j *api.Job, version uint64) {
	t := r.count(false)
	end := r.final()
	j.Units = api.UnitCount{Total: t.total, Indexed: t.indexed, Failed: t.failed}
	j.RetriesUsed = len(r.retries)
	j.Artifacts.Pages, j.Artifacts.PagesOCR = t.pages, t.pagesOCR
	j.Artifacts.Chunks, j.Artifacts.EmbeddingsDone = t.chunks, t.embedded
	j.Artifacts.Indexed = t.indexed > 0 && t.pending == 0 && !t.superseded && t.inChunks == t.chunks
	if r.usage != (events.Usage{}) {
		j.Usage["embed"] = api.Usage{Calls: r.usage.Calls, Tokens: r.usage.Tokens, LatencyMS: r.usage.LatencyMS}
	}
	done := r.stagesDone(&t)
	for i, name := range stageNames {
		// A stage that gave no vector at all is not among those completed.
		if done[i] && (i != embed || t.embedded > 0 || t.chunks == 0 || r.from > embed) {
			j.CompletedStages = append(j.CompletedStages, name)
		}
	}
	r.showTimes(j, done)
	r.showWarnings(j, &t, end)
	if end == nil {
		r.showRunning(j, &t, done)
		return
	}
	j.Status, j.Progress = end.status, 100
	j.FinishedAt = clockOrNil(cmp.Or(r.completed.at, end.at))
	switch end.status {
	case events.StatusFailed:
		j.Error, j.Stage = end.wire(), end.stage
	case events.StatusSucceeded, events.StatusWarnings:
		j.Result = &api.Result{Mode: end.mode, CompletedStages: j.CompletedStages}
		for _, w := range j.Warnings {
			if w.ResolvedAt == nil {
				j.Result.Warnings++
			}
		}
	}
}

// stagesDone says which stages every unit has gone through or failed before, and some have.
func (r *ofRun) stagesDone(t *tally) (done [stages]bool) {
	for s := range stages {
		done[s] = s < r.from || t.total > 0 && t.passed[s] > 0 && t.reached(s) >= t.total
	}
	return done
}

// reached counts the units that are beyond the stage: through it, or failed before it.
func (t *tally) reached(s int) int { return t.passed[s] + t.failedBefore[s] }

func (r *ofRun) showRunning(j *api.Job, t *tally, done [stages]bool) {
	j.Status = events.StatusRunning
	if t.total > 0 {
		j.Progress = min(99, 100*t.through/(stages*t.total))
	}
	for i, name := range stageNames {
		if !done[i] {
			j.Stage = name
			break
		}
	}
	switch {
	case !r.working:
		j.Status, j.Waiting = events.StatusQueued, &api.Waiting{Reason: "queued"}
	case r.wait.reason != "" && r.wait.seq > r.active:
		j.Waiting = &api.Waiting{Reason: r.wait.reason, Until: clockOrNil(r.wait.until)}
	}
}

// showTimes tells when each stage worked: from the first message it could take to its last word.
func (r *ofRun) showTimes(j *api.Job, done [stages]bool) {
	from := r.began
	for i, name := range stageNames {
		s := r.time[i]
		if s.first > 0 {
			st := api.StageTime{Started: clock(min(from, s.first))}
			st.Seconds = clock(s.last).Sub(st.Started).Seconds()
			if done[i] {
				st.Finished = clockOrNil(s.last)
			}
			j.Timings[name] = st
			from = s.first
		}
	}
}

// showWarnings lists the failures that did not fail the job and the units that went on
// without vectors, each code once. A code whose units all got what they lacked is resolved.
func (r *ofRun) showWarnings(j *api.Job, t *tally, end *fact) {
	add := func(code string, units *ranges, resolved bool) {
		p := r.problem(code)
		w := api.Warning{Code: code, Stage: p.stage, Message: p.message}
		if units != nil {
			w.Units = units.strings()
		}
		if resolved {
			w.ResolvedAt = clockOrNil(r.time[index].last)
		}
		j.Warnings = append(j.Warnings, w)
	}
	dead := end != nil && end.status == events.StatusFailed
	for code, units := range t.byCode {
		if !dead || code != end.code {
			add(code, units, false)
		}
	}
	for code, units := range t.degraded {
		if t.byCode[code] == nil {
			add(code, units, false)
		}
	}
	for code, units := range t.resolved {
		if t.byCode[code] == nil && t.degraded[code] == nil {
			add(code, units, true)
		}
	}
	for _, c := range r.codes {
		if c.loose && t.byCode[c.code] == nil && t.degraded[c.code] == nil && t.resolved[c.code] == nil {
			add(c.code, nil, false)
		}
	}
	if t.ended() && t.failed == 0 && t.indexed > 0 && t.inChunks == 0 && !t.superseded {
		add(codeNoText, nil, false)
	}
	if t.superseded {
		add(codeSuperseded, nil, false)
	}
	slices.SortFunc(j.Warnings, func(a, b api.Warning) int { return cmp.Compare(a.Code, b.Code) })
}
