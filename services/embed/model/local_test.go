//go:build cgo

package model

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/leafmill/leafmill/events"
	"github.com/leafmill/leafmill/internal/localmodel"
)

// openLocal opens the installed model, or skips where `make setup` has not run. Damaged
// files are no reason to skip.
func openLocal(t testing.TB, cores int) Model {
	t.Helper()
	dir := localmodel.Dir(os.Getenv("LEAFMILL_MODEL_DIR"))
	if _, err := os.Stat(localmodel.In(dir).Model.Path); os.IsNotExist(err) {
		t.Skip("the local model is not installed: run 'make setup'")
	}
	m, err := OpenLocal(dir, cores)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

type goldenText struct {
	Text      string    `json:"text"`
	IDs       []int64   `json:"ids"`
	MaxTokens int       `json:"max_tokens"`
	N         int       `json:"n_ids"`
	First     []float32 `json:"embedding_first8"`
}

func goldenTexts(t testing.TB) []goldenText {
	t.Helper()
	raw, err := os.ReadFile("../../../internal/tokenizer/testdata/golden.json")
	if err != nil {
		t.Fatal(err)
	}
	var golden struct{ Items []goldenText }
	if err := json.Unmarshal(raw, &golden); err != nil {
		t.Fatal(err)
	}
	if len(golden.Items) < 10 {
		t.Fatalf("%d golden texts", len(golden.Items))
	}
	return golden.Items
}

// TestLocalGolden: the vectors are those of the Python pipeline. All texts go in one call,
// on two goroutines: their order and their values must not mix.
func TestLocalGolden(t *testing.T) {
	m := openLocal(t, 2)
	golden := goldenTexts(t)
	var texts []string
	var want []goldenText
	tokens := 0
	for _, g := range golden {
		if g.N == 2 || g.N == g.MaxTokens { // empty, and one that the pipeline cut
			continue
		}
		texts, want, tokens = append(texts, g.Text), append(want, g), tokens+g.N
	}
	if len(texts) < 7 {
		t.Fatalf("only %d texts to compare", len(texts))
	}
	result, err := m.Embed(t.Context(), Passage, texts)
	if err != nil {
		t.Fatal(err)
	}
	if result.Tokens != tokens || len(result.Vectors) != len(texts) {
		t.Errorf("%d vectors, %d tokens; want %d, %d", len(result.Vectors), result.Tokens, len(texts), tokens)
	}
	for i, vector := range result.Vectors {
		if len(vector) != localDims || math.Abs(dot(vector, vector)-1) > 1e-5 {
			t.Errorf("%.20q: %d values of square length %v", texts[i], len(vector), dot(vector, vector))
			continue
		}
		for j, v := range want[i].First {
			if math.Abs(float64(v-vector[j])) > 2e-4 {
				t.Errorf("%.20q: value %d is %v, want %v", texts[i], j, vector[j], v)
			}
		}
	}
}

// TestLocalRefuses: nothing is computed of texts that the model cannot read whole.
func TestLocalRefuses(t *testing.T) {
	m := openLocal(t, 1)
	longest := strings.Repeat("leaf ", localPositions-2)
	if _, err := m.Embed(t.Context(), Passage, []string{longest}); err != nil {
		t.Errorf("the longest text: %v", err)
	}
	for name, tc := range map[string]struct {
		texts []string
		says  string
	}{
		"empty":         {[]string{""}, "empty"},
		"spaces":        {[]string{" \n\t"}, "empty"},
		"one too long":  {[]string{longest + "leaf"}, "too long"},
		"among others":  {[]string{"fine", "", "fine"}, "empty"},
		"much too long": {[]string{strings.Repeat("leaf ", 10000)}, "too long"},
	} {
		r, err := m.Embed(t.Context(), Passage, tc.texts)
		if events.ClassOf(err) != events.Invalid || !strings.Contains(err.Error(), tc.says) || r.Vectors != nil {
			t.Errorf("%s: %v, %d vectors", name, err, len(r.Vectors))
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := m.Embed(ctx, Passage, []string{"a"}); !errors.Is(err, context.Canceled) || events.ClassOf(err) != events.Timeout {
		t.Errorf("after the end of its context: %v", err)
	}
}

// TestLocalShared: two openings share the model, and closing one leaves the other.
// Concurrent callers get the same vectors as one.
func TestLocalShared(t *testing.T) {
	a, b := openLocal(t, 2), openLocal(t, 2)
	texts := []string{"a leaf", "a mill by the river, turned by water", "leaves"}
	want, err := a.Embed(t.Context(), Query, texts)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for _, m := range []Model{a, b} {
				got, err := m.Embed(t.Context(), Passage, texts)
				if err != nil {
					t.Error(err)
					return
				}
				for i := range texts {
					if d := dot(got.Vectors[i], want.Vectors[i]); d < 0.99999 {
						t.Errorf("%q: cosine %v to the first answer", texts[i], d)
					}
				}
			}
		})
	}
	wg.Wait()

	for range 2 { // closing twice is closing
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := a.Embed(t.Context(), Query, texts); events.ClassOf(err) != events.Unavailable {
		t.Errorf("after Close: %v", err)
	}
	if _, err := b.Embed(t.Context(), Query, texts); err != nil {
		t.Errorf("the other one, after Close: %v", err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if again, err := openLocal(t, 1).Embed(t.Context(), Query, texts[:1]); err != nil || dot(again.Vectors[0], want.Vectors[0]) < 0.99999 {
		t.Errorf("opened again after the last Close: %v", err)
	}
}

// TestLocalClose: Close waits for running calls, and no call crashes for it.
func TestLocalClose(t *testing.T) {
	m := openLocal(t, 2)
	var wg sync.WaitGroup
	started := make(chan struct{}, 4)
	for range 4 {
		wg.Go(func() {
			for first := true; ; first = false {
				_, err := m.Embed(t.Context(), Passage, []string{"one", "two", "three"})
				if first {
					started <- struct{}{}
				}
				if err != nil {
					if events.ClassOf(err) != events.Unavailable {
						t.Error(err)
					}
					return
				}
			}
		})
	}
	for range cap(started) {
		<-started
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	wg.Wait()
}

// TestLocalFiles: missing and damaged files say what to do, and a truncated library does
// not kill the process.
func TestLocalFiles(t *testing.T) {
	missing := t.TempDir()
	if _, err := OpenLocal(missing, 1); events.ClassOf(err) != events.MissingModel || !strings.Contains(err.Error(), "make setup") {
		t.Errorf("nothing installed: %v", err)
	}

	openLocal(t, 1)
	good := localmodel.In(localmodel.Dir(os.Getenv("LEAFMILL_MODEL_DIR")))
	for name, pick := range map[string]func(localmodel.Files) string{
		"model":     func(f localmodel.Files) string { return f.Model.Path },
		"tokenizer": func(f localmodel.Files) string { return f.Tokenizer.Path },
		"runtime":   func(f localmodel.Files) string { return f.Runtime.Path },
	} {
		dir := t.TempDir()
		files := localmodel.In(dir)
		for from, to := range map[string]string{good.Model.Path: files.Model.Path,
			good.Tokenizer.Path: files.Tokenizer.Path, good.Runtime.Path: files.Runtime.Path} {
			if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
				t.Fatal(err)
			}
			if to != pick(files) {
				if err := os.Symlink(from, to); err != nil {
					t.Fatal(err)
				}
				continue
			}
			data, err := os.ReadFile(from)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(to, data[:len(data)/2], 0o600); err != nil {
				t.Fatal(err)
			}
		}
		_, err := OpenLocal(dir, 1)
		if events.ClassOf(err) != events.MissingModel || !strings.Contains(err.Error(), pick(files)) {
			t.Errorf("half a %s: %v", name, err)
		}
	}
}

func TestPool(t *testing.T) {
	rows := make([]float32, 2*localDims)
	rows[0], rows[localDims+1] = 3, 4
	v, err := pool(rows)
	if err != nil || math.Abs(float64(v[0])-0.6) > 1e-6 || math.Abs(float64(v[1])-0.8) > 1e-6 {
		t.Errorf("%v, %v, %v", v[0], v[1], err)
	}
	rows[5] = float32(math.NaN())
	for name, rows := range map[string][]float32{"zero": make([]float32, localDims), "not a number": rows} {
		if _, err := pool(rows); err == nil {
			t.Errorf("%s has a direction", name)
		}
	}
}

// BenchmarkLocal: tokens a second, on two goroutines.
func BenchmarkLocal(b *testing.B) {
	for name, words := range map[string]int{"128": 126, "256": 254} {
		b.Run(name, func(b *testing.B) {
			m := openLocal(b, min(2, runtime.NumCPU()))
			texts := make([]string, localBatch)
			for i := range texts {
				texts[i] = strings.Repeat("leaf ", words)
			}
			tokens := 0
			for b.Loop() {
				r, err := m.Embed(b.Context(), Passage, texts)
				if err != nil {
					b.Fatal(err)
				}
				tokens += r.Tokens
			}
			b.ReportMetric(float64(tokens)/b.Elapsed().Seconds(), "tokens/s")
		})
	}
}
