package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/leafmill/leafmill/internal/api"
	"github.com/leafmill/leafmill/internal/bus"
)

// mill is the real program in processes of its own, over one data folder.
type mill struct {
	t    *testing.T
	bin  string
	data string
	env  []string
	url  string
}

func newMill(t *testing.T) *mill {
	t.Helper()
	m := &mill{t: t, bin: filepath.Join(t.TempDir(), "leafmill"), data: t.TempDir(),
		env: append(os.Environ(), "LEAFMILL_ACK_WAIT=2s", "LEAFMILL_SYNC=interval", "LEAFMILL_LOG_LEVEL=warn")}
	if out, err := exec.Command("go", "build", "-o", m.bin, ".").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return m
}

// process starts a command and returns how to kill it at once, as the kernel would.
func (m *mill) process(args ...string) (kill func()) {
	m.t.Helper()
	cmd := exec.Command(m.bin, args...)
	cmd.Env = m.env
	log := newOutput()
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	killed := false
	kill = func() {
		if !killed {
			killed = true
			_ = cmd.Process.Kill() // SIGKILL
			_ = cmd.Wait()
		}
	}
	m.t.Cleanup(func() {
		kill()
		if m.t.Failed() {
			m.t.Logf("leafmill %s:\n%s", strings.Join(args, " "), log)
		}
	})
	return kill
}

// up starts the whole program and waits until it serves.
func (m *mill) up() (kill func()) {
	m.t.Helper()
	_ = os.Remove(filepath.Join(m.data, httpFile))
	kill = m.process("up", "--data", m.data, "--http", "127.0.0.1:0", "--nats", "127.0.0.1:0")
	m.poll("the program serves", func() bool {
		addr, err := os.ReadFile(filepath.Join(m.data, httpFile))
		m.url = "http://" + strings.TrimSpace(string(addr))
		return err == nil && m.ready()
	})
	return kill
}

func (m *mill) ready() bool {
	resp, err := http.Get(m.url + "/readyz")
	if err != nil {
		return false
	}
	defer func() { _ = resp.Body.Close() }()
	return resp.StatusCode == http.StatusOK
}

// poll asks until f is true: what is waited for happens in another process.
func (m *mill) poll(what string, f func() bool) {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.t.Context(), 90*time.Second)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !f() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			m.t.Fatalf("waited too long until %s", what)
		}
	}
}

// submit hands a document in under its own id, as often as it takes to get a 202.
func (m *mill) submit(id, name, contentType string, body []byte) {
	m.t.Helper()
	m.poll(id+" is accepted", func() bool {
		resp, err := http.Post(m.url+"/documents?document_id="+id+"&name="+name, contentType, bytes.NewReader(body))
		if err != nil {
			return false
		}
		defer func() { _ = resp.Body.Close() }()
		return resp.StatusCode == http.StatusAccepted
	})
}

// jobs reads all views; nil when the server is not there.
func (m *mill) jobs() []api.Job {
	var all []api.Job
	for cursor := ""; ; {
		resp, err := http.Get(m.url + "/jobs?limit=200&cursor=" + cursor)
		if err != nil {
			return nil
		}
		var page api.JobsAnswer
		err = json.NewDecoder(resp.Body).Decode(&page)
		_ = resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusOK {
			return nil
		}
		all = append(all, page.Jobs...)
		if cursor = page.Next; cursor == "" {
			return all
		}
	}
}

func (m *mill) ended() (n int) {
	for _, j := range m.jobs() {
		if j.Terminal() {
			n++
		}
	}
	return n
}

// corpus is 200 documents: notes, a few PDFs with text, and some with scanned pages.
func corpus(t *testing.T) map[string][]byte {
	t.Helper()
	docs := map[string][]byte{}
	for i := range 192 {
		docs[fmt.Sprintf("note-%03d.txt", i)] = fmt.Appendf(nil, "Note %d of the tide mill.\n\nSluice %d was opened at %d past noon; the wheel made %d turns.\n", i, i%7, i%60, 1000+i)
	}
	for name, n := range map[string]int{"latex-4p.pdf": 6, "mixed.pdf": 2} {
		data, err := os.ReadFile(filepath.Join("..", "..", "services", "ocr", "extract", "testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		for i := range n {
			docs[fmt.Sprintf("%d-%s", i, name)] = data
		}
	}
	return docs
}

func (m *mill) submitAll(docs map[string][]byte) {
	for name, data := range docs {
		contentType := "text/plain"
		if strings.HasSuffix(name, ".pdf") {
			contentType = "application/pdf"
		}
		m.submit(name, name, contentType, data)
	}
}

// outcome is what must not depend on kills: document -> its chunks, indexed, and mode.
func (m *mill) outcome() map[string]string {
	m.t.Helper()
	out := map[string]string{}
	for _, j := range m.jobs() {
		if j.Status != "succeeded" && j.Status != "succeeded_with_warnings" || !j.Artifacts.Indexed {
			m.t.Errorf("%s is %s: %+v", j.DocumentID, j.Status, j.Error)
		}
		for _, w := range j.Warnings {
			if w.Code != "embed.missing_model" {
				m.t.Errorf("%s has the warning %s: %s", j.DocumentID, w.Code, w.Message)
			}
		}
		mode := ""
		if j.Result != nil {
			mode = j.Result.Mode
		}
		say := fmt.Sprintf("%d units, %d chunks, %s", j.Units.Total, j.Artifacts.Chunks, mode)
		if before, twice := out[j.DocumentID]; twice && before != say {
			m.t.Errorf("%s came out as %s and as %s", j.DocumentID, before, say)
		}
		out[j.DocumentID] = say
	}
	return out
}

// TestKill kills the whole program with -9 again and again while 200 documents are on
// their way: all of them arrive, with the chunks of a run without kills.
func TestKill(t *testing.T) {
	t.Parallel()
	docs := corpus(t)
	calm := newMill(t)
	stop := calm.up()
	calm.submitAll(docs)
	calm.poll("the calm run is over", func() bool { return calm.ended() >= len(docs) })
	want := calm.outcome()
	stop()

	m := newMill(t)
	kill := m.up()
	m.submitAll(docs)
	for _, enough := range []int{5, 60, 120, 180} {
		m.poll("some documents are done", func() bool { return m.ended() >= enough })
		kill()
		kill = m.up()
	}
	m.poll("all documents are done", func() bool { return m.ended() >= len(docs) })
	got := m.outcome()
	for name := range docs {
		if got[name] != want[name] || got[name] == "" {
			t.Errorf("%s: %q with kills, %q without", name, got[name], want[name])
		}
	}
}

// TestKillStages runs each stage in processes of its own and kills them one after the
// other, with a second replica joining and leaving: nothing is lost.
func TestKillStages(t *testing.T) {
	t.Parallel()
	docs := corpus(t)
	m := newMill(t)
	server, err := bus.StartServer(bus.ServerConfig{Dir: m.data, Addr: "127.0.0.1:0", SyncInterval: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Stop)
	addr := freeAddress(t)
	m.url = "http://" + addr
	run := func(folder string, services ...string) func() {
		return m.process(append(append([]string{"run"}, services...), "--nats", server.URL(), "--data", filepath.Join(m.data, folder), "--http", addr)...)
	}
	worker := func(folder string, services ...string) func() {
		return m.process(append(append([]string{"run"}, services...), "--nats", server.URL(), "--data", filepath.Join(m.data, folder))...)
	}
	// Workers before the bus's layout exists: they start in any order.
	stages := []string{"ocr", "chunk", "embed"}
	kills := map[string]func(){}
	for _, s := range stages {
		kills[s] = worker(s, s)
	}
	kills["index"] = worker("index", "index")
	worker("index-2", "index") // stands by: only one index is at work
	kills["status"] = worker("status", "status")
	run("gateway", "gateway")
	m.poll("the gateway serves", m.ready)
	m.submitAll(docs)
	second := map[string]func(){}
	for i, s := range []string{"ocr", "chunk", "embed", "index", "status"} {
		m.poll("some documents are done", func() bool { return m.ended() >= 10*(i+1) })
		if s != "index" {
			second[s] = worker(s+"-2", s)
		}
		kills[s]()
		kills[s] = worker(s, s)
	}
	for _, s := range []string{"ocr", "chunk", "embed", "status"} {
		second[s]() // leaves, as rudely
	}
	m.poll("all documents are done", func() bool { return m.ended() >= len(docs) })
	got := m.outcome()
	for name := range docs {
		if got[name] == "" {
			t.Errorf("%s is missing", name)
		}
	}
	var a api.SearchAnswer
	resp, err := http.Get(m.url + "/search?mode=keyword&k=300&q=sluice")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if err := json.NewDecoder(resp.Body).Decode(&a); err != nil || len(a.Results) != 192 {
		t.Errorf("%d notes are found, of 192 (%v)", len(a.Results), err)
	}
}

// freeAddress is a loopback address that nobody listens on.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}
