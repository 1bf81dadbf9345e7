package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/leafmill/leafmill/internal/api"
	"github.com/leafmill/leafmill/internal/localmodel"
	"github.com/leafmill/leafmill/services/embed/model"
)

// program is a real `leafmill up` in a process of its own.
type program struct {
	b   *testing.B
	pid int
	url string
}

func up(b *testing.B, env ...string) *program {
	b.Helper()
	dir := b.TempDir()
	bin := filepath.Join(dir, "leafmill")
	if out, err := exec.Command("go", "build", "-o", bin, "../cmd/leafmill").CombinedOutput(); err != nil {
		b.Fatalf("go build: %v\n%s", err, out)
	}
	data := filepath.Join(dir, "data")
	cmd := exec.Command(bin, "up", "--data", data, "--http", "127.0.0.1:0", "--nats", "127.0.0.1:0", "--log-level", "warn")
	cmd.Env = append(os.Environ(), env...)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait()
	})
	p := &program{b: b, pid: cmd.Process.Pid}
	p.poll(func() bool {
		addr, err := os.ReadFile(filepath.Join(data, "http.addr"))
		if err != nil {
			return false
		}
		p.url = "http://" + strings.TrimSpace(string(addr))
		resp, err := http.Get(p.url + "/readyz")
		if err != nil {
			return false
		}
		_ = resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
	return p
}

func (p *program) poll(f func() bool) {
	p.b.Helper()
	ctx, cancel := context.WithTimeout(p.b.Context(), 20*time.Minute)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !f() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			p.b.Fatal("waited too long")
		}
	}
}

func (p *program) submit(name, contentType string, data []byte) (job string) {
	p.b.Helper()
	resp, err := http.Post(p.url+"/documents?name="+name, contentType, bytes.NewReader(data))
	if err != nil {
		p.b.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	var a struct {
		Job string `json:"job_id"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&a); err != nil || resp.StatusCode != http.StatusAccepted {
		p.b.Fatalf("submit: %s %v", resp.Status, err)
	}
	return a.Job
}

func (p *program) get(path string, v any) bool {
	resp, err := http.Get(p.url + path)
	if err != nil {
		return false
	}
	defer func() { _ = resp.Body.Close() }()
	return resp.StatusCode == http.StatusOK && json.NewDecoder(resp.Body).Decode(v) == nil
}

// finish waits for a job and fails unless it succeeded whole.
func (p *program) finish(id string) (j api.Job) {
	p.b.Helper()
	p.poll(func() bool { return p.get("/jobs/"+id+"?wait=5s", &j) && j.Terminal() })
	if j.Status != "succeeded" {
		p.b.Fatalf("job %s is %s: %+v %+v", id, j.Status, j.Error, j.Warnings)
	}
	return j
}

// rss is the process's resident memory in MB, now and at its peak.
func (p *program) rss() (now, peak float64) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid))
	if err != nil {
		p.b.Fatal(err)
	}
	field := func(name string) float64 {
		_, rest, _ := strings.Cut(string(data), name+":")
		kb, _ := strconv.ParseFloat(strings.Fields(rest)[0], 64)
		return kb / 1024
	}
	return field("VmRSS"), field("VmHWM")
}

// image is one gray scanned page at 200 dpi, from the samples.
func image(b *testing.B) []byte {
	b.Helper()
	out := filepath.Join(b.TempDir(), "page")
	if msg, err := exec.Command("pdfimages", "-j", "-l", "1", "../samples/scan.pdf", out).CombinedOutput(); err != nil {
		b.Fatalf("pdfimages: %v %s", err, msg)
	}
	data, err := os.ReadFile(out + "-000.jpg")
	if err != nil {
		b.Fatal(err)
	}
	return data
}

// BenchmarkScans reads 20 scanned pages through the whole program, and by two bare
// processes of pdftoppm and tesseract.
func BenchmarkScans(b *testing.B) {
	const pages = 20
	doc := scanPDF(image(b), pages)
	file := filepath.Join(b.TempDir(), "scan.pdf")
	if err := os.WriteFile(file, doc, 0o600); err != nil {
		b.Fatal(err)
	}
	p := up(b)
	for range b.N {
		limit := bareOCR(b, file, pages) / 2
		began := time.Now()
		p.finish(p.submit("scan.pdf", "application/pdf", doc))
		ours := time.Since(began)
		limit += bareOCR(b, file, pages) / 2 // before and after: the machine's speed drifts
		b.ReportMetric(pages/limit.Seconds(), "bare-pages/s")
		b.ReportMetric(pages/ours.Seconds(), "pages/s")
		b.ReportMetric(limit.Seconds()/ours.Seconds(), "ratio")
	}
}

// bareOCR is how long two bare processes need for the pages.
func bareOCR(b *testing.B, file string, pages int) time.Duration {
	b.Helper()
	began := time.Now()
	script := fmt.Sprintf(`seq %d | xargs -P2 -I{} sh -c 'pdftoppm -r 200 -gray -f {} -l {} %s | OMP_THREAD_LIMIT=1 tesseract - - -l eng+deu+spa --psm 3 >/dev/null 2>&1'`, pages, file)
	if out, err := exec.Command("bash", "-c", script).CombinedOutput(); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	return time.Since(began)
}

// BenchmarkEmbedding compares the tokens a second of the pipeline with the model alone on
// the same chunks.
func BenchmarkEmbedding(b *testing.B) {
	p := up(b)
	for i := range b.N {
		doc := textPDF(200, uint64(i))
		began := time.Now()
		j := p.finish(p.submit("text.pdf", "application/pdf", doc))
		ours := float64(j.Usage["embed"].Tokens) / time.Since(began).Seconds()
		var a api.ArtifactChunks
		if !p.get("/jobs/"+j.ID+"/artifacts/chunks", &a) {
			b.Fatal("no chunks")
		}
		texts := make([]string, len(a.Chunks))
		for i, c := range a.Chunks {
			texts[i] = c.Text
		}
		alone := modelAlone(b, texts)
		b.ReportMetric(alone, "model-tokens/s")
		b.ReportMetric(ours, "tokens/s")
		b.ReportMetric(ours/alone, "ratio")
	}
}

func modelAlone(b *testing.B, texts []string) float64 {
	b.Helper()
	m, err := model.OpenLocal(localmodel.Dir(""), 2)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = m.Close() }()
	began := time.Now()
	res, err := m.Embed(b.Context(), model.Passage, texts)
	if err != nil {
		b.Fatal(err)
	}
	return float64(res.Tokens) / time.Since(began).Seconds()
}

// BenchmarkNote is submit-to-searchable of a note of one page, fsync always, on an idle
// program, and while a 3,000-page PDF is embedded and a 200-page scan recognised. The
// memory of the program is reported beside: idle, and its peak under that load.
func BenchmarkNote(b *testing.B) {
	p := up(b)
	idleRSS, _ := p.rss()
	b.ReportMetric(idleRSS, "idle-MB")
	notes := 40
	big, scan := textPDF(3000, 7), scanPDF(image(b), 200)
	for n := range b.N {
		idle := p.notes(notes, fmt.Sprint("idle", n))
		p.submit("big.pdf", "application/pdf", big)
		p.submit("big-scan.pdf", "application/pdf", scan)
		busy := p.notes(notes, fmt.Sprint("busy", n))
		_, peak := p.rss()
		b.ReportMetric(idle[notes/2], "idle-p50-s")
		b.ReportMetric(idle[notes*95/100], "idle-p95-s")
		b.ReportMetric(idle[notes-1], "idle-max-s")
		b.ReportMetric(busy[notes/2], "busy-p50-s")
		b.ReportMetric(busy[notes*95/100], "busy-p95-s")
		b.ReportMetric(peak, "peak-MB")
	}
}

// notes hands a note in every second and returns the sorted times until a search found it.
func (p *program) notes(n int, prefix string) []float64 {
	p.b.Helper()
	took := make([]float64, n)
	done := make(chan struct{})
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for i := range n {
		<-tick.C
		go func() {
			defer func() { done <- struct{}{} }()
			word := fmt.Sprintf("%sword%dx", prefix, i)
			began := time.Now()
			p.submit(word+".txt", "text/plain", []byte("A note about the "+word+" and nothing else. "+newVocabulary(uint64(i)).words(250)))
			p.poll(func() bool {
				var a api.SearchAnswer
				return p.get("/search?mode=keyword&k=1&q="+word, &a) && len(a.Results) == 1 && a.Results[0].Name == word+".txt"
			})
			took[i] = time.Since(began).Seconds()
		}()
	}
	for range n {
		<-done
	}
	slices.Sort(took)
	return took
}
