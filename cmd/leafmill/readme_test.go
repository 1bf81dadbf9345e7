package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// between is the text of the README between two markers.
func between(t *testing.T, marker string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("..", "..", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(data), "<!-- "+marker+":begin -->")
	text, _, end := strings.Cut(rest, "<!-- "+marker+":end -->")
	if !ok || !end {
		t.Fatalf("the README has no %s markers", marker)
	}
	return text
}

// natsCLI is the real nats CLI, which scripts/natscli builds.
func natsCLI(t *testing.T) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(cache, "leafmill", "tools", "nats-v0.3.0", "nats")
	if _, err := os.Stat(bin); err != nil {
		t.Skip("no nats CLI: run scripts/setup --test")
	}
	return bin
}

// TestReadmeNATS runs every line of the README's NATS section with the real CLI against
// the real program.
func TestReadmeNATS(t *testing.T) {
	t.Parallel()
	bin := natsCLI(t)
	m := newMill(t)
	m.env = append(m.env, keywordsOnly)
	m.up()
	addr, err := os.ReadFile(filepath.Join(m.data, natsFile))
	if err != nil {
		t.Fatal(err)
	}
	home := t.TempDir() // the CLI keeps contexts there
	outputs := map[string]string{}
	for line := range strings.Lines(between(t, "nats")) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "nats ") {
			continue
		}
		if strings.HasPrefix(line, "nats req leafmill.search") || strings.HasPrefix(line, "nats consumer add") {
			m.poll("the messages are done", func() bool { return m.ended() == 3 })
		}
		cmd := exec.Command("bash", "-c", bin+strings.TrimPrefix(line, "nats"))
		cmd.Dir = filepath.Join("..", "..")
		cmd.Env = append(os.Environ(), "NATS_URL="+strings.TrimSpace(string(addr)), "XDG_CONFIG_HOME="+home)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", line, err, out)
		}
		outputs[line] = string(out)
	}
	for prefix, want := range map[string][]string{
		"nats micro ls":            {"leafmill-index", "leafmill-embed"},
		"nats micro stats":         {"leafmill-search"},
		"nats req leafmill.search": {"my-job", "blue fuse box", `"mode":"keyword"`},
		"nats consumer next":       {`"text":"The spare key`, `"segment":"1-1"`},
	} {
		found := false
		for line, out := range outputs {
			if !strings.HasPrefix(line, prefix) {
				continue
			}
			found = true
			for _, w := range want {
				if !strings.Contains(out, w) {
					t.Errorf("%s does not say %s:\n%s", line, w, out)
				}
			}
		}
		if !found {
			t.Errorf("the README has no line %q", prefix)
		}
	}
	for _, j := range m.jobs() {
		if !strings.HasPrefix(j.Status, "succeeded") {
			t.Errorf("job %s is %s: %+v", j.ID, j.Status, j.Error)
		}
	}
}
