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
	data, err := os.ReadFile(filepath.Join("testdata", "v1", string(name)+".json"))
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

// TestFixturesOfV1 decodes what the first release wrote: nothing may be lost, in this
// release or any later one.
func TestFixturesOfV1(t *testing.T) {
	for _, e := range events.Catalog {
		f := load(t, e.Name)
		m, err := events.Decode(f.stored())
		if err != nil {
			t.Errorf("%s: %v", e.Name, err)
			continue
		}
		if m.Event != e.Name || m.Job == "" || m.Pass.Run == 0 || m.Pass.Version == 0 || m.Pass.DocumentID == "" {
			t.Errorf("%s decodes to %+v", e.Name, m)
		}
		again, err := json.Marshal(m.Body)
		if err != nil {
			t.Fatal(err)
		}
		var want, got any
		if json.Unmarshal(f.Body, &want) != nil || json.Unmarshal(again, &got) != nil {
			t.Fatal("not JSON")
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s loses or invents something:\n%s", e.Name, d)
		}
	}
}

func TestFutureVersions(t *testing.T) {
	for version, want := range map[string]events.Class{
		"v1": "", "v1.3": "", "v1.2.7": "", "v2": events.Unsupported, "v0": events.Unsupported, "v10": events.Unsupported,
		"v": events.Unsupported, "1": events.Invalid, "": events.Invalid,
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
	if err := new(events.Vector).UnmarshalText([]byte("AAAA")); err == nil {
		t.Error("three bytes are no vector")
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
		for _, n := range append(s.Consumes, s.Publishes...) {
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
	for _, e := range events.Catalog {
		x := load(f, e.Name)
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
		if m.Event != events.NamePoisoned && (m.Pass.Run == 0 || !events.ValidDocument(m.Pass.DocumentID) || !events.ValidCollection(m.Pass.Collection)) {
			t.Errorf("accepted the pass %+v", m.Pass)
		}
		if r := m.Body.Covers(); r.Last != 0 && r.Last < r.First {
			t.Errorf("covers %+v", r)
		}
	})
}
