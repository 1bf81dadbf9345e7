package gateway_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/leafmill/leafmill/events"
	"github.com/leafmill/leafmill/internal/bus"
	"github.com/leafmill/leafmill/services/gateway"
)

// form writes multipart/form-data; a value that begins with @name: is a file.
func form(t testing.TB, fields ...[2]string) (contentType, body string) {
	t.Helper()
	var b strings.Builder
	w := multipart.NewWriter(&b)
	for _, f := range fields {
		var part io.Writer
		var err error
		if name, content, ok := strings.Cut(f[1], ":"); ok && strings.HasPrefix(name, "@") {
			f[1] = content
			part, err = w.CreateFormFile(f[0], name[1:])
		} else {
			part, err = w.CreateFormField(f[0])
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(part, f[1]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return w.FormDataContentType(), b.String()
}

// original reads an upload back.
func (e *env) original(object string) string {
	e.t.Helper()
	b, err := e.conn.JetStream().ObjectStore(e.t.Context(), events.BucketOriginals)
	if err != nil {
		e.t.Fatal(err)
	}
	data, err := b.GetBytes(e.t.Context(), object)
	if err != nil {
		e.t.Fatal(err)
	}
	return string(data)
}

func TestSubmissionsAreStoredBeforeTheyAreAccepted(t *testing.T) {
	e := newEnv(t, gateway.Config{})
	long := strings.Repeat("Ein langer Text mit Ümläuten. ", 5000)
	markup := strings.Repeat("<&>", 20<<10) // short, but six times as long in JSON
	quoted := func(s string) string { b, _ := json.Marshal(s); return string(b) }
	tests := map[string]struct {
		request func() *http.Request
		want    events.Submitted // Object stands for the content
		event   events.Name
	}{
		"JSON": {
			func() *http.Request {
				return e.request("POST", "/documents", "application/json", strings.NewReader(`{"text":"hello","name":"a.txt"}`))
			},
			events.Submitted{Text: "hello", Name: "a.txt", Size: 5}, events.NameSubmitted,
		},
		"JSON with everything": {
			func() *http.Request {
				return e.request("POST", "/documents", "application/json; charset=utf-8", strings.NewReader(
					`{"text":"hello","name":"../x/b.md","document_id":"d:1","collection":"c.1","language":"deu+eng","media_type":"text/markdown","metadata":{"n":12345678901234567890},"bulk":true,"later":1}`))
			},
			events.Submitted{Text: "hello", Name: "b.md", DocumentID: "d:1", Collection: "c.1", Language: "deu+eng", MediaType: "text/markdown",
				Size: 5, Metadata: map[string]any{"n": json.Number("12345678901234567890")}}, events.NameSubmittedBulk,
		},
		"JSON of more than 64 KB": {
			func() *http.Request {
				return e.request("POST", "/documents", "application/json", strings.NewReader(`{"text":`+quoted(long)+`}`))
			},
			events.Submitted{Object: long, MediaType: "text/plain; charset=utf-8", Size: int64(len(long))}, events.NameSubmitted,
		},
		"JSON that grows when encoded": {
			func() *http.Request {
				return e.request("POST", "/documents", "application/json", strings.NewReader(`{"text":`+quoted(markup)+`}`))
			},
			events.Submitted{Object: markup, MediaType: "text/plain; charset=utf-8", Size: int64(len(markup))}, events.NameSubmitted,
		},
		"a form, fields before and after": {
			func() *http.Request {
				ct, body := form(t, [2]string{"collection", "c"}, [2]string{"file", "@dir/a.pdf:%PDF-1.7"}, [2]string{"document_id", "after"},
					[2]string{"metadata", `{"a":[1]}`}, [2]string{"language", "de"}, [2]string{"other", "x"})
				return e.request("POST", "/documents", ct, strings.NewReader(body))
			},
			events.Submitted{Object: "%PDF-1.7", Name: "a.pdf", DocumentID: "after", Collection: "c", Language: "de", Size: 8,
				Metadata: map[string]any{"a": []any{json.Number("1")}}}, events.NameSubmitted,
		},
		"a form with bulk last": {
			func() *http.Request {
				ct, body := form(t, [2]string{"file", "@a.bin:x"}, [2]string{"bulk", "true"})
				return e.request("POST", "/documents", ct, strings.NewReader(body))
			},
			events.Submitted{Object: "x", Name: "a.bin", Size: 1}, events.NameSubmittedBulk,
		},
		"a raw body": {
			func() *http.Request {
				return e.request("POST", "/documents?name=scan%20one.png&document_id=s1&collection=pics&language=en&bulk=1", "image/png", strings.NewReader("\x89PNG"))
			},
			events.Submitted{Object: "\x89PNG", Name: "scan one.png", DocumentID: "s1", Collection: "pics", Language: "en", MediaType: "image/png", Size: 4},
			events.NameSubmittedBulk,
		},
		"a raw body in pieces of unknown length": {
			func() *http.Request {
				return e.request("POST", "/documents", "text/plain; charset=iso-8859-1", io.MultiReader(strings.NewReader(long), strings.NewReader("end")))
			},
			events.Submitted{Object: long + "end", MediaType: "text/plain; charset=iso-8859-1", Size: int64(len(long) + 3)}, events.NameSubmitted,
		},
		"octets": {
			func() *http.Request {
				return e.request("POST", "/documents", "application/octet-stream", strings.NewReader("?"))
			},
			events.Submitted{Object: "?", Size: 1}, events.NameSubmitted,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r := tt.request()
			trace := "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
			r.Header.Set("traceparent", trace)
			a := e.do(r)
			if a.status != http.StatusAccepted {
				t.Fatalf("%d: %s", a.status, a.body)
			}
			var got gateway.Accepted
			if err := json.Unmarshal([]byte(a.body), &got); err != nil {
				t.Fatal(err)
			}
			if id, err := uuid.Parse(got.JobID); err != nil || id.Version() != 7 {
				t.Errorf("job id %q: %v", got.JobID, err)
			}
			document := tt.want.DocumentID
			if document == "" {
				document = got.JobID
			}
			if got.DocumentID != document || got.Status != "queued" || a.header.Get("Location") != "/jobs/"+got.JobID {
				t.Errorf("%+v, Location %s", got, a.header.Get("Location"))
			}
			stored := e.stored(events.JobSubjects(got.JobID))
			if len(stored) != 1 || stored[0].Err != nil || stored[0].Event != tt.event {
				t.Fatalf("stored: %+v", stored)
			}
			s := stored[0].Body.(*events.Submitted)
			if tt.want.Object != "" {
				if want := got.JobID + "/original"; s.Object != want {
					t.Fatalf("object %q, want %q", s.Object, want)
				}
				if content := e.original(s.Object); content != tt.want.Object {
					t.Errorf("%d bytes stored, want %d: %.40q", len(content), len(tt.want.Object), content)
				}
				tt.want.Object = s.Object
			}
			want, _ := json.Marshal(tt.want)
			if string(stored[0].Raw) != string(want) {
				t.Errorf("stored %s\nwant   %s", stored[0].Raw, want)
			}
		})
	}
}

func TestBadSubmissionsAreRefusedAtTheDoor(t *testing.T) {
	e := newEnv(t, gateway.Config{MaxUpload: 1 << 20})
	big := strings.Repeat("x", 1<<20+1)
	formOf := func(fields ...[2]string) [2]string { ct, b := form(t, fields...); return [2]string{ct, b} }
	file := [2]string{"file", "@a.txt:hello"}
	ct, whole := form(t, file, [2]string{"collection", "c"})
	tests := map[string]struct {
		query  string
		send   [2]string // content type, body
		status int
		code   string
	}{
		"no content type":             {"", [2]string{"", "x"}, 415, "gateway.unsupported_media_type"},
		"a nonsense content type":     {"", [2]string{"nonsense", "x"}, 415, "gateway.unsupported_media_type"},
		"a url-encoded form":          {"", [2]string{"application/x-www-form-urlencoded", "a=b"}, 415, "gateway.unsupported_media_type"},
		"another multipart":           {"", [2]string{"multipart/mixed; boundary=x", "--x--"}, 415, "gateway.unsupported_media_type"},
		"no JSON":                     {"", [2]string{"application/json", "{"}, 400, "gateway.invalid"},
		"two JSON values":             {"", [2]string{"application/json", `{"text":"a"} {}`}, 400, "gateway.invalid"},
		"an empty JSON body":          {"", [2]string{"application/json", ""}, 400, "gateway.invalid"},
		"a JSON list":                 {"", [2]string{"application/json", `["text"]`}, 422, "gateway.invalid"},
		"JSON null":                   {"", [2]string{"application/json", `null`}, 422, "gateway.invalid"},
		"no text":                     {"", [2]string{"application/json", `{"name":"x"}`}, 422, "gateway.invalid"},
		"text of another type":        {"", [2]string{"application/json", `{"text":1}`}, 422, "gateway.invalid"},
		"empty text":                  {"", [2]string{"application/json", `{"text":" \n"}`}, 422, "gateway.empty"},
		"an illegal document id":      {"", [2]string{"application/json", `{"text":"a","document_id":"a b"}`}, 422, "gateway.invalid"},
		"a long document id":          {"", [2]string{"application/json", `{"text":"a","document_id":"` + strings.Repeat("a", 129) + `"}`}, 422, "gateway.invalid"},
		"an illegal collection":       {"", [2]string{"application/json", `{"text":"a","collection":"a/b"}`}, 422, "gateway.invalid"},
		"an illegal language":         {"", [2]string{"application/json", `{"text":"a","language":"--psm"}`}, 422, "gateway.invalid"},
		"an illegal media type":       {"", [2]string{"application/json", `{"text":"a","media_type":"text"}`}, 422, "gateway.invalid"},
		"metadata that is a list":     {"", [2]string{"application/json", `{"text":"a","metadata":[]}`}, 422, "gateway.invalid"},
		"metadata over 16 KB":         {"", [2]string{"application/json", `{"text":"a","metadata":{"a":"` + big[:16<<10] + `"}}`}, 422, "gateway.invalid"},
		"a text over the cap":         {"", [2]string{"application/json", `{"text":"` + big + `"}`}, 413, "gateway.too_large"},
		"JSON far over the cap":       {"", [2]string{"application/json", `{"text":"` + big + big + big + `"}`}, 413, "gateway.too_large"},
		"an empty body":               {"", [2]string{"text/plain", ""}, 422, "gateway.empty"},
		"a raw body over the cap":     {"", [2]string{"text/plain", big}, 413, "gateway.too_large"},
		"an illegal bulk":             {"?bulk=perhaps", [2]string{"text/plain", "x"}, 422, "gateway.invalid"},
		"a parameter twice":           {"?collection=a&collection=b", [2]string{"text/plain", "x"}, 422, "gateway.invalid"},
		"an illegal id in the query":  {"?document_id=%2F", [2]string{"text/plain", "x"}, 422, "gateway.invalid"},
		"a form without boundary":     {"", [2]string{"multipart/form-data", "x"}, 400, "gateway.invalid"},
		"a form that is none":         {"", [2]string{"multipart/form-data; boundary=b", "x"}, 422, "gateway.invalid"},
		"a form that breaks off":      {"", [2]string{ct, whole[:len(whole)-70]}, 400, "gateway.invalid"},
		"a file that breaks off":      {"", [2]string{ct, whole[:strings.Index(whole, "hello")+3]}, 400, "gateway.incomplete"},
		"a form without a file":       {"", formOf([2]string{"collection", "c"}), 422, "gateway.invalid"},
		"an empty file":               {"", formOf([2]string{"file", "@a.txt:"}), 422, "gateway.empty"},
		"two files":                   {"", formOf(file, file), 422, "gateway.invalid"},
		"a bad field after the file":  {"", formOf(file, [2]string{"document_id", "a b"}), 422, "gateway.invalid"},
		"bad metadata after the file": {"", formOf(file, [2]string{"metadata", "{} {}"}), 422, "gateway.invalid"},
		"a file over the cap":         {"", formOf([2]string{"file", "@a.txt:" + big}), 413, "gateway.too_large"},
		"a form far over the cap":     {"", formOf([2]string{"file", "@a.txt:" + big + big}), 413, "gateway.too_large"},
		"a long field":                {"", formOf([2]string{"other", big[:17<<10]}, file), 422, "gateway.invalid"},
		"many fields": {"", formOf(func() (f [][2]string) {
			for range 65 {
				f = append(f, [2]string{"a", "b"})
			}
			return f
		}()...), 422, "gateway.invalid"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			// Without a declared length too: the cap counts what comes.
			for _, chunked := range []bool{false, true} {
				var body io.Reader = strings.NewReader(tt.send[1])
				if chunked {
					body = io.MultiReader(body)
				}
				a := e.do(e.request("POST", "/documents"+tt.query, tt.send[0], body))
				if a.status != tt.status || a.problem(t).Code != tt.code {
					t.Errorf("chunked %v: %d: %s, want %d %s", chunked, a.status, a.body, tt.status, tt.code)
				}
			}
		})
	}
	t.Run("compressed", func(t *testing.T) {
		r := e.request("POST", "/documents", "text/plain", strings.NewReader("x"))
		r.Header.Set("Content-Encoding", "gzip")
		if a := e.do(r); a.status != 415 {
			t.Errorf("%d: %s", a.status, a.body)
		}
	})
	e.nothingLeft()
}

// endless never stops; it counts what was taken of it.
type endless struct{ taken atomic.Int64 }

func (r *endless) Read(p []byte) (int, error) {
	r.taken.Add(int64(len(p)))
	return len(p), nil
}

func TestAnEndlessUploadIsCutAtTheCap(t *testing.T) {
	e := newEnv(t, gateway.Config{MaxUpload: 1 << 20})
	ct, whole := form(t, [2]string{"file", "@a.bin:"})
	head := whole[:strings.LastIndex(whole, "\r\n--")]
	for name, body := range map[string]struct {
		contentType string
		head        string
	}{"raw": {"application/pdf", ""}, "form": {ct, head}, "JSON": {"application/json", `{"text":"`}} {
		t.Run(name, func(t *testing.T) {
			src := &endless{}
			a := e.do(e.request("POST", "/documents", body.contentType, io.MultiReader(strings.NewReader(body.head), src)))
			if a.status != http.StatusRequestEntityTooLarge || a.problem(t).Code != "gateway.too_large" {
				t.Fatalf("%d: %s", a.status, a.body)
			}
		})
	}
	e.nothingLeft()
}

// TestUploadsAreNotHeldInMemory sends 96 MB and looks at the live heap on the way.
func TestUploadsAreNotHeldInMemory(t *testing.T) {
	e := newEnv(t, gateway.Config{})
	const size = 96 << 20
	var before, during runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	src := &endless{}
	half := readerFunc(func([]byte) (int, error) {
		runtime.GC()
		runtime.ReadMemStats(&during)
		return 0, io.EOF
	})
	a := e.do(e.request("POST", "/documents", "application/pdf", io.MultiReader(io.LimitReader(src, size), half)))
	if a.status != http.StatusAccepted {
		t.Fatalf("%d: %s", a.status, a.body)
	}
	if grown := int64(during.HeapAlloc) - int64(before.HeapAlloc); grown > size/3 {
		t.Errorf("the heap grew by %d MB with the upload", grown>>20)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestAClientThatLeavesLeavesNothing(t *testing.T) {
	e := newEnv(t, gateway.Config{})
	ctx, cancel := context.WithCancel(t.Context())
	sent := 0
	src := readerFunc(func(p []byte) (int, error) {
		if sent += len(p); sent > 2<<20 && e.pieces() > 0 { // content lies in the bucket
			cancel()
			return 0, io.ErrUnexpectedEOF
		}
		return len(p), nil
	})
	r := e.request("POST", "/documents", "application/pdf", src).WithContext(ctx)
	if res, err := e.http.Client().Do(r); err == nil {
		_ = res.Body.Close()
		t.Fatalf("%d for an upload that broke off", res.StatusCode)
	}
	e.http.Close() // waits for the handler
	e.nothingLeft()
}

func TestASilentUploadEnds(t *testing.T) {
	e := newEnv(t, gateway.Config{UploadIdle: 100 * time.Millisecond})
	conn, err := net.Dial("tcp", e.http.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_, err = fmt.Fprintf(conn, "POST /documents HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\nContent-Length: 100\r\n\r\nfirst")
	if err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(conn) // until the server closes
	if err != nil || !bytes.HasPrefix(answer, []byte("HTTP/1.1 408")) || !bytes.Contains(answer, []byte("gateway.timeout")) {
		t.Errorf("%v: %s", err, answer)
	}
	e.nothingLeft()
}

func TestTooManyUploadsAreToldToComeBack(t *testing.T) {
	e := newEnv(t, gateway.Config{MaxUploads: 2})
	hold, release := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	for range 2 {
		first := true
		wg.Go(func() {
			a := e.do(e.request("POST", "/documents", "text/plain", readerFunc(func(p []byte) (int, error) {
				if first {
					first = false
					return copy(p, strings.Repeat("x", 64<<10)), nil
				}
				hold <- struct{}{}
				<-release
				return 0, io.EOF
			})))
			if a.status != http.StatusAccepted {
				t.Errorf("%d: %s", a.status, a.body)
			}
		})
	}
	<-hold
	<-hold
	for gateway.Uploads(e.gw) < 2 { // both are in their handlers
		runtime.Gosched()
	}
	if a := e.post("text/plain", "x"); a.status != http.StatusTooManyRequests || a.problem(t).Code != "gateway.busy" {
		t.Errorf("%d: %s", a.status, a.body)
	}
	close(release)
	wg.Wait()
	if a := e.post("text/plain", "x"); a.status != http.StatusAccepted {
		t.Errorf("afterwards %d: %s", a.status, a.body)
	}
}

func TestAFullStreamTakesNoMore(t *testing.T) {
	e := newEnvOn(t, gateway.Config{}, bus.Layout{MaxBytes: 1 << 20})
	filler := strings.Repeat("x", 100<<10)
	for i := range 9 {
		if _, err := e.conn.Publish(t.Context(), events.NameSubmitted, fmt.Sprint("fill", i), events.Submitted{Text: filler}, bus.PublishOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	a := e.post("text/plain", "x")
	if a.status != http.StatusInsufficientStorage || a.problem(t).Code != "gateway.full" {
		t.Errorf("%d: %s", a.status, a.body)
	}
	if e.pieces() != 0 {
		t.Error("content left behind")
	}
}

func TestALowDiskTakesNoMore(t *testing.T) {
	e := newEnv(t, gateway.Config{DataDir: t.TempDir(), MinFree: 1 << 62})
	if a := e.post("text/plain", "x"); a.status != http.StatusInsufficientStorage || a.problem(t).Code != "gateway.full" {
		t.Errorf("%d: %s", a.status, a.body)
	}
	roomy := newEnv(t, gateway.Config{DataDir: t.TempDir(), MinFree: 1})
	if a := roomy.post("text/plain", "x"); a.status != http.StatusAccepted {
		t.Errorf("%d: %s", a.status, a.body)
	}
}

// TestWhatCannotBePublishedIsRemoved lets the stream fill up between the check and the
// event.
func TestWhatCannotBePublishedIsRemoved(t *testing.T) {
	e := newEnv(t, gateway.Config{})
	a := e.do(e.request("POST", "/documents", "text/plain", io.MultiReader(strings.NewReader("x"), readerFunc(func([]byte) (int, error) {
		s, err := e.conn.JetStream().Stream(t.Context(), events.StreamDocs)
		if err != nil {
			return 0, err
		}
		cfg := s.CachedInfo().Config
		cfg.MaxBytes = 1
		if _, err := e.conn.JetStream().UpdateStream(t.Context(), cfg); err != nil {
			return 0, err
		}
		return 0, io.EOF
	}))))
	if a.status != http.StatusInsufficientStorage || a.problem(t).Code != "gateway.full" {
		t.Errorf("%d: %s", a.status, a.body)
	}
	e.nothingLeft()
	b, err := e.conn.JetStream().ObjectStore(t.Context(), events.BucketOriginals)
	if err != nil {
		t.Fatal(err)
	}
	if list, err := b.List(t.Context()); !errors.Is(err, jetstream.ErrNoObjectsFound) {
		t.Errorf("objects left: %v %v", list, err)
	}
}

func TestWithoutABusEverythingSaysSoAtOnce(t *testing.T) {
	e := newEnv(t, gateway.Config{})
	e.srv.Stop()
	for e.conn.Healthy() == nil {
		runtime.Gosched()
	}
	began := time.Now()
	for _, path := range []string{"/jobs", "/jobs/x", "/jobs/x?wait=30s", "/jobs/x/events", "/events", "/jobs/x/artifacts/text", "/jobs/x/artifacts/chunks", "/search?q=x"} {
		if a := e.get(path); a.status != http.StatusServiceUnavailable || a.problem(t).Code != "gateway.unavailable" {
			t.Errorf("%s: %d %s", path, a.status, a.body)
		}
	}
	if a := e.post("text/plain", "x"); a.status != http.StatusServiceUnavailable || a.problem(t).Code != "gateway.unavailable" {
		t.Errorf("%d: %s", a.status, a.body)
	}
	if a := e.do(e.request("DELETE", "/documents/x", "", nil)); a.status != http.StatusServiceUnavailable {
		t.Errorf("%d: %s", a.status, a.body)
	}
	if a := e.get("/readyz"); a.status != http.StatusServiceUnavailable || !strings.Contains(a.body, `"not_ready"`) {
		t.Errorf("%d: %s", a.status, a.body)
	}
	if a := e.get("/healthz"); a.status != http.StatusOK {
		t.Errorf("%d: %s", a.status, a.body)
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("it took %v", took)
	}
}

func TestABusThatGoesDuringAnUpload(t *testing.T) {
	e := newEnv(t, gateway.Config{UploadIdle: time.Second})
	sent, stopped := 0, time.Time{}
	a := e.do(e.request("POST", "/documents", "application/pdf", readerFunc(func(p []byte) (int, error) {
		if sent += len(p); sent > 2<<20 && stopped.IsZero() {
			e.srv.Stop()
			stopped = time.Now()
		}
		return len(p), nil
	})))
	if a.status != http.StatusServiceUnavailable || a.problem(t).Code != "gateway.unavailable" {
		t.Errorf("%d: %s", a.status, a.body)
	}
	if took := time.Since(stopped); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
}

// FuzzSubmit hands in anything in any form: never a fault of ours, and what was not
// accepted leaves nothing. The bus in the background makes coverage vary: fuzz with
// -fuzzminimizetime=1x.
func FuzzSubmit(f *testing.F) {
	ct, body := form(f, [2]string{"file", "@a.txt:hello"}, [2]string{"metadata", `{"a":1}`})
	f.Add(ct, body, "")
	f.Add("multipart/form-data; boundary=b", "--b\r\nContent-Disposition: form-data; name=file\r\n\r\nx\r\n--b--", "")
	f.Add("application/json", `{"text":"\ud800","metadata":{"a":{"b":[null]}}}`, "name=%00&bulk=true")
	f.Add("text/plain; charset=\"", "x", "document_id=a&language=de")
	f.Add("application/json", `{"text":"a","name":"`+strings.Repeat("é", 300)+`"}`, "metadata={}")
	shared := newEnv(f, gateway.Config{MaxUpload: 1 << 16})
	accepted := 0
	f.Fuzz(func(t *testing.T, contentType, body, query string) {
		if strings.ContainsAny(contentType, "\r\n\x00") {
			return
		}
		e := *shared
		e.t = t
		r := e.request("POST", "/documents", "", strings.NewReader(body))
		r.URL.RawQuery = query
		r.Header["Content-Type"] = []string{contentType}
		w := newRecorder()
		e.gw.Handler().ServeHTTP(w, serverSide(r))
		switch a := w.answer(); {
		case a.status == http.StatusAccepted:
			accepted++
			var got gateway.Accepted
			if err := json.Unmarshal([]byte(a.body), &got); err != nil {
				t.Fatal(err)
			}
			stored := e.stored(events.JobSubjects(got.JobID))
			if len(stored) != 1 || stored[0].Err != nil {
				t.Fatalf("accepted, but stored %+v", stored)
			}
		case a.status >= 400 && a.status < 500:
			a.problem(t)
		default:
			t.Errorf("%d: %s", a.status, a.body)
		}
		if _, last, err := e.conn.Bounds(t.Context()); err != nil || last != uint64(accepted) {
			t.Errorf("%d events, %d accepted: %v", last, accepted, err)
		}
	})
}
