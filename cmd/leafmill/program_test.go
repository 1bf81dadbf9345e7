package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/leafmill/leafmill/internal/api"
	"github.com/leafmill/leafmill/internal/bus"
)

// patience of these tests with the program: far longer than anything takes.
const patience = 30 * time.Second

// output is what a running program writes; the test waits for it to say something.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
	more chan struct{} // closed and replaced at every write
}

func newOutput() *output { return &output{more: make(chan struct{})} }

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	close(o.more)
	o.more = make(chan struct{})
	return o.text.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// waitFor waits until the output has s.
func (o *output) waitFor(t *testing.T, s string) {
	t.Helper()
	timeout := time.After(patience)
	for {
		o.mu.Lock()
		found, more := strings.Contains(o.text.String(), s), o.more
		o.mu.Unlock()
		if found {
			return
		}
		select {
		case <-more:
		case <-timeout:
			t.Fatalf("the program never said %q:\n%s", s, o)
		}
	}
}

// program is a command running in this process.
type program struct {
	out, err *output
	stop     context.CancelFunc
	ended    chan int // its exit code
}

func start(t *testing.T, environ []string, args ...string) *program {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	p := &program{out: newOutput(), err: newOutput(), stop: stop, ended: make(chan int, 1)}
	a := &app{out: p.out, err: p.err, environ: environ, version: "v1.2.3"}
	go func() { p.ended <- a.main(ctx, args) }()
	t.Cleanup(func() {
		stop()
		if t.Failed() {
			t.Logf("leafmill %s:\n%s%s", strings.Join(args, " "), p.out, p.err)
		}
	})
	return p
}

// end stops the program and returns its exit code.
func (p *program) end(t *testing.T) int {
	t.Helper()
	p.stop()
	select {
	case code := <-p.ended:
		return code
	case <-time.After(patience):
		t.Fatal("the program does not stop")
		return -1
	}
}

// keywordsOnly keeps these tests from the model; services/embed tests that.
const keywordsOnly = "LEAFMILL_EMBED_PROVIDER=none"

// journey hands a document in and finds it again.
func journey(t *testing.T, env []string) {
	t.Helper()
	file := write(t, "pumps.md", "# Pumps\n\nThe heat pump is guaranteed for ten years.\n")
	if code, out, errs := leafmill(t, env, "ingest", file, "--wait"); code != exitOK {
		t.Fatalf("ingest: exit code %d\n%s%s", code, out, errs)
	}
	code, out, errs := leafmill(t, env, "search", "heat pump guarantee")
	if code != exitOK || !strings.Contains(out, "pumps.md, page 1") {
		t.Fatalf("search: exit code %d\n%s%s", code, out, errs)
	}
}

func TestUp(t *testing.T) {
	data := t.TempDir()
	env := []string{keywordsOnly, "LEAFMILL_SYNC=interval"}
	args := []string{"up", "--data", data, "--http", "127.0.0.1:0", "--nats", "127.0.0.1:0"}
	up := start(t, env, args...)
	up.out.waitFor(t, "leafmill search")
	if strings.Contains(up.out.String(), "not all services are ready") {
		t.Error("the greeting came before the services were ready")
	}
	addr, err := os.ReadFile(filepath.Join(data, httpFile))
	if err != nil {
		t.Fatal(err)
	}
	nats, err := os.ReadFile(filepath.Join(data, natsFile))
	if err != nil {
		t.Fatal(err)
	}
	env = append(env, "LEAFMILL_URL=http://"+strings.TrimSpace(string(addr)), "LEAFMILL_NATS="+strings.TrimSpace(string(nats)))
	journey(t, env)

	// What it did can be looked at.
	code, out, _ := leafmill(t, env, "jobs", "--json")
	var jobs api.JobsAnswer
	if err := json.Unmarshal([]byte(out), &jobs); err != nil || code != exitOK || len(jobs.Jobs) != 1 {
		t.Fatalf("exit code %d, %v: %s", code, err, out)
	}
	id := jobs.Jobs[0].ID
	if code, out, _ := leafmill(t, env, "job", id); code != exitOK || !strings.Contains(out, "pumps.md") {
		t.Errorf("exit code %d: %s", code, out)
	}
	code, out, _ = leafmill(t, env, "job", id, "--events")
	for _, event := range []string{"submitted", "extracted", "chunked", "degraded", "indexed", "completed"} {
		if code != exitOK || !strings.Contains(out, event) {
			t.Errorf("exit code %d, the story lacks %s:\n%s", code, event, out)
		}
	}
	if code, out, errs := leafmill(t, env, "status", "rebuild", "--json"); code != exitOK || !strings.Contains(out, `"jobs": 1`) {
		t.Errorf("rebuild: exit code %d: %s%s", code, out, errs)
	}
	if code, out, _ := leafmill(t, env, "doctor", "--data", data); !strings.Contains(out, "is ready") {
		t.Errorf("doctor: exit code %d: %s", code, out)
	}

	// Nobody else gets its folder.
	if code, _, errs := leafmill(t, env, args...); code != exitFailed || !strings.Contains(errs, "another leafmill uses the data folder") {
		t.Errorf("a second one: exit code %d: %s", code, errs)
	}
	if code := up.end(t); code != exitOK {
		t.Errorf("exit code %d after a stop", code)
	}
	if _, err := os.Stat(filepath.Join(data, httpFile)); err == nil {
		t.Error("the address of a stopped program is still told")
	}

	// Another start goes on where it ended.
	again := start(t, env[:2], args...)
	again.out.waitFor(t, "leafmill search")
	if addr, err = os.ReadFile(filepath.Join(data, httpFile)); err != nil {
		t.Fatal(err)
	}
	env[2] = "LEAFMILL_URL=http://" + strings.TrimSpace(string(addr))
	if code, out, errs := leafmill(t, env, "search", "guaranteed"); code != exitOK || !strings.Contains(out, "pumps.md, page 1") {
		t.Errorf("exit code %d: %s%s", code, out, errs)
	}
	if code := again.end(t); code != exitOK {
		t.Errorf("exit code %d after a stop", code)
	}
}

// The multi-process form: every service on its own connection to an external server, started
// in an order that is wrong, on one data folder, with two replicas where that is allowed.
func TestRunAgainstExternalServer(t *testing.T) {
	server, err := bus.StartServer(bus.ServerConfig{Dir: t.TempDir(), Addr: "127.0.0.1:0", SyncInterval: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Stop()
	env := []string{keywordsOnly, "LEAFMILL_NATS=" + server.URL(), "LEAFMILL_DATA=" + t.TempDir(), "LEAFMILL_SYNC=interval"}
	addr := freeAddr(t)
	var programs []*program
	for _, args := range [][]string{
		{"run", "gateway", "--http", addr}, {"run", "index"}, {"run", "embed", "chunk"}, {"run", "status"}, {"run", "ocr"},
		{"run", "status"}, {"run", "ocr", "chunk"},
	} {
		programs = append(programs, start(t, env, args...))
	}
	health := freeAddr(t)
	programs = append(programs, start(t, env, "run", "embed", "--http", health))
	client := append(env, "LEAFMILL_URL=http://"+addr)
	get(t, "http://"+addr+"/readyz")
	get(t, "http://"+health+"/readyz")
	if body := get(t, "http://"+health+"/metrics"); !strings.Contains(body, `leafmill_build_info{version="v1.2.3"} 1`) {
		t.Error("the metrics do not say the version")
	}
	journey(t, client)
	for _, p := range programs {
		if code := p.end(t); code != exitOK {
			t.Errorf("exit code %d after a stop", code)
		}
	}
}

// get asks until the answer is 200: the program is starting.
func get(t *testing.T, url string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	last := ""
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err == nil {
			body, _ := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return string(body)
			}
			last = string(body)
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("%s never answered 200: %v %s", url, err, last)
		}
	}
}

// One role that fails stops all, and the error is told.
func TestOneRoleFailsAllStop(t *testing.T) {
	data := t.TempDir()
	if err := os.WriteFile(filepath.Join(data, "index"), []byte("in the way"), 0o600); err != nil {
		t.Fatal(err)
	}
	up := start(t, []string{keywordsOnly, "LEAFMILL_SYNC=interval"}, "up", "--data", data, "--http", "127.0.0.1:0", "--nats", "127.0.0.1:0")
	select {
	case code := <-up.ended:
		if code != exitFailed || !strings.Contains(up.err.String(), "leafmill: index: ") {
			t.Errorf("exit code %d: %s", code, up.err)
		}
	case <-time.After(patience):
		t.Fatal("it went on without its index")
	}
}

func TestAddressInUse(t *testing.T) {
	server, err := bus.StartServer(bus.ServerConfig{Dir: t.TempDir(), Addr: "127.0.0.1:0", SyncInterval: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Stop()
	taken := strings.TrimPrefix(server.URL(), "nats://")
	code, _, errs := leafmill(t, nil, "up", "--data", t.TempDir(), "--http", taken, "--nats", "127.0.0.1:0")
	if code != exitFailed || !strings.Contains(errs, "is another leafmill running?") {
		t.Errorf("exit code %d: %s", code, errs)
	}
}

// The process: SIGTERM stops it well, and a signal reaches it through main.
func TestSignals(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	out := newOutput()
	cmd := exec.Command(self, "up", "--data", t.TempDir(), "--http", "127.0.0.1:0", "--nats", "127.0.0.1:0")
	cmd.Env = append(os.Environ(), "LEAFMILL_TEST_MAIN=1", keywordsOnly, "LEAFMILL_SYNC=interval")
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	out.waitFor(t, "leafmill search")
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("after SIGTERM: %v\n%s", err, out)
	}
	if strings.Contains(out.String(), "panic") {
		t.Error(out)
	}
}

// Nobody reads what it prints: it says nothing of it, and does not die of it either.
func TestClosedPipe(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	errs := newOutput()
	cmd := exec.Command(self, "config")
	cmd.Env = append(os.Environ(), "LEAFMILL_TEST_MAIN=1")
	cmd.Stdout, cmd.Stderr = w, errs
	err = cmd.Run()
	if cerr := w.Close(); cerr != nil {
		t.Error(cerr)
	}
	if e, ok := errors.AsType[*exec.ExitError](err); !ok || e.ExitCode() != exitFailed || errs.String() != "" {
		t.Errorf("%v, told %q", err, errs)
	}
}

// TestSameDocumentTwice: a document handed in again under its id is found once, and its
// chunks are those of before.
func TestSameDocumentTwice(t *testing.T) {
	data := t.TempDir()
	env := []string{keywordsOnly, "LEAFMILL_SYNC=interval"}
	up := start(t, env, "up", "--data", data, "--http", "127.0.0.1:0", "--nats", "127.0.0.1:0")
	up.out.waitFor(t, "leafmill search")
	addr, err := os.ReadFile(filepath.Join(data, httpFile))
	if err != nil {
		t.Fatal(err)
	}
	env = append(env, "LEAFMILL_URL=http://"+strings.TrimSpace(string(addr)))
	file := write(t, "sluice.md", "# Sluice\n\n"+strings.Repeat("The sluice of the mill is opened at high water. ", 60))
	var chunks []int
	for range 2 {
		if code, out, errs := leafmill(t, env, "ingest", file, "--document-id", "sluice", "--wait"); code != exitOK {
			t.Fatalf("ingest: exit code %d\n%s%s", code, out, errs)
		}
		code, out, errs := leafmill(t, env, "search", "sluice at high water", "-k", "50", "--json")
		var a api.SearchAnswer
		if err := json.Unmarshal([]byte(out), &a); code != exitOK || err != nil {
			t.Fatalf("search: exit code %d, %v\n%s%s", code, err, out, errs)
		}
		seen := map[[2]int]bool{}
		for _, h := range a.Results {
			if h.Start == nil || h.End == nil || h.DocumentID != "sluice" {
				t.Fatalf("hit %+v", h)
			}
			at := [2]int{*h.Start, *h.End}
			if seen[at] {
				t.Errorf("the passage at %v is found twice", at)
			}
			seen[at] = true
		}
		chunks = append(chunks, len(a.Results))
	}
	if chunks[0] < 2 || chunks[0] != chunks[1] {
		t.Errorf("%v passages", chunks)
	}
	if code := up.end(t); code != exitOK {
		t.Errorf("exit code %d", code)
	}
}
