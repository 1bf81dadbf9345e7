package localmodel

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/leafmill/leafmill/events"
)

// TestSetupAgrees: scripts/setup writes the files that this package looks for.
func TestSetupAgrees(t *testing.T) {
	raw, err := os.ReadFile("../../scripts/setup")
	if err != nil {
		t.Fatal(err)
	}
	_, amd64 := runtimeSHA("amd64")
	_, arm64 := runtimeSHA("arm64")
	for _, line := range []string{
		"model_name=" + Name,
		"model_sha=" + modelSHA,
		"tokenizer_sha=" + tokenizerSHA,
		"runtime_version=" + RuntimeVersion,
		"runtime_sha_x86_64=" + amd64,
		"runtime_sha_aarch64=" + arm64,
	} {
		if !strings.Contains(string(raw), "\n"+line+"\n") {
			t.Errorf("scripts/setup has no line %s", line)
		}
	}
	if err := In(Dir(os.Getenv("LEAFMILL_MODEL_DIR"))).Check(); err != nil {
		t.Error(err)
	}
}

func TestDir(t *testing.T) {
	t.Setenv("HOME", "/home/ann")
	t.Setenv("XDG_CACHE_HOME", "")
	for _, test := range []struct{ given, xdg, want string }{
		{"/models", "/cache", "/models"},
		{"", "/cache", "/cache/leafmill/models"},
		{"", "", "/home/ann/.cache/leafmill/models"},
	} {
		t.Setenv("XDG_CACHE_HOME", test.xdg)
		if got := Dir(test.given); got != test.want {
			t.Errorf("Dir(%q) with XDG_CACHE_HOME=%q is %q, not %q", test.given, test.xdg, got, test.want)
		}
	}
}

// TestCheck: a missing, a changed and an unreadable file, and a machine without a runtime, all say what to do.
func TestCheck(t *testing.T) {
	dir := t.TempDir()
	files := In(dir)
	damaged := filepath.Join(dir, "damaged")
	if err := os.WriteFile(damaged, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		err  error
		says string
	}{
		"nothing installed": {files.Check(), "make setup"},
		"damaged":           {File{damaged, modelSHA}.Check(), "make setup"},
		"a folder":          {File{dir, modelSHA}.Check(), "cannot be read"},
		"other machine":     {File{damaged, ""}.Check(), "LEAFMILL_EMBED_PROVIDER=openai"},
	} {
		if events.ClassOf(test.err) != events.MissingModel || !strings.Contains(test.err.Error(), test.says) {
			t.Errorf("%s: %v", name, test.err)
		}
	}
}
