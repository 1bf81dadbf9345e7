package embedded_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/leafmill/leafmill/services/index"
	"github.com/leafmill/leafmill/services/index/embedded"
)

const writerEnv = "LEAFMILL_TEST_INDEX_WRITER"

func TestMain(m *testing.M) {
	if dir := os.Getenv(writerEnv); dir != "" {
		from, err := strconv.Atoi(os.Args[len(os.Args)-1])
		if err == nil {
			err = writeForEver(dir, from)
		}
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	// Bleve's analysis workers belong to the library and live as long as the process.
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/blevesearch/bleve_index_api.AnalysisWorker"))
}

// writeForEver stores documents and prints the number of each that was acknowledged. Every
// third replaces itself by a second version, so that a kill also meets switches.
func writeForEver(dir string, from int) error {
	b, err := embedded.Open(context.Background(), embedded.Options{Dir: dir, Sync: embedded.SyncInterval})
	if err != nil {
		return err
	}
	var mu sync.Mutex
	next, failed := from, make(chan error)
	for range 8 {
		go func() {
			for {
				mu.Lock()
				i := next
				next++
				mu.Unlock()
				if err := store(b, i); err != nil {
					failed <- err
					return
				}
				mu.Lock()
				fmt.Println(i)
				mu.Unlock()
			}
		}()
	}
	return <-failed
}

func store(b *embedded.Backend, i int) error {
	ctx := context.Background()
	s := crashSegment(i, 1)
	if _, err := b.Upsert(ctx, s); err != nil || i%3 > 0 {
		return err
	}
	s = crashSegment(i, 2)
	if _, err := b.Upsert(ctx, s); err != nil {
		return err
	}
	return b.Complete(ctx, index.Completion{Job: s.Job, Collection: s.Collection, Document: s.Document,
		Version: s.Version, Run: s.Run, Succeeded: true, TotalUnits: 1})
}

func crashSegment(i int, version uint64) index.Segment {
	name := fmt.Sprintf("doc%d", i)
	text := fmt.Sprintf("alpha common number%d of version%d", i, version)
	return index.Segment{Job: name, Collection: "default", Document: name, Name: name, Version: version, Run: version,
		Space: modelSpace, TotalUnits: 1, Units: []index.Unit{{Number: 1, Page: 1, Length: len(text)}},
		Chunks: []index.Chunk{{ID: fmt.Sprintf("%s@%d/1.0", name, version), Unit: 1, Page: 1, End: len(text), Text: text, Vector: vectorOf(text)}}}
}

// TestKilled kills a writing process with -9 again and again. Nothing acknowledged may be
// lost, and the derived indexes must agree with SQLite after each start.
func TestKilled(t *testing.T) {
	dir := t.TempDir()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var acknowledged []int
	next := 0
	for round := range 4 {
		cmd := exec.Command(program, strconv.Itoa(next))
		cmd.Env = append(os.Environ(), writerEnv+"="+dir)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for n := 0; lines.Scan(); n++ {
			i, err := strconv.Atoi(lines.Text())
			if err != nil {
				t.Fatalf("the writer said %q", lines.Text())
			}
			acknowledged = append(acknowledged, i)
			next = max(next, i+1)
			if n == 60+round*25 {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		_ = cmd.Wait() // it was killed
		next += 16     // those in flight
		check(t, dir, acknowledged)
	}
}

// check opens the index and looks for every acknowledged document with both legs.
func check(t *testing.T, dir string, acknowledged []int) {
	t.Helper()
	b, err := embedded.Open(context.Background(), embedded.Options{Dir: dir, Sync: embedded.SyncInterval})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}()
	agree(t, b)
	for _, i := range acknowledged {
		version := uint64(1)
		if i%3 == 0 {
			version = 2
		}
		want := crashSegment(i, version).Chunks[0]
		a, err := b.Search(context.Background(), index.Query{Text: fmt.Sprintf("number%d", i), Vector: want.Vector, Space: modelSpace, K: 1,
			Filter: index.Filter{Document: fmt.Sprintf("doc%d", i)}})
		if err != nil {
			t.Fatal(err)
		}
		if len(a.Hits) != 1 || a.Hits[0].ChunkID != want.ID || a.Hits[0].Text != want.Text || a.Hits[0].Keyword == nil ||
			a.Hits[0].Vector == nil || *a.Hits[0].Vector < .999 {
			t.Fatalf("document %d: %+v", i, a.Hits)
		}
	}
}

func agree(t *testing.T, b *embedded.Backend) {
	t.Helper()
	sqlite, bleve, memory, sqliteVectors, memoryVectors, err := b.Agreement(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if sqlite != bleve || sqlite != memory || sqliteVectors != memoryVectors || sqlite == 0 {
		t.Fatalf("SQLite has %d chunks, Bleve %d, memory %d; SQLite has %d vectors, memory %d", sqlite, bleve, memory, sqliteVectors, memoryVectors)
	}
}

// TestKeywordIndexDamaged damages the derived index in every way a disk can.
func TestKeywordIndexDamaged(t *testing.T) {
	files := func(t *testing.T, dir, pattern string) []string {
		found, err := filepath.Glob(filepath.Join(dir, "keywords", pattern))
		if err != nil || len(found) == 0 {
			t.Fatalf("no %s: %v", pattern, err)
		}
		return found
	}
	rewrite := func(t *testing.T, name string, f func([]byte) []byte) {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, f(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	whole := t.TempDir()
	b, err := embedded.Open(context.Background(), embedded.Options{Dir: whole, Sync: embedded.SyncInterval})
	if err != nil {
		t.Fatal(err)
	}
	var all []int
	for i := range 20 {
		if err := store(b, i); err != nil {
			t.Fatal(err)
		}
		all = append(all, i)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	for name, damage := range map[string]func(t *testing.T, dir string){
		"none": func(*testing.T, string) {},
		"no folder": func(t *testing.T, dir string) {
			if err := os.RemoveAll(filepath.Join(dir, "keywords")); err != nil {
				t.Fatal(err)
			}
		},
		"a segment is gone": func(t *testing.T, dir string) {
			if err := os.Remove(files(t, dir, "store/*.zap")[0]); err != nil {
				t.Fatal(err)
			}
		},
		"a bit has flipped": func(t *testing.T, dir string) {
			rewrite(t, files(t, dir, "store/*.zap")[0], func(b []byte) []byte { b[len(b)/2] ^= 4; return b })
		},
		"a segment is cut": func(t *testing.T, dir string) {
			rewrite(t, files(t, dir, "store/*.zap")[0], func(b []byte) []byte { return b[:len(b)/3] })
		},
		"a segment is empty": func(t *testing.T, dir string) {
			rewrite(t, files(t, dir, "store/*.zap")[0], func([]byte) []byte { return nil })
		},
		"the root is cut": func(t *testing.T, dir string) {
			rewrite(t, files(t, dir, "store/root.bolt")[0], func(b []byte) []byte { return b[:100] })
		},
		"the root is nonsense": func(t *testing.T, dir string) {
			rewrite(t, files(t, dir, "store/root.bolt")[0], func(b []byte) []byte {
				for i := range b {
					b[i] = byte(i * 7)
				}
				return b
			})
		},
		"no meta": func(t *testing.T, dir string) {
			rewrite(t, files(t, dir, "index_meta.json")[0], func([]byte) []byte { return []byte("{") })
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			if err := os.CopyFS(dir, os.DirFS(whole)); err != nil {
				t.Fatal(err)
			}
			damage(t, dir)
			check(t, dir, all)
		})
	}
}
