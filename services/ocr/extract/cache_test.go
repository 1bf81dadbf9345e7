package extract

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestCacheForgetsTheLongestUnused(t *testing.T) {
	const mb = 1 << 20
	dir := t.TempDir()
	fill := func(dir string) error { return os.WriteFile(filepath.Join(dir, textFile), make([]byte, mb), 0o600) }
	key := func(i int) string { return fmt.Sprintf("%02x-%s", i, version) }
	long := time.Now().Add(-time.Hour)

	first, err := newCache(dir, 100*mb)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		if _, err := first.build(key(i), fill); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(first.path(key(i)), long, long.Add(time.Duration(i)*time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	unfinished := filepath.Join(dir, "new-crashed")
	if err := errors.Join(os.Mkdir(unfinished, 0o700), os.Chtimes(unfinished, long, long.Add(-time.Hour))); err != nil {
		t.Fatal(err)
	}

	second, err := newCache(dir, 8*mb) // another process, with a smaller limit
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := second.use(key(3)); !ok {
		t.Fatal("an entry of the first process is not found")
	}
	if _, err := second.build(key(99), fill); err != nil {
		t.Fatal(err)
	}
	left, _ := filepath.Glob(filepath.Join(dir, "??", "*"))
	if len(left) != 6 { // three quarters of the limit
		t.Errorf("%d entries are left", len(left))
	}
	for _, i := range []int{3, 19, 18, 17, 16, 99} {
		if _, ok := second.use(key(i)); !ok {
			t.Errorf("entry %d, used lately, is gone", i)
		}
	}
	if _, err := os.Stat(unfinished); !errors.Is(err, os.ErrNotExist) {
		t.Error("what a crashed process left is still there")
	}
}

func TestCacheEntryAppearsWholeOrNotAtAll(t *testing.T) {
	c, err := newCache(t.TempDir(), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	broken := errors.New("broken")
	if _, err := c.build("aa", func(string) error { return broken }); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
	if _, ok := c.use("aa"); ok {
		t.Error("half an entry is found")
	}
	for _, content := range []string{"first", "second"} { // two processes make the same
		dir, err := c.build("bb", func(dir string) error { return os.WriteFile(filepath.Join(dir, "f"), []byte(content), 0o600) })
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := os.ReadFile(filepath.Join(dir, "f")); string(got) != "first" {
			t.Errorf("got %q", got)
		}
	}
}
