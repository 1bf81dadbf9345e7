package gateway_test

import (
	"encoding/json"
	"mime"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/leafmill/leafmill/services/gateway"
)

// spec is the API's description, used to judge every answer of every test.
type spec struct {
	doc      map[string]any
	mu       sync.Mutex // of the compiler
	compiler *jsonschema.Compiler
}

func readSpec(t testing.TB, g *gateway.Gateway) *spec {
	t.Helper()
	w := httptest.NewRecorder()
	r := httptest.NewRequest("GET", "http://localhost/openapi.json", nil)
	g.Handler().ServeHTTP(w, r)
	if w.Code != http.StatusOK {
		t.Fatalf("%d: %s", w.Code, w.Body)
	}
	doc, err := jsonschema.UnmarshalJSON(w.Body)
	if err != nil {
		t.Fatal(err)
	}
	s := &spec{doc: doc.(map[string]any), compiler: jsonschema.NewCompiler()}
	if err := s.compiler.AddResource("http://localhost/openapi.json", doc); err != nil {
		t.Fatal(err)
	}
	return s
}

// find is the description of a path: its template and its operations.
func (s *spec) find(path string) (string, map[string]any) {
	for template, ops := range s.doc["paths"].(map[string]any) {
		if fits(strings.Split(template, "/"), strings.Split(path, "/")) {
			return template, ops.(map[string]any)
		}
	}
	return "", nil
}

func fits(template, path []string) bool {
	if len(template) != len(path) {
		return false
	}
	for i, seg := range template {
		if seg != path[i] && (!strings.HasPrefix(seg, "{") || path[i] == "") {
			return false
		}
	}
	return true
}

// check says whether an answer is described: status, media type, and the body's schema.
func (s *spec) check(t testing.TB, r *http.Request, a answer) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	template, ops := s.find(r.URL.EscapedPath())
	method := strings.ToLower(strings.Replace(r.Method, "HEAD", "GET", 1))
	op, ok := ops[method].(map[string]any)
	if !ok {
		if a.status != 404 && a.status != 405 && a.status != 403 && a.status != 401 {
			t.Errorf("%s %s is not described and answers %d", r.Method, r.URL.Path, a.status)
		}
		return
	}
	response, ok := op["responses"].(map[string]any)[strconv.Itoa(a.status)].(map[string]any)
	if !ok {
		t.Errorf("%s %s: the status %d is not described: %s", r.Method, template, a.status, a.body)
		return
	}
	content, _ := response["content"].(map[string]any)
	if a.status == http.StatusNoContent || a.status == http.StatusNotModified || r.Method == "HEAD" {
		if a.body != "" {
			t.Errorf("%s %s: %d with a body", r.Method, template, a.status)
		}
		return
	}
	got, _, err := mime.ParseMediaType(a.header.Get("Content-Type"))
	if err != nil {
		t.Errorf("%s %s: %d: media type %q: %v", r.Method, template, a.status, a.header.Get("Content-Type"), err)
		return
	}
	for media := range content {
		if m, _, _ := mime.ParseMediaType(media); m != got {
			continue
		}
		if !strings.HasSuffix(got, "json") {
			return
		}
		esc := strings.NewReplacer("~", "~0", "/", "~1")
		at := "http://localhost/openapi.json#/paths/" + esc.Replace(template) + "/" + method + "/responses/" +
			strconv.Itoa(a.status) + "/content/" + esc.Replace(media) + "/schema"
		at = strings.NewReplacer("{", "%7B", "}", "%7D").Replace(at)
		sch, err := s.compiler.Compile(at)
		if err != nil {
			t.Fatalf("%s: %v", at, err)
		}
		v, err := jsonschema.UnmarshalJSON(strings.NewReader(a.body))
		if err != nil {
			t.Errorf("%s %s: %d: %v: %s", r.Method, template, a.status, err, a.body)
		} else if err := sch.Validate(v); err != nil {
			t.Errorf("%s %s: %d: not as described: %v", r.Method, template, a.status, err)
		}
		return
	}
	t.Errorf("%s %s: %d: the media type %s is not described", r.Method, template, a.status, got)
}

func TestDescriptionAndHandlersAgree(t *testing.T) {
	e := newEnv(t, gateway.Config{})
	described := map[string]bool{}
	for path, ops := range e.spec.doc["paths"].(map[string]any) {
		for method := range ops.(map[string]any) {
			described[strings.ToUpper(method)+" "+path] = true
		}
	}
	for _, pattern := range gateway.Patterns(e.gw) {
		key := strings.TrimSuffix(pattern, "{$}")
		if !described[key] {
			t.Errorf("%s is served but not described", pattern)
		}
		delete(described, key)
	}
	for key := range described {
		t.Errorf("%s is described but not served", key)
	}
	// Everything that the contract names is there.
	for _, path := range []string{"/documents", "/documents/{id}", "/jobs", "/jobs/{id}", "/jobs/{id}/events", "/events",
		"/jobs/{id}/artifacts/text", "/jobs/{id}/artifacts/chunks", "/search", "/healthz", "/readyz", "/metrics", "/openapi.json", "/"} {
		if _, ok := e.spec.doc["paths"].(map[string]any)[path]; !ok {
			t.Errorf("%s is missing", path)
		}
	}
	if v := e.spec.doc["openapi"]; v != "3.1.0" {
		t.Errorf("openapi %v", v)
	}
	ids := map[string]bool{}
	for _, ops := range e.spec.doc["paths"].(map[string]any) {
		for _, op := range ops.(map[string]any) {
			id := op.(map[string]any)["operationId"].(string)
			if ids[id] {
				t.Errorf("two operations %s", id)
			}
			ids[id] = true
		}
	}
	// Every schema of the description is one.
	for name := range e.spec.doc["components"].(map[string]any)["schemas"].(map[string]any) {
		if _, err := e.spec.compiler.Compile("http://localhost/openapi.json#/components/schemas/" + name); err != nil {
			t.Errorf("schema %s: %v", name, err)
		}
	}
	if raw, err := json.Marshal(e.spec.doc); err != nil || strings.Contains(string(raw), "ErrorModel") {
		t.Errorf("huma's own error type is described: %v", err)
	}
}

func TestUnknownPathsAndMethods(t *testing.T) {
	e := newEnv(t, gateway.Config{})
	for _, path := range []string{"/nothing", "/jobs/", "/jobs/a/b", "/documents/", "/jobs/x/artifacts/other", "/openapi.yaml"} {
		if a := e.get(path); a.status != 404 || a.problem(t).Code != "gateway.not_found" {
			t.Errorf("GET %s: %d %s", path, a.status, a.body)
		}
	}
	for target, allow := range map[string]string{
		"PUT /documents": "POST", "GET /documents": "POST", "POST /jobs/x": "GET, HEAD", "POST /search": "GET, HEAD",
		"GET /documents/x": "DELETE", "PATCH /jobs/x/events": "GET, HEAD", "OPTIONS /healthz": "GET, HEAD",
	} {
		method, path, _ := strings.Cut(target, " ")
		a := e.do(e.request(method, path, "", nil))
		if a.status != 405 || a.header.Get("Allow") != allow || a.problem(t).Code != "gateway.method_not_allowed" {
			t.Errorf("%s: %d, Allow %q: %s", target, a.status, a.header.Get("Allow"), a.body)
		}
	}
}
