package events_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/parser"
	"go/token"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/leafmill/leafmill/events"
)

// fixture is an event as the stream had it, frozen with the release that wrote it.
type fixture struct {
	Sequence uint64
	Subject  string
	Time     time.Time
	Headers  map[string]string
	Body     json.RawMessage
}

func load(t testing.TB, name events.Name) fixture {
	t.Helper()
	return read(t, filepath.Join("testdata", "v1", string(name)+".json"))
}

func read(t testing.TB, path string) fixture {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var f fixture
	if err := json.Unmarshal(data, &f); err != nil {
		t.Fatal(err)
	}
	return f
}

func (f fixture) stored() events.Stored {
	return events.Stored{Sequence: f.Sequence, Subject: f.Subject, Time: f.Time, Data: f.Body,
		Header: func(k string) string { return f.Headers[k] }}
}

// fixtures are all of v1: of every event one from a run of the program, and one (.full)
// that has every field.
func fixtures(t testing.TB) map[string]fixture {
	t.Helper()
	paths, err := filepath.Glob("testdata/v1/*.json")
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]fixture{}
	for _, p := range paths {
		all[strings.TrimSuffix(filepath.Base(p), ".json")] = read(t, p)
	}
	return all
}

// TestFixturesOfV1 decodes what the first release wrote: nothing may be lost, in this
// release or any later one.
func TestFixturesOfV1(t *testing.T) {
	all := fixtures(t)
	for _, e := range events.Catalog {
		for _, name := range []string{string(e.Name), string(e.Name) + ".full"} {
			f, ok := all[name]
			if !ok {
				t.Errorf("no fixture %s", name)
				continue
			}
			delete(all, name)
			m, err := events.Decode(f.stored())
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			if m.Event != e.Name || m.Job == "" || m.Pass.Run == 0 || m.Pass.Version == 0 || m.Pass.DocumentID == "" {
				t.Errorf("%s decodes to %+v", name, m)
			}
			if id := f.Headers[events.HeaderID]; id != "" && (m.ID != id || m.Source != f.Headers[events.HeaderSource]) {
				t.Errorf("%s: id %s, source %s", name, m.ID, m.Source)
			}
			again, err := json.Marshal(m.Body)
			if err != nil {
				t.Fatal(err)
			}
			sameJSON(t, name, f.Body, again)
			switch b := m.Body.(type) {
			case *events.Extracted:
				sameContent[events.UnitText](t, name, b.Content)
			case *events.Chunked:
				sameContent[events.Chunk](t, name, b.Content)
			case *events.Embedded:
				sameContent[events.Chunk](t, name, b.Content)
			case *events.Degraded:
				sameContent[events.Chunk](t, name, b.Content)
			}
		}
	}
	for name := range all {
		t.Errorf("fixture %s is of no event: an event of a release cannot go", name)
	}
}

func sameContent[T any](t *testing.T, name string, c events.Content) {
	t.Helper()
	if c.Inline == nil {
		return
	}
	var items []T
	if err := json.Unmarshal(c.Inline, &items); err != nil {
		t.Errorf("%s: content: %v", name, err)
		return
	}
	again, err := json.Marshal(items)
	if err != nil {
		t.Fatal(err)
	}
	sameJSON(t, name+": content", c.Inline, again)
}

func sameJSON(t *testing.T, name string, a, b []byte) {
	t.Helper()
	var want, got any
	if json.Unmarshal(a, &want) != nil || json.Unmarshal(b, &got) != nil {
		t.Fatalf("%s is not JSON", name)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("%s loses or invents something:\n%s", name, d)
	}
}

func TestFutureVersions(t *testing.T) {
	for version, want := range map[string]events.Class{
		"v1": "", "v1.3": "", "v1.2.7": "", "v2": events.Unsupported, "v0": events.Unsupported, "v10": events.Unsupported,
		"v": events.Unsupported, "vbanana": events.Unsupported, "v1banana": events.Unsupported, "v-1": events.Unsupported, "banana": events.Invalid, "1": events.Invalid, "": events.Invalid,
	} {
		f := load(t, events.NameExtracted)
		f.Headers[events.HeaderType] = "leafmill.docs.extracted." + version
		_, err := events.Decode(f.stored())
		if got := class(err); got != want {
			t.Errorf("%q: %v, want class %q", version, err, want)
		}
	}
	f := load(t, events.NameExtracted)
	f.Headers[events.HeaderType] = "leafmill.docs.chunked.v1"
	if _, err := events.Decode(f.stored()); class(err) != events.Invalid {
		t.Errorf("another event's type: %v", err)
	}
	f = load(t, events.NameChunked)
	f.Body = bytes.Replace(f.Body, []byte("{"), []byte(`{"from_the_future":[1,{"a":null}],`), 1)
	if _, err := events.Decode(f.stored()); err != nil {
		t.Errorf("an unknown field is refused: %v", err)
	}
}

func class(err error) events.Class {
	if err == nil {
		return ""
	}
	return events.ClassOf(err)
}

func TestSubmissionsByHand(t *testing.T) {
	for body, valid := range map[string]bool{
		`{"text":"a"}`: true, `{"data":"aGk="}`: true, `{"object":"report.pdf"}`: true,
		`{"text":"a","document_id":"a.b:c-d_e","collection":"x","metadata":{"n":1},"extra":true}`: true,
		`{}`: false, `{"text":""}`: false, `{"text":"a","data":"aGk="}`: false, `null`: false, `[]`: false, `"text"`: false, `{`: false, ``: false,
		`{"text":7}`: false, `{"text":"a","document_id":"../x"}`: false, `{"text":"a","collection":"a b"}`: false,
		`{"text":"a","metadata":[]}`: false, `{"text":"a","name":"` + strings.Repeat("n", 2000) + `"}`: false,
	} {
		m, err := events.Decode(events.Stored{Sequence: 9, Subject: "docs.submitted.my-job", Data: []byte(body)})
		if (err == nil) != valid {
			t.Errorf("%s: %v", body, err)
		}
		if err != nil && class(err) != events.Invalid {
			t.Errorf("%s: class %s", body, class(err))
		}
		// Good or bad, it begins a run of its job.
		if m.Pass.Run != 9 || m.Pass.Version != 9 || m.Job != "my-job" || !events.ValidDocument(m.Pass.DocumentID) || !events.ValidCollection(m.Pass.Collection) {
			t.Errorf("%s: pass %+v", body, m.Pass)
		}
	}
	for _, subject := range []string{"docs.submitted", "docs.submitted.a.b", "docs.submitted.ü", "other.submitted.a", "docs.unheard.a", ""} {
		if _, err := events.Decode(events.Stored{Sequence: 1, Subject: subject, Data: []byte(`{"text":"a"}`)}); class(err) != events.Invalid {
			t.Errorf("%s: %v", subject, err)
		}
	}
}

// TestEventsWithoutTheirPassAreInvalid: only what begins a pass may lack it.
func TestEventsWithoutTheirPassAreInvalid(t *testing.T) {
	for _, e := range events.Catalog {
		for _, key := range []string{"run", "version", "collection", "document_id"} {
			f := load(t, e.Name)
			var body map[string]json.RawMessage
			if err := json.Unmarshal(f.Body, &body); err != nil {
				t.Fatal(err)
			}
			if _, has := body[key]; !has {
				continue
			}
			delete(body, key)
			f.Body, _ = json.Marshal(body)
			_, err := events.Decode(f.stored())
			optional := e.Name == events.NameSubmitted || e.Name == events.NameSubmittedBulk || e.Name == events.NamePoisoned
			if (err == nil) != optional {
				t.Errorf("%s without %s: %v", e.Name, key, err)
			}
		}
	}
}

func TestVectorsRoundTrip(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		v := events.Vector(rapid.SliceOfN(rapid.Float32(), 1, 50).Draw(rt, "vector"))
		text, err := v.MarshalText()
		if err != nil {
			rt.Fatal(err)
		}
		var back events.Vector
		if err := back.UnmarshalText(text); err != nil {
			rt.Fatal(err)
		}
		if !cmp.Equal(v, back) {
			rt.Fatalf("%v came back as %v", v, back)
		}
	})
	for _, bad := range []float32{float32(math.NaN()), float32(math.Inf(1))} {
		text, _ := events.Vector{1, bad}.MarshalText()
		if err := new(events.Vector).UnmarshalText(text); class(err) != events.Invalid {
			t.Errorf("%v: %v", bad, err)
		}
	}
	for text, why := range map[string]string{"AAAA": "three bytes", "AAAAA": "no base64", "AAAA AAA": "no base64 either", "äöü": "not even ASCII"} {
		if err := new(events.Vector).UnmarshalText([]byte(text)); class(err) != events.Invalid {
			t.Errorf("%s is a vector: %v", why, err)
		}
	}
}

func TestFailures(t *testing.T) {
	cause := errors.New("exit 1")
	err := error(events.Fail(events.Timeout, "Page %d took too long.", 3).Because(cause).Finally())
	if !errors.Is(err, cause) || events.ClassOf(err) != events.Timeout || events.Retryable(err) || !events.Retryable(cause) {
		t.Errorf("%v", err)
	}
	if p := events.ProblemOf("ocr", err); p.Code != "ocr.timeout" || p.Message != "Page 3 took too long." || p.Stage != "ocr" {
		t.Errorf("%+v", p)
	}
	if p := events.ProblemOf("ocr", cause); p.Code != "ocr.internal" {
		t.Errorf("%+v", p)
	}
}

// TestPipelineIsClosed: every event has a reader, and everything read is published.
func TestPipelineIsClosed(t *testing.T) {
	consumed, published, durables := map[events.Name]bool{}, map[events.Name]bool{}, map[string]bool{}
	for _, s := range events.Pipeline {
		if durables[s.Durable] || s.Service == "" {
			t.Errorf("durable %s is there twice, or nobody's", s.Durable)
		}
		durables[s.Durable] = true
		for _, n := range slices.Concat(s.Consumes, s.Publishes) {
			if _, ok := events.EntryOf(n); !ok {
				t.Errorf("%s speaks of %s, which the catalog does not have", s.Durable, n)
			}
		}
		for _, n := range s.Consumes {
			if consumed[n] && n != events.NameDegraded {
				t.Errorf("%s is consumed twice", n)
			}
			consumed[n] = true
		}
		for _, n := range s.Publishes {
			published[n] = true
		}
	}
	for _, n := range []events.Name{events.NameExtracted, events.NameScanFound, events.NameChunked, events.NameEmbedded, events.NameDegraded, events.NameContinued} {
		if !consumed[n] || !published[n] {
			t.Errorf("%s is published: %t, consumed: %t", n, published[n], consumed[n])
		}
	}
}

// TestCatalogAndPipelineAgree: the two tables say the same of who reads and who writes.
func TestCatalogAndPipelineAgree(t *testing.T) {
	seen := map[events.Name]bool{}
	for _, e := range events.Catalog {
		if seen[e.Name] || e.Says == "" || len(e.By) == 0 || len(e.To) == 0 {
			t.Errorf("%s is there twice, or says too little", e.Name)
		}
		seen[e.Name] = true
		var readers, writers []string
		for _, s := range events.Pipeline {
			if slices.Contains(s.Consumes, e.Name) {
				readers = append(readers, s.Durable)
			}
			if slices.Contains(s.Publishes, e.Name) && !slices.Contains(writers, s.Service) {
				writers = append(writers, s.Service)
			}
		}
		for _, r := range readers {
			if !slices.Contains(e.To, r) {
				t.Errorf("the pipeline's %s reads %s, the catalog does not say so", r, e.Name)
			}
		}
		for _, to := range e.To {
			if _, durable := events.StageOf(to); durable && !slices.Contains(readers, to) {
				t.Errorf("the catalog says that %s reads %s, the pipeline does not", to, e.Name)
			}
		}
		for _, w := range writers {
			if !slices.Contains(e.By, w) {
				t.Errorf("the pipeline's %s publishes %s, the catalog does not say so", w, e.Name)
			}
		}
		// Facts end at status, users and fences; everything else is somebody's work.
		fact := slices.ContainsFunc(e.To, func(to string) bool { return to == "status" || to == "users" || to == "all" })
		if !fact && len(readers) == 0 {
			t.Errorf("nobody works on %s", e.Name)
		}
	}
}

func TestReplaysOfWhatIsNotThereYetAreInvalid(t *testing.T) {
	for _, c := range []struct {
		version, base uint64
		valid         bool
	}{{3, 3, true}, {3, 8, true}, {9, 8, true}, {10, 8, false}, {3, 10, false}, {0, 3, false}} {
		data, err := json.Marshal(events.Replayed{Version: c.version, Base: c.base, From: "embed", Collection: "c", DocumentID: "d"})
		if err != nil {
			t.Fatal(err)
		}
		m, err := events.Decode(events.Stored{Sequence: 9, Subject: "docs.replayed.j", Data: data})
		if (err == nil) != c.valid || err != nil && class(err) != events.Invalid || m.Pass.Run != 9 {
			t.Errorf("%+v: %v, run %d", c, err, m.Pass.Run)
		}
	}
}

func TestOnlyTheStandardLibrary(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if strings.HasSuffix(f, "_test.go") {
			continue
		}
		src, err := parser.ParseFile(token.NewFileSet(), f, nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range src.Imports {
			if path, _ := strconv.Unquote(i.Path.Value); strings.Contains(path, ".") {
				t.Errorf("%s imports %s: anyone must be able to depend on the contract", f, path)
			}
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, x := range fixtures(f) {
		f.Add(x.Subject, x.Headers[events.HeaderType], []byte(x.Body))
	}
	f.Add("docs.submitted.a", "", []byte(`{"text":"\u0000"}`))
	f.Fuzz(func(t *testing.T, subject, ceType string, data []byte) {
		m, err := events.Decode(events.Stored{Sequence: 77, Subject: subject, Data: data, Header: func(k string) string {
			if k == events.HeaderType {
				return ceType
			}
			return ""
		}})
		if err != nil {
			if c := events.ClassOf(err); c != events.Invalid && c != events.Unsupported {
				t.Errorf("class %s", c)
			}
			return
		}
		if !events.ValidJob(m.Job) || m.Body == nil {
			t.Errorf("accepted %+v", m)
		}
		if p := m.Pass; m.Event != events.NamePoisoned && (p.Run == 0 || p.Version == 0 || p.Version > p.Run || p.Units < 0 || p.Units > events.MaxUnits || !events.ValidDocument(m.Pass.DocumentID) || !events.ValidCollection(m.Pass.Collection)) {
			t.Errorf("accepted the pass %+v", m.Pass)
		}
		if r := m.Body.Covers(); r.Last != 0 && r.Last < r.First {
			t.Errorf("covers %+v", r)
		}
	})
}
