package view

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/leafmill/leafmill/events"
	"github.com/leafmill/leafmill/internal/api"
)

// shown is all that anybody can see of a state.
func shown(t interface{ Fatal(...any) }, s *State) string {
	due := s.Due()
	b, err := json.MarshalIndent(map[string]any{"view": s.View(), "due": due, "order": s.Order(), "known": s.Known()}, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestAnyOrderAndAnyRepeatsGiveTheSameView(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		story := anyStory(rt)
		want := shown(rt, fold(story...))
		order := rapid.Permutation(story).Draw(rt, "order")
		for range rapid.IntRange(0, 5).Draw(rt, "repeats") {
			again := rapid.SampledFrom(story).Draw(rt, "again")
			order = slices.Insert(order, rapid.IntRange(0, len(order)).Draw(rt, "where"), again)
		}
		if got := shown(rt, fold(order...)); got != want {
			rt.Fatalf("another order gives another view (-in order +shuffled):\n%s", cmp.Diff(want, got))
		}
	})
}

func TestEncodedStatesComeBackWhole(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		s := new(State)
		for _, e := range anyStory(rt) {
			s.Apply(e.m, e.err)
			b, _ := s.MarshalBinary()
			var back State
			if err := back.UnmarshalBinary(b); err != nil {
				rt.Fatal(err)
			}
			if again, _ := back.MarshalBinary(); string(again) != string(b) {
				rt.Fatal("a decoded state encodes differently")
			}
			if want, got := shown(rt, s), shown(rt, &back); got != want {
				rt.Fatalf("a decoded state shows another view:\n%s", cmp.Diff(want, got))
			}
			*s = back // the rest of the story goes on from it
		}
	})
}

// What is due is well-formed, and publishing it settles it: nothing is published for ever.
func TestWhatIsDueSettlesOncePublished(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		s, seq := new(State), uint64(0)
		for _, e := range anyStory(rt) {
			s.Apply(e.m, e.err)
			seq = e.m.Sequence
			f := s.Due()
			if f == nil {
				continue
			}
			e := stored(seq+1, f.Event, "j", f.Body)
			if e.err != nil {
				rt.Fatalf("due %s is malformed: %v", f.Event, e.err)
			}
			after := fold()
			*after = *clone(s)
			after.Apply(e.m, nil)
			if again := after.Due(); again != nil && again.Event == f.Event {
				rt.Fatalf("%s is due again once it was published", f.Event)
			}
			if j := after.View(); f.Event == events.NameCompleted && !j.Terminal() {
				rt.Fatalf("completed leaves the job %s", j.Status)
			}
		}
	})
}

func clone(s *State) *State {
	b, _ := s.MarshalBinary()
	c := new(State)
	if err := c.UnmarshalBinary(b); err != nil {
		panic(err)
	}
	return c
}

func FuzzUnmarshal(f *testing.F) {
	for _, t := range []*teller{submit("a", 3), submit("b", 40)} {
		t.through(1, 3, 2)
		t.poisoned(events.NameContinued, 4, 0, "ocr.corrupt")
		b, _ := fold(t.story...).MarshalBinary()
		f.Add(b)
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		var s State
		if s.UnmarshalBinary(b) != nil {
			return
		}
		_ = shown(t, &s) // nothing a decoder accepts may make the view panic
		s.Apply(stored(9, events.NameSubmitted, "j", events.Submitted{Text: "x"}).m, nil)
	})
}

func TestAStoryToItsEnd(t *testing.T) {
	story := submit("mill", 3)
	progress := -1
	for _, step := range []func(){
		func() {}, func() { story.extracted(1, 2, nil) }, func() { story.extracted(3, 3, nil) }, func() { story.chunked(1, 2, 2) },
		func() { story.embedded(1, 2, 2) }, func() { story.indexed(1, 2, 2, 2) }, func() { story.chunked(3, 3, 1) },
		func() { story.embedded(3, 3, 1) },
	} {
		step()
		j := fold(story.story...).View()
		if j.Progress < progress || j.Progress == 100 || j.Terminal() {
			t.Errorf("progress went from %d to %d, status %s", progress, j.Progress, j.Status)
		}
		progress = j.Progress
		if story.due() != nil {
			t.Fatal("due before the last unit is indexed")
		}
	}
	if progress != 100*(8+3)/12 {
		t.Errorf("progress is %d before the last event", progress)
	}
	story.indexed(3, 3, 1, 1)
	if f := story.due(); f == nil || f.Body.(*events.Completed).Status != events.StatusSucceeded {
		t.Fatalf("due: %+v", f)
	}
	j := fold(story.story...).View()
	want := api.Artifacts{TextPreview: "text of 1", Pages: 3, PagesOCR: 3, Chunks: 5, EmbeddingsDone: 5, Indexed: true,
		ChunksPreview: []api.ChunkPreview{{ID: "1.1", Page: 1, Text: "chunk"}, {ID: "1.2", Page: 1, Text: "chunk"}, {ID: "3.1", Page: 3, Text: "chunk"}}}
	if d := cmp.Diff(want, j.Artifacts); d != "" {
		t.Error(d)
	}
	if j.Status != "succeeded" || j.Progress != 100 || j.Result.Mode != "full_rag" || len(j.Warnings) > 0 || j.Name != "mill.txt" ||
		!slices.Equal(j.CompletedStages, []string{"ocr", "chunk", "embed", "index"}) || j.Usage["embed"].Tokens != 20 || j.FinishedAt == nil {
		t.Errorf("view: %+v", j)
	}
	if st := j.Timings["index"]; st.Finished == nil || st.Seconds != 1 {
		t.Errorf("index took %+v", st) // from the first outcome, 105, to 109
	}
}

func TestEnds(t *testing.T) {
	corrupt := &events.Problem{Code: "ocr.corrupt", Stage: "ocr", Message: "Page 2 cannot be read."}
	tests := []struct {
		name           string
		units          int
		tell           func(*teller)
		status, mode   string
		indexed        int
		failed         int
		stages         string
		warnings, code string
	}{
		{name: "one page fails", units: 3, tell: func(s *teller) { s.through(1, 1, 1); s.extracted(2, 2, corrupt); s.through(3, 3, 1) },
			status: "succeeded_with_warnings", mode: "full_rag", indexed: 2, failed: 1, stages: "[ocr chunk embed index]", warnings: "[ocr.corrupt [2-2]]"},
		{name: "a failed unit that is passed on stays failed", units: 1, tell: func(s *teller) {
			s.extracted(1, 1, corrupt)
			s.chunked(1, 1, 0)
			s.embedded(1, 1, 0)
			s.indexed(1, 1, 0, 0)
		}, status: "failed", failed: 1, stages: "[ocr chunk embed index]", code: "ocr.corrupt"},
		{name: "every page fails", units: 2, tell: func(s *teller) { s.extracted(1, 2, corrupt) }, status: "failed", failed: 2, stages: "[ocr]", code: "ocr.corrupt"},
		{name: "the submission is poisoned", units: 0, tell: func(s *teller) { s.poisoned(events.NameSubmitted, 1, 0, "ocr.encrypted") },
			status: "failed", stages: "[]", code: "ocr.encrypted"},
		{name: "the walk is poisoned", units: 9, tell: func(s *teller) { s.through(1, 4, 1); s.poisoned(events.NameContinued, 5, 0, "ocr.timeout") },
			status: "succeeded_with_warnings", mode: "full_rag", indexed: 4, failed: 5, stages: "[ocr chunk embed index]", warnings: "[ocr.timeout [5-9]]"},
		{name: "indexed overrides a poisoning", units: 1, tell: func(s *teller) {
			s.extracted(1, 1, nil)
			s.chunked(1, 1, 2)
			s.poisoned(events.NameExtracted, 1, 1, "chunk.internal")
			s.embedded(1, 1, 2)
			s.indexed(1, 1, 2, 2)
		}, status: "succeeded", mode: "full_rag", indexed: 1, stages: "[ocr chunk embed index]", warnings: "[chunk.internal [1-1] resolved]"},
		{name: "no model", units: 2, tell: func(s *teller) {
			s.extracted(1, 2, nil)
			s.chunked(1, 2, 3)
			s.degraded(1, 2, 3, events.MissingModel)
			s.indexed(1, 2, 3, 0)
		}, status: "succeeded_with_warnings", mode: "keyword_only", indexed: 2, stages: "[ocr chunk index]", warnings: "[embed.missing_model [1-2]]"},
		{name: "some vectors", units: 2, tell: func(s *teller) {
			s.through(1, 1, 3)
			s.extracted(2, 2, nil)
			s.chunked(2, 2, 3)
			s.degraded(2, 2, 3, events.CircuitOpen)
			s.indexed(2, 2, 3, 0)
		}, status: "succeeded_with_warnings", mode: "partial_rag", indexed: 2, stages: "[ocr chunk embed index]", warnings: "[embed.circuit_open [2-2]]"},
		{name: "no text anywhere", units: 2, tell: func(s *teller) { s.through(1, 2, 0) },
			status: "succeeded_with_warnings", mode: "full_rag", indexed: 2, stages: "[ocr chunk embed index]", warnings: "[ocr.no_text []]"},
		{name: "fewer chunks indexed than made", units: 1, tell: func(s *teller) {
			s.extracted(1, 1, nil)
			s.chunked(1, 1, 3)
			s.embedded(1, 1, 3)
			s.indexed(1, 1, 2, 2)
		}, status: "failed", failed: 1, stages: "[ocr chunk embed index]", code: "index.internal"},
		{name: "cancelled", units: 9, tell: func(s *teller) { s.through(1, 1, 1); s.say(events.NameCancelled, events.Cancelled{Pass: s.pass}) },
			status: "cancelled", indexed: 1, stages: "[]"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := submit("j", tt.units)
			tt.tell(s)
			f := s.due()
			if f == nil || f.Event != events.NameCompleted {
				t.Fatalf("due: %+v", f)
			}
			j := fold(s.story...).View()
			if j.Status != tt.status || j.Units.Indexed != tt.indexed || j.Units.Failed != tt.failed || fmt.Sprint(j.CompletedStages) != tt.stages {
				t.Errorf("status %s, units %+v, stages %v", j.Status, j.Units, j.CompletedStages)
			}
			if mode := ""; tt.mode != "" || j.Result != nil {
				if j.Result != nil {
					mode = j.Result.Mode
				}
				if mode != tt.mode {
					t.Errorf("mode %q", mode)
				}
			}
			if got := warnings(j); got != tt.warnings {
				t.Errorf("warnings %s", got)
			}
			if code := j.Error; (code == nil) != (tt.code == "") || code != nil && code.Code != tt.code {
				t.Errorf("error %+v", code)
			}
			if fold(s.story...).Due() != nil {
				t.Error("something is due after the end")
			}
		})
	}
}

func warnings(j api.Job) string {
	out := ""
	for _, w := range j.Warnings {
		out += fmt.Sprintf("[%s %v", w.Code, w.Units)
		if w.ResolvedAt != nil {
			out += " resolved"
		}
		out += "]"
	}
	return out
}

func TestWhatTheWalkPublishedEndsByItselfWhenItIsPoisoned(t *testing.T) {
	s := submit("j", 4)
	s.extracted(1, 2, nil)
	s.poisoned(events.NameSubmitted, 1, 0, "ocr.internal")
	if s.due() != nil {
		t.Fatal("the run ended while units 1 and 2 are under way")
	}
	s.chunked(1, 2, 1)
	s.embedded(1, 2, 1)
	s.indexed(1, 2, 1, 1)
	if f := s.due(); f == nil || len(f.Body.(*events.Completed).Failed) != 2 {
		t.Fatalf("due: %+v", f)
	}
}

func TestHealing(t *testing.T) {
	s := submit("j", 2)
	s.extracted(1, 2, nil)
	s.chunked(1, 2, 2)
	s.degraded(1, 1, 2, events.Timeout)
	s.indexed(1, 1, 2, 0)
	s.degraded(2, 2, 2, events.Timeout)
	s.indexed(2, 2, 2, 0)
	modes := []string{}
	note := func() {
		if f := s.due(); f != nil {
			switch b := f.Body.(type) {
			case *events.Completed:
				modes = append(modes, b.Status+" "+b.Mode)
			case *events.Healed:
				modes = append(modes, "healed "+b.Status+" "+b.Mode)
			}
		}
	}
	note()
	s.embedded(1, 1, 2)
	note()
	s.indexed(1, 1, 2, 2)
	note()
	if got := warnings(fold(s.story...).View()); got != "[embed.timeout [2-2]]" {
		t.Errorf("half healed: %s", got)
	}
	s.embedded(2, 2, 2)
	s.indexed(2, 2, 2, 2)
	note()
	note()
	want := []string{"succeeded_with_warnings keyword_only", "healed succeeded_with_warnings partial_rag", "healed succeeded full_rag"}
	if d := cmp.Diff(want, modes); d != "" {
		t.Error(d)
	}
	j := fold(s.story...).View()
	if j.Status != "succeeded" || warnings(j) != "[embed.timeout [1-2] resolved]" || j.Usage["embed"].Calls != 8 || j.Result.Warnings != 0 {
		t.Errorf("healed: %s, %s, %+v", j.Status, warnings(j), j.Usage)
	}
	if !j.Warnings[0].ResolvedAt.Equal(s.story[len(s.story)-2].m.Time) {
		t.Errorf("resolved at %v", j.Warnings[0].ResolvedAt)
	}
}

func TestRedrivenUnitsReplaceTheFailedOnes(t *testing.T) {
	s := submit("j", 3)
	s.through(1, 1, 1)
	s.poisoned(events.NameScanFound, 2, 2, "ocr.timeout")
	s.poisoned(events.NameScanFound, 3, 3, "ocr.timeout")
	if f := s.due(); f == nil || len(f.Body.(*events.Completed).Failed) != 2 {
		t.Fatalf("due: %+v", f)
	}
	s.say(events.NameScanFound, events.ScanFound{Pass: s.pass, Unit: 2, Page: 2})
	if s.due() != nil {
		t.Error("healed before anything is")
	}
	s.through(2, 2, 1)
	if f := s.due(); f == nil || f.Event != events.NameHealed || len(f.Body.(*events.Healed).Failed) != 1 {
		t.Errorf("due: %+v", f)
	}
	s.through(3, 3, 1)
	if f := s.due(); f == nil || f.Body.(*events.Healed).Status != events.StatusSucceeded {
		t.Errorf("due: %+v", f)
	}
}

func TestSubmissionsThatNobodyCanRead(t *testing.T) {
	malformed := stored(7, events.NameSubmitted, "j", []byte(`{"text":`))
	s := fold(malformed)
	if j := s.View(); j.Status != "queued" || j.ID != "j" || s.Order() != 7 || j.Waiting == nil {
		t.Errorf("queued: %+v", j)
	}
	dead := stored(8, events.NamePoisoned, "j", events.Poisoned{Pass: malformed.m.Pass, Cause: events.Cause{Sequence: 7, Subject: "docs.submitted.j"},
		First: 1, Stage: "ocr", Code: "ocr.invalid", Message: "The event is not JSON."})
	s = fold(malformed, dead)
	f := s.Due()
	if f == nil || f.Body.(*events.Completed).Problem.Code != "ocr.invalid" {
		t.Fatalf("due: %+v", f)
	}

	unknown := stored(9, events.NamePoisoned, "j", events.Poisoned{Cause: events.Cause{Sequence: 5}, Stage: "ocr", Code: "ocr.invalid", Message: "No."})
	if j := fold(unknown).View(); j.Status != "failed" || j.Error.Code != "ocr.invalid" || !j.Terminal() {
		t.Errorf("a dead letter of an unknown job: %+v", j)
	}
	if fold(unknown).Due() != nil {
		t.Error("a job without a run completes")
	}
	ok := submit("j", 1)
	ok.through(1, 1, 1)
	ok.due()
	want := shown(t, fold(ok.story...))
	if got := shown(t, fold(append(ok.story, unknown)...)); got != want {
		t.Errorf("a dead letter without a pass harms a known job:\n%s", cmp.Diff(want, got))
	}
}

func TestWaiting(t *testing.T) {
	s := submit("j", 1)
	if w := fold(s.story...).View().Waiting; w == nil || w.Reason != "queued" {
		t.Errorf("at first: %+v", w)
	}
	s.say(events.NameRetried, events.Retried{Pass: s.pass, Stage: "ocr", Code: "ocr.unavailable", DelayMS: 4000, Nak: true})
	at := s.story[1].m.Time
	j := fold(append(s.story, s.story...)...).View()
	if j.Status != "running" || j.RetriesUsed != 1 || j.Waiting == nil || j.Waiting.Reason != "retry_wait" || j.Waiting.Until.Sub(at).Seconds() != 4 {
		t.Errorf("after a nak: %s %+v, retries %d", j.Status, j.Waiting, j.RetriesUsed)
	}
	s.extracted(1, 1, nil)
	if w := fold(s.story...).View().Waiting; w != nil {
		t.Errorf("at work: %+v", w)
	}
}

func TestLaterRunsWin(t *testing.T) {
	s := submit("j", 2)
	first := s.pass
	s.through(1, 2, 2)
	s.due()
	s.say(events.NameReplayed, events.Replayed{Version: first.Version, Base: first.Run, Collection: "default", DocumentID: "j", Units: 2, From: "embed"})
	s.pass.Run = s.seq
	j := fold(s.story...).View()
	if j.Status != "queued" || j.Progress != 50 || j.Name != "mill.txt" || j.Artifacts.TextPreview != "text of 1" || fmt.Sprint(j.CompletedStages) != "[ocr chunk]" {
		t.Errorf("replayed: %s %d%% %q %v", j.Status, j.Progress, j.Artifacts.TextPreview, j.CompletedStages)
	}
	again := s.pass
	s.pass = first
	s.indexed(1, 2, 2, 2) // a straggler of the run before
	if s.due() != nil {
		t.Error("an event of an earlier run ends the later one")
	}
	s.pass = again
	s.chunked(1, 2, 2)
	s.embedded(1, 2, 2)
	s.indexed(1, 2, 2, 2)
	f := s.due()
	if f == nil || f.Run != again.Run || f.Last == 0 {
		t.Errorf("due: %+v", f)
	}
}

func TestADeletedJobKeepsOnlyTheFact(t *testing.T) {
	s := submit("j", 2)
	s.through(1, 2, 2)
	s.due()
	s.say(events.NameDeleted, events.Deleted{Pass: s.pass})
	all := fold(s.story...)
	only := fold(s.story[len(s.story)-1])
	if d := cmp.Diff(shown(t, only), shown(t, all)); d != "" {
		t.Errorf("after a purge another view would be rebuilt:\n%s", d)
	}
	if j := all.View(); j.Status != "cancelled" || j.Error.Code != "status.deleted" || j.Artifacts.TextPreview != "" {
		t.Errorf("%+v", j)
	}
}

// Scanned pages, each its own message, finished by several workers among other jobs'
// events: the case that encodes worst.
func TestALargeStateIsSmall(t *testing.T) {
	const units = 5000
	rng := rand.New(rand.NewPCG(1, 2))
	s := submit("scan", units)
	state := fold(s.story...)
	seq := s.seq
	page := func(n int, at uint64) {
		chunks := 2 + rng.IntN(4)
		for i, step := range []func(){
			func() { s.extracted(n, n, nil) }, func() { s.chunked(n, n, chunks) }, func() { s.embedded(n, n, chunks) }, func() { s.indexed(n, n, chunks, chunks) },
		} {
			s.seq, s.story = at+uint64(i)*uint64(50+rng.IntN(50)), nil
			step()
			state.Apply(s.story[0].m, nil)
		}
	}
	for n := range units {
		seq += uint64(20 + rng.IntN(40))
		page(n+1, seq+uint64(rng.IntN(100)))
	}
	for i := range state.run.list {
		state.run.list[i].length = 500 + rng.IntN(4000)
	}
	b, _ := state.MarshalBinary()
	t.Logf("%d units, %d bytes, %.1f a unit", units, len(b), float64(len(b))/units)
	if len(b) > 15*units {
		t.Errorf("%d bytes for %d units", len(b), units)
	}
	if f := state.Due(); f == nil || f.Body.(*events.Completed).Status != events.StatusSucceeded {
		t.Errorf("due: %+v", f)
	}
}

func TestAFactOfManyFailedUnitsFitsAnEvent(t *testing.T) {
	s := submit("j", 100_000)
	s.through(1, 1, 1)
	s.poisoned(events.NameContinued, 2, 0, "ocr.timeout")
	f := fold(s.story...).Due()
	b, err := json.Marshal(f.Body)
	if err != nil || len(b) > events.MaxSize {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	s.due()
	if j, err := json.Marshal(fold(s.story...).View()); err != nil || len(j) > 64<<10 {
		t.Errorf("the view has %d bytes, %v", len(j), err)
	}
}
