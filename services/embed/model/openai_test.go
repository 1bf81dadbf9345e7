package model

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/leafmill/leafmill/events"
	"github.com/leafmill/leafmill/internal/guard"
)

const secretKey = "sk-very-secret-key"

func newOpenAI(t testing.TB, handler http.Handler, change ...func(*OpenAIConfig)) *OpenAI {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	cfg := OpenAIConfig{BaseURL: server.URL + "/v1", APIKey: secretKey, Model: "m"}
	for _, f := range change {
		f(&cfg)
	}
	o, err := NewOpenAI(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = o.Close() })
	return o
}

// saying answers every call alike.
func saying(status int, body string, header ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		for i := 0; i < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

const two = `{"data":[{"index":1,"embedding":[0,2,0]},{"index":0,"embedding":[1e0,-0.5,0]}],"usage":{"prompt_tokens":7,"total_tokens":9}}`

// TestOpenAICall: what is sent, and that vectors come in the order of the texts.
func TestOpenAICall(t *testing.T) {
	var sent string
	o := newOpenAI(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		sent = strings.Join([]string{r.Method, r.URL.Path, r.Header.Get("Authorization"), r.Header.Get("Content-Type"), string(body)}, " ")
		_, _ = io.WriteString(w, two)
	}), func(c *OpenAIConfig) { c.QueryPrefix, c.PassagePrefix = "query: ", "passage: " })
	if o.Space() != "" || o.Name() != "m" || o.Batch() != openAIBatch {
		t.Errorf("before the first call: space %q, name %q, batch %d", o.Space(), o.Name(), o.Batch())
	}
	for kind, prefix := range map[Kind]string{Query: "query: ", Passage: "passage: "} {
		got, err := o.Embed(t.Context(), kind, []string{"a", "b"})
		if err != nil {
			t.Fatal(err)
		}
		want := Result{Vectors: [][]float32{{1, -0.5, 0}, {0, 2, 0}}, Tokens: 7}
		if d := cmp.Diff(want, got); d != "" {
			t.Error(d)
		}
		wantSent := fmt.Sprintf(`POST /v1/embeddings Bearer %s application/json {"model":"m","input":["%sa","%sb"],"encoding_format":"float"}`, secretKey, prefix, prefix)
		if sent != wantSent {
			t.Errorf("sent %s\nwant %s", sent, wantSent)
		}
	}
	prefixed := o.Space()
	if !strings.HasPrefix(prefixed, "openai/m/3/") {
		t.Errorf("space %q", prefixed)
	}
	plain := newOpenAI(t, saying(200, two))
	if _, err := plain.Embed(t.Context(), Query, []string{"a", "b"}); err != nil || plain.Space() != "openai/m/3" {
		t.Errorf("space %q, %v", plain.Space(), err)
	}
}

// TestOpenAIMisbehaves: every answer that is not the vectors asked for is a failure of the
// right class that says what to do, and never shows the key.
func TestOpenAIMisbehaves(t *testing.T) {
	data := func(items ...string) string { return `{"data":[` + strings.Join(items, ",") + `]}` }
	const first, second = `{"index":0,"embedding":[1,2]}`, `{"index":1,"embedding":[3,4]}`
	for name, tc := range map[string]struct {
		handler http.HandlerFunc
		class   events.Class
		says    string
		retry   time.Duration
	}{
		"no JSON":               {saying(200, "<html>"), events.Malformed, "LEAFMILL_EMBED_BASE_URL", 0},
		"nothing":               {saying(200, ""), events.Malformed, "", 0},
		"half":                  {saying(200, data(first, second)[:30]), events.Malformed, "", 0},
		"more behind":           {saying(200, data(first, second)+"x"), events.Malformed, "", 0},
		"an error with 200":     {saying(200, `{"error":{"message":"x"}}`), events.Malformed, "0 vectors", 0},
		"null":                  {saying(200, `null`), events.Malformed, "", 0},
		"too few":               {saying(200, data(first)), events.Malformed, "1 vectors for 2", 0},
		"too many":              {saying(200, data(first, second, second)), events.Malformed, "3 vectors for 2", 0},
		"an index twice":        {saying(200, data(first, first)), events.Malformed, "twice", 0},
		"an index too high":     {saying(200, data(first, `{"index":2,"embedding":[3,4]}`)), events.Malformed, "index 2", 0},
		"an index below 0":      {saying(200, data(first, `{"index":-1,"embedding":[3,4]}`)), events.Malformed, "index -1", 0},
		"a broken index":        {saying(200, data(first, `{"index":1.5,"embedding":[3,4]}`)), events.Malformed, "", 0},
		"no index":              {saying(200, data(first, `{"embedding":[3,4]}`)), events.Malformed, "no index", 0},
		"an empty vector":       {saying(200, data(first, `{"index":1,"embedding":[]}`)), events.Malformed, "0 values", 0},
		"no vector":             {saying(200, data(first, `{"index":1}`)), events.Malformed, "0 values", 0},
		"a null vector":         {saying(200, data(first, `{"index":1,"embedding":null}`)), events.Malformed, "0 values", 0},
		"two dimensions":        {saying(200, data(first, `{"index":1,"embedding":[3,4,5]}`)), events.Malformed, "2 and 3 values", 0},
		"a null value":          {saying(200, data(first, `{"index":1,"embedding":[3,null]}`)), events.Malformed, "no number: null", 0},
		"a text for a value":    {saying(200, data(first, `{"index":1,"embedding":[3,"4"]}`)), events.Malformed, "no number", 0},
		"NaN":                   {saying(200, data(first, `{"index":1,"embedding":[3,NaN]}`)), events.Malformed, "", 0},
		"a huge value":          {saying(200, data(first, `{"index":1,"embedding":[3,1e39]}`)), events.Malformed, "1e39", 0},
		"a zero vector":         {saying(200, data(first, `{"index":1,"embedding":[0,-0]}`)), events.Malformed, "zero", 0},
		"base64":                {saying(200, data(first, `{"index":1,"embedding":"AACAPwAAgD8="}`)), events.Malformed, "", 0},
		"an endless answer":     {endless, events.Malformed, "more than", 0},
		"wrong key":             {saying(401, `{"error":"`+secretKey+`"}`), events.Invalid, "LEAFMILL_EMBED_API_KEY", 0},
		"not allowed":           {saying(403, ""), events.Invalid, "LEAFMILL_EMBED_API_KEY", 0},
		"wrong model":           {saying(404, ""), events.Invalid, "LEAFMILL_EMBED_MODEL", 0},
		"bad request":           {saying(400, secretKey), events.Invalid, "400", 0},
		"time-out":              {saying(408, ""), events.Timeout, "", 0},
		"too often":             {saying(429, "", "Retry-After", "7"), events.RateLimited, "", 7 * time.Second},
		"too often, no wait":    {saying(429, ""), events.RateLimited, "", 0},
		"too often, odd wait":   {saying(429, "", "Retry-After", "soon"), events.RateLimited, "", 0},
		"too often, until past": {saying(429, "", "Retry-After", "Mon, 02 Jan 2006 15:04:05 GMT"), events.RateLimited, "", 0},
		"fault":                 {saying(500, ""), events.Unavailable, "", 0},
		"away":                  {saying(503, "", "Retry-After", "3"), events.Unavailable, "", 3 * time.Second},
		"gateway's time-out":    {saying(504, ""), events.Timeout, "", 0},
		"breaks off":            {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, events.Network, "", 0},
		"breaks off within":     {saying(200, "{", "Content-Length", "100"), events.Network, "", 0},
	} {
		t.Run(name, func(t *testing.T) {
			o := newOpenAI(t, tc.handler)
			got, err := o.Embed(t.Context(), Passage, []string{"a", "b"})
			if events.ClassOf(err) != tc.class || err == nil || !strings.Contains(err.Error(), tc.says) || got.Vectors != nil {
				t.Errorf("%v, %d vectors; want %s saying %q", err, len(got.Vectors), tc.class, tc.says)
			}
			if strings.Contains(fmt.Sprintf("%v %+v", err, err), secretKey) {
				t.Errorf("the key is in %v", err)
			}
			if wait, _ := guard.RetryAfterOf(err); wait != tc.retry {
				t.Errorf("asks to wait %s, want %s", wait, tc.retry)
			}
			if o.Space() != "" {
				t.Errorf("a failed call named the space %s", o.Space())
			}
		})
	}
}

// endless goes on as long as somebody reads.
func endless(w http.ResponseWriter, _ *http.Request) {
	chunk := []byte(strings.Repeat(" ", 64<<10))
	for {
		if _, err := w.Write(chunk); err != nil {
			return
		}
	}
}

// TestOpenAIRetryDate: Retry-After as a date.
func TestOpenAIRetryDate(t *testing.T) {
	at := time.Now().Add(time.Minute).UTC().Format(http.TimeFormat)
	_, err := newOpenAI(t, saying(429, "", "Retry-After", at)).Embed(t.Context(), Query, []string{"a"})
	if wait, ok := guard.RetryAfterOf(err); !ok || wait < 50*time.Second || wait > time.Minute {
		t.Errorf("asks to wait %s, %v: %v", wait, ok, err)
	}
}

// TestOpenAIRedirect: the key and the texts go nowhere else.
func TestOpenAIRedirect(t *testing.T) {
	var visits atomic.Int64
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { visits.Add(1) }))
	defer other.Close()
	for _, status := range []int{301, 302, 303, 307, 308} {
		_, err := newOpenAI(t, saying(status, "", "Location", other.URL)).Embed(t.Context(), Query, []string{"a"})
		if events.ClassOf(err) != events.Invalid || !strings.Contains(err.Error(), "LEAFMILL_EMBED_BASE_URL") {
			t.Errorf("%d: %v", status, err)
		}
	}
	if n := visits.Load(); n != 0 {
		t.Errorf("the other server had %d visits", n)
	}
}

// TestOpenAIDimension: the space never changes under a running program.
func TestOpenAIDimension(t *testing.T) {
	var calls atomic.Int64
	o := newOpenAI(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		vector := "[1,2,3]"
		if calls.Add(1) == 2 {
			vector = "[1,2]"
		}
		_, _ = fmt.Fprintf(w, `{"data":[{"index":0,"embedding":%s}]}`, vector)
	}))
	for call, class := range []events.Class{"", events.Malformed, ""} {
		_, err := o.Embed(t.Context(), Query, []string{"a"})
		if (err == nil) != (class == "") || err != nil && events.ClassOf(err) != class {
			t.Errorf("call %d: %v", call+1, err)
		}
		if o.Space() != "openai/m/3" {
			t.Errorf("call %d: space %s", call+1, o.Space())
		}
	}
}

// TestOpenAINetwork: an address that nobody answers at, and a context that ends.
func TestOpenAINetwork(t *testing.T) {
	server := httptest.NewServer(nil)
	server.Close()
	o, err := NewOpenAI(OpenAIConfig{BaseURL: strings.Replace(server.URL, "http://", "http://user:hidden@", 1), Model: "m"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := o.Embed(t.Context(), Query, []string{"a"}); events.ClassOf(err) != events.Network || strings.Contains(err.Error(), "hidden") {
		t.Errorf("nobody there: %v", err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	hanging := newOpenAI(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // else the server does not see the client go
		cancel()
		<-r.Context().Done()
	}))
	if _, err := hanging.Embed(ctx, Query, []string{"a"}); !errors.Is(err, context.Canceled) {
		t.Errorf("a context that ended: %v", err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), time.Nanosecond)
	defer cancel()
	if _, err := hanging.Embed(ctx, Query, []string{"a"}); events.ClassOf(err) != events.Timeout {
		t.Errorf("no time: %v", err)
	}
}

// TestOpenAIWithoutCall: what needs no call makes none.
func TestOpenAIWithoutCall(t *testing.T) {
	o := newOpenAI(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a call") }))
	if r, err := o.Embed(t.Context(), Query, nil); err != nil || len(r.Vectors) != 0 {
		t.Errorf("no texts: %v", err)
	}
	if _, err := o.Embed(t.Context(), Query, []string{"a", " \n"}); events.ClassOf(err) != events.Invalid {
		t.Errorf("an empty text: %v", err)
	}
	for _, cfg := range []OpenAIConfig{
		{BaseURL: "", Model: "m"},
		{BaseURL: "ftp://h/v1", Model: "m"},
		{BaseURL: "http:///v1", Model: "m"},
		{BaseURL: "http://h/v1?a=b", Model: "m"},
		{BaseURL: "http://h/v1"},
		{BaseURL: "http://h/v1", Model: "m", APIKey: secretKey + "\n"},
		{BaseURL: "http://h/v1", Model: "m", Batch: -1},
		{BaseURL: "http://h/v1", Model: "m", Batch: maxBatch + 1},
	} {
		if _, err := NewOpenAI(cfg); events.ClassOf(err) != events.Invalid || strings.Contains(err.Error(), secretKey) {
			t.Errorf("%+v: %v", cfg, err)
		}
	}
}

func TestUsage(t *testing.T) {
	for body, want := range map[string]int{
		`{"prompt_tokens":5,"total_tokens":6}`:      5,
		`{"total_tokens":6}`:                        6,
		`{"prompt_tokens":0,"total_tokens":6}`:      6,
		`{"prompt_tokens":-5}`:                      3, // estimated: 12 bytes
		`{"prompt_tokens":"many"}`:                  3,
		`{"prompt_tokens":1e300,"total_tokens":-1}`: 3,
		`null`: 3,
		`[]`:   3,
		`{"prompt_tokens":null,"total_tokens":null}`: 3,
	} {
		o := newOpenAI(t, saying(200, `{"data":[{"index":0,"embedding":[1]}],"usage":`+body+`}`))
		if r, err := o.Embed(t.Context(), Passage, []string{"twelve bytes"}); err != nil || r.Tokens != want {
			t.Errorf("%s: %d tokens, want %d, %v", body, r.Tokens, want, err)
		}
	}
}

// FuzzDecodeEmbeddings: whatever comes is an error or so many finite vectors of one
// dimension, and those are what the answer says.
func FuzzDecodeEmbeddings(f *testing.F) {
	f.Add([]byte(two), uint8(2))
	f.Add([]byte(`{"data":[{"index":0,"embedding":[1,null]}]}`), uint8(1))
	f.Add([]byte(`{"data":[{"index":0,"embedding":[1e38,1e39]}],"data":[]}`), uint8(0))
	f.Fuzz(func(t *testing.T, data []byte, texts uint8) {
		vectors, tokens, err := decodeEmbeddings(data, int(texts))
		if err != nil {
			if vectors != nil {
				t.Error("vectors and an error")
			}
			return
		}
		if len(vectors) != int(texts) || tokens < 0 {
			t.Fatalf("%d vectors for %d texts, %d tokens", len(vectors), texts, tokens)
		}
		type item struct {
			Index     int       `json:"index"`
			Embedding []float32 `json:"embedding"`
		}
		var again struct {
			Data []item `json:"data"`
		}
		for i, vector := range vectors {
			if len(vector) == 0 || len(vector) != len(vectors[0]) {
				t.Fatalf("vector %d has %d values, the first %d", i, len(vector), len(vectors[0]))
			}
			again.Data = append(again.Data, item{i, vector})
		}
		raw, err := json.Marshal(again) // fails for what is not finite
		if err != nil {
			t.Fatal(err)
		}
		back, _, err := decodeEmbeddings(raw, int(texts))
		if d := cmp.Diff(vectors, back); err != nil || d != "" {
			t.Fatalf("%v %s", err, d)
		}
	})
}

func dot(a, b []float32) (sum float64) {
	for i := range a {
		sum += float64(a[i]) * float64(b[i])
	}
	return sum
}
