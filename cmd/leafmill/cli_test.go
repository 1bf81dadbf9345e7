package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"

	"github.com/leafmill/leafmill/events"
	"github.com/leafmill/leafmill/internal/api"
	"github.com/leafmill/leafmill/internal/sandbox"
	"github.com/leafmill/leafmill/services/ocr/extract"
)

var update = flag.Bool("update", false, "rewrite golden files")

func TestMain(m *testing.M) {
	sandbox.Main(extract.Parsers())
	if os.Getenv("LEAFMILL_TEST_MAIN") != "" { // the test's binary is the program
		main()
	}
	os.Exit(m.Run())
}

// leafmill runs a command line as main does.
func leafmill(t *testing.T, environ []string, args ...string) (code int, out, errs string) {
	t.Helper()
	var o, e bytes.Buffer
	a := &app{out: &o, err: &e, environ: environ, version: "v1.2.3"}
	code = a.main(t.Context(), args)
	return code, o.String(), e.String()
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.MkdirAll("testdata", 0o750); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("%s differs; if that is wanted, run go test -update:\n%s", path, d)
	}
}

// Flags are a contract: the golden file holds the help of every command.
func TestHelp(t *testing.T) {
	var b strings.Builder
	var walk func(c *cobra.Command, path []string)
	walk = func(c *cobra.Command, path []string) {
		code, out, errs := leafmill(t, nil, append(slices.Clone(path), "--help")...)
		if code != exitOK || errs != "" {
			t.Errorf("%v --help: exit code %d, %s", path, code, errs)
		}
		fmt.Fprintf(&b, "$ leafmill %s\n%s\n", strings.Join(append(path, "--help"), " "), out)
		for _, sub := range c.Commands() {
			if sub.Name() != "help" && sub.Name() != "completion" {
				walk(sub, append(slices.Clone(path), sub.Name()))
			}
		}
	}
	walk((&app{}).root(), nil)
	golden(t, "help", b.String())
}

func TestCompletion(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish"} {
		if code, out, _ := leafmill(t, nil, "completion", shell); code != exitOK || !strings.Contains(out, "leafmill") {
			t.Errorf("%s: exit code %d, %d bytes", shell, code, len(out))
		}
	}
}

// Every command prints JSON but those that run services.
func TestEveryClientCommandHasJSON(t *testing.T) {
	for _, c := range (&app{}).root().Commands() {
		if c.HasSubCommands() {
			c = c.Commands()[0]
		}
		if name := c.Name(); name != "up" && name != "run" && c.Flags().Lookup("json") == nil {
			t.Errorf("%s has no --json", name)
		}
	}
}

func TestRoles(t *testing.T) {
	want := map[string]bool{"gateway": true, "status": true}
	for _, s := range events.Pipeline {
		want[s.Service] = true
	}
	got := map[string]bool{}
	for _, name := range roleNames() {
		got[name] = true
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("the roles are not the services of the pipeline:\n%s", d)
	}
}

func TestExitCodes(t *testing.T) {
	dead := "LEAFMILL_URL=http://" + freeAddr(t)
	refusing := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusNotFound)
		_, _ = io.WriteString(w, `{"code":"status.not_found","detail":"There is no such job."}`)
	}))
	defer refusing.Close()
	live := "LEAFMILL_URL=" + refusing.URL
	file := write(t, "a.txt", "hello")
	for _, tc := range []struct {
		env  string
		args []string
		code int
		errs string // what is told
	}{
		{"", []string{"version"}, exitOK, ""},
		{"", []string{"frobnicate"}, exitUsage, "unknown command"},
		{"", []string{"up", "--frobnicate"}, exitUsage, "unknown flag"},
		{"", []string{"job"}, exitUsage, "accepts 1 arg"},
		{"", []string{"run", "frobnicator"}, exitUsage, `there is no service "frobnicator"`},
		{"", []string{"up", "--sync", "never"}, exitUsage, "--sync"},
		{"", []string{"up", "--http", "0.0.0.0:0"}, exitUsage, "LEAFMILL_API_KEYS"},
		{"", []string{"up", "--http", "127.0.0.1:0", "--nats", "0.0.0.0:0"}, exitUsage, "LEAFMILL_NATS_USER"},
		{"", []string{"run", "gateway", "--http", "0.0.0.0:0"}, exitUsage, "--insecure"},
		{"LEAFMILL_GRACE=forever", []string{"config"}, exitUsage, "LEAFMILL_GRACE"},
		{"", []string{"ingest", "no-such-file"}, exitFailed, "no-such-file cannot be read"},
		{"", []string{"ingest", t.TempDir()}, exitUsage, "there are no files"},
		{"", []string{"ingest", file, file, "--document-id", "d"}, exitUsage, "--document-id names one document"},
		{dead, []string{"jobs"}, exitUnreachable, "cannot be reached"},
		{dead, []string{"search", "x"}, exitUnreachable, "cannot be reached"},
		{dead, []string{"ingest", file}, exitUnreachable, "cannot be reached"},
		{live, []string{"job", "j"}, exitRefused, "There is no such job. (status.not_found)"},
		{live, []string{"job", "j", "--events"}, exitRefused, "There is no such job."},
		{live, []string{"ingest", file}, exitRefused, ""},
		{"LEAFMILL_NATS=" + freeAddr(t), []string{"status", "rebuild"}, exitUnreachable, "does not answer"},
	} {
		t.Run(strings.Join(tc.args, " "), func(t *testing.T) {
			code, out, errs := leafmill(t, []string{tc.env}, tc.args...)
			if code != tc.code {
				t.Errorf("exit code %d, want %d\n%s%s", code, tc.code, out, errs)
			}
			if !strings.Contains(errs, tc.errs) || tc.errs == "" && errs != "" {
				t.Errorf("told %q, want %q", errs, tc.errs)
			}
		})
	}
}

func freeAddr(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	return ln.Addr().String()
}

func write(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestConfigCommand(t *testing.T) {
	file := write(t, "leafmill.yaml", "grace: 7s\nembed: {provider: none}\n")
	env := []string{"LEAFMILL_CONFIG=" + file, "LEAFMILL_OCR_WORKERS=3", "LEAFMILL_API_KEYS=0123456789abcdef", "LEAFMILL_OCR_WORKER=1"}
	code, out, errs := leafmill(t, env, "config", "--http", "127.0.0.1:9")
	if code != exitOK || !strings.Contains(errs, "did you mean LEAFMILL_OCR_WORKERS?") {
		t.Errorf("exit code %d, %s", code, errs)
	}
	golden(t, "config", out)
	code, out, _ = leafmill(t, env, "config", "--json")
	var got struct {
		File     string
		Settings []struct{ Name, Value, Origin string }
	}
	if err := json.Unmarshal([]byte(out), &got); err != nil || code != exitOK || got.File != file {
		t.Fatalf("exit code %d, %v, file %q", code, err, got.File)
	}
	for _, s := range got.Settings {
		if s.Name == "LEAFMILL_GRACE" && (s.Value != "7s" || s.Origin != "file") {
			t.Errorf("%+v", s)
		}
		if strings.Contains(s.Value, "0123456789abcdef") {
			t.Errorf("%s shows its secret", s.Name)
		}
	}
}

func TestSearchOutput(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(api.SearchAnswer{Query: "q", Mode: "keyword", Degraded: true, Results: []api.Hit{
			{Name: "report.pdf", Page: 3, Score: .876, Text: "The heat pump\nis guaranteed for ten years.", Highlights: [][2]int{{4, 13}}},
			{DocumentID: "d2", Page: 1, Score: .5, Text: strings.Repeat("word ", 200) + "\x1b[31mred\x1b[0m needle", Highlights: [][2]int{{1013, 1019}}},
		}})
	}))
	defer s.Close()
	code, out, errs := leafmill(t, []string{"LEAFMILL_URL=" + s.URL}, "search", "heat", "pump")
	if code != exitOK || errs != "" {
		t.Fatalf("exit code %d, %s", code, errs)
	}
	if strings.ContainsRune(out, '\x1b') {
		t.Error("a document's control characters reach the terminal")
	}
	golden(t, "search", out)
}

func TestHighlightsAreBold(t *testing.T) {
	h := api.Hit{Text: "ü one two three", Highlights: [][2]int{{2, 5}, {10, 15}}}
	if got, want := mark(passage(h, 100), "<", ">"), "ü <one> two <three>"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	for _, bad := range [][2]int{{-1, 3}, {5, 99}, {4, 2}, {3, 3}} { // of a server that is wrong
		h.Highlights = [][2]int{bad}
		if got := mark(passage(h, 100), "", ""); got != h.Text {
			t.Errorf("%v: %q", bad, got)
		}
	}
}

// fakeGateway takes documents and says how each of their jobs ended.
type fakeGateway struct {
	server *httptest.Server
	bulk   []string
	jobs   map[string]api.Job
}

func newFakeGateway(t *testing.T, ends map[string]string) *fakeGateway {
	t.Helper()
	g := &fakeGateway{jobs: map[string]api.Job{}}
	names := make(chan string, 1)
	names <- ""
	mux := http.NewServeMux()
	mux.HandleFunc("POST /documents", func(w http.ResponseWriter, r *http.Request) {
		_, head, err := r.FormFile("file")
		if err != nil {
			t.Error(err)
			return
		}
		<-names // one at a time
		defer func() { names <- "" }()
		if ends[head.Filename] == "refused" {
			w.WriteHeader(http.StatusUnsupportedMediaType)
			_, _ = io.WriteString(w, `{"code":"gateway.unsupported","detail":"No reader for this format."}`)
			return
		}
		g.bulk = append(g.bulk, r.FormValue("bulk"))
		id := "job-" + head.Filename[:1]
		j := api.Job{ID: id, Name: head.Filename, Status: ends[head.Filename], Artifacts: api.Artifacts{Pages: 2, Chunks: 5}}
		if j.Status == events.StatusFailed {
			j.Error = &events.Problem{Code: "ocr.encrypted", Message: "The PDF needs a password."}
		} else {
			j.Result = &api.Result{Mode: events.ModeFull}
		}
		g.jobs[id] = j
		w.WriteHeader(http.StatusAccepted)
		_ = json.NewEncoder(w).Encode(map[string]string{"job_id": id})
	})
	mux.HandleFunc("GET /jobs/{id}", func(w http.ResponseWriter, r *http.Request) {
		<-names
		defer func() { names <- "" }()
		_ = json.NewEncoder(w).Encode(g.jobs[r.PathValue("id")])
	})
	g.server = httptest.NewServer(mux)
	t.Cleanup(g.server.Close)
	return g
}

func TestIngest(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"a.txt", "b.pdf", "sub/c.md", ".hidden", ".git/config"} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ends := map[string]string{"a.txt": "succeeded", "b.pdf": "failed", "c.md": "succeeded_with_warnings"}
	g := newFakeGateway(t, ends)
	env := []string{"LEAFMILL_URL=" + g.server.URL}

	code, out, errs := leafmill(t, env, "ingest", dir, "--wait")
	if code != exitFailed || errs != "" {
		t.Errorf("exit code %d, %s", code, errs)
	}
	golden(t, "ingest", strings.ReplaceAll(out, dir, "DIR"))
	if d := cmp.Diff([]string{"true", "true", "true"}, g.bulk); d != "" {
		t.Errorf("several files are bulk:\n%s", d)
	}

	g.bulk = nil
	code, out, errs = leafmill(t, env, "ingest", filepath.Join(dir, "a.txt"), "--wait", "--json", "--progress", "lines")
	var got struct {
		Documents []struct {
			Job string `json:"job_id"`
		}
		OK, Failed int
	}
	if err := json.Unmarshal([]byte(out), &got); err != nil || code != exitOK || got.OK != 1 || got.Failed != 0 || got.Documents[0].Job != "job-a" {
		t.Errorf("exit code %d, %v: %s", code, err, out)
	}
	if d := cmp.Diff([]string{""}, g.bulk); d != "" {
		t.Errorf("one file is not bulk:\n%s", d)
	}
	if !strings.Contains(errs, "a.txt: handed in as job job-a\n") || !strings.Contains(errs, "a.txt: succeeded, 2 pages, 5 chunks, full_rag\n") {
		t.Errorf("told %q", errs)
	}

	ends["a.txt"] = "refused"
	if code, out, _ := leafmill(t, env, "ingest", filepath.Join(dir, "a.txt")); code != exitRefused || !strings.Contains(out, "No reader for this format. (gateway.unsupported)") {
		t.Errorf("exit code %d: %s", code, out)
	}
	if code, _, _ := leafmill(t, env, "ingest", dir); code != exitFailed {
		t.Errorf("exit code %d when one of several is refused", code)
	}
}

func TestIngestEndsWithItsContext(t *testing.T) {
	g := newFakeGateway(t, map[string]string{"a.txt": "running"})
	ctx, cancel := context.WithCancel(t.Context())
	var o, e bytes.Buffer
	a := &app{out: &o, err: &e, environ: []string{"LEAFMILL_URL=" + g.server.URL}}
	done := make(chan int)
	go func() { done <- a.main(ctx, []string{"ingest", write(t, "a.txt", "x"), "--wait"}) }()
	cancel()
	if code := <-done; code == exitOK {
		t.Error("an interrupted command succeeded")
	}
}

func TestDoctorSaysWhatIsMissing(t *testing.T) {
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = busy.Close() }()
	env := []string{"LEAFMILL_URL=http://" + freeAddr(t), "LEAFMILL_MODEL_DIR=" + t.TempDir(), "LEAFMILL_DATA=" + t.TempDir(),
		"LEAFMILL_OCR_LANGUAGES=eng+xyz", "LEAFMILL_HTTP=" + freeAddr(t), "LEAFMILL_NATS=" + freeAddr(t)}
	code, out, _ := leafmill(t, env, "doctor")
	if code != exitOK {
		t.Errorf("exit code %d though Leafmill would run:\n%s", code, out)
	}
	for _, want := range []string{"tesseract language xyz: ", "found by keywords only", "make setup", "no Leafmill answers", " is free"} {
		if !strings.Contains(out, want) {
			t.Errorf("not told: %s\n%s", want, out)
		}
	}
	code, out, _ = leafmill(t, append(env, "LEAFMILL_HTTP="+busy.Addr().String()), "doctor", "--json")
	var checks []check
	if err := json.Unmarshal([]byte(out), &checks); err != nil || code != exitFailed {
		t.Fatalf("exit code %d, %v", code, err)
	}
	i := slices.IndexFunc(checks, func(c check) bool { return c.Verdict == checkBroken })
	if i < 0 || checks[i].What != "http address" || checks[i].Fix == "" {
		t.Errorf("%+v", checks)
	}
}

func TestDataFolder(t *testing.T) {
	dir := t.TempDir()
	first, err := ownFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ownFolder(dir); err == nil || !strings.Contains(err.Error(), "another leafmill uses the data folder "+dir) {
		t.Errorf("got %v", err)
	}
	if err := first.close(); err != nil {
		t.Fatal(err)
	}
	second, err := ownFolder(dir)
	if err != nil {
		t.Fatalf("the folder is not free again: %v", err)
	}
	if err := second.close(); err != nil {
		t.Error(err)
	}
}

func TestSlots(t *testing.T) {
	data := t.TempDir()
	a, releaseA, err := slot(data, "status")
	if err != nil {
		t.Fatal(err)
	}
	b, releaseB, err := slot(data, "status")
	if err != nil || a == b {
		t.Fatalf("two replicas share %s, %v", a, err)
	}
	if err := releaseA(); err != nil {
		t.Fatal(err)
	}
	c, releaseC, err := slot(data, "status")
	if err != nil || c != a {
		t.Errorf("a free slot is used again: %s, %v", c, err)
	}
	for _, release := range []func() error{releaseB, releaseC} {
		if err := release(); err != nil {
			t.Error(err)
		}
	}
}

func TestVersionsForMicroServices(t *testing.T) {
	for in, want := range map[string]string{"v1.2.3": "1.2.3", "v1.2.3-4-gabc1234-dirty": "1.2.3-4-gabc1234-dirty",
		"v0.0.0-dev+0ab1234": "0.0.0-dev+0ab1234", "85031a6": "0.0.0", "": "0.0.0"} {
		if got := semver(in); got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
}
