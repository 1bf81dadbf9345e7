package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/leafmill/leafmill/events"
)

// TestGeneratedFilesAreFresh: what is committed is what the contract makes.
func TestGeneratedFilesAreFresh(t *testing.T) {
	t.Chdir("..") // as go generate does: comments are found below the working directory
	files, err := generate(".")
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range files {
		if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s is out of date; run go generate ./events (%v)", name, err)
		}
	}
	readme, err := os.ReadFile(filepath.Join("..", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	if fresh, err := withDiagram(readme); err != nil || !bytes.Equal(fresh, readme) {
		t.Errorf("the README's diagram is out of date; run go generate ./events (%v)", err)
	}
}

// TestFixturesFitTheirSchemas validates a real event of each kind.
func TestFixturesFitTheirSchemas(t *testing.T) {
	for _, e := range events.Catalog {
		schema, err := jsonschema.NewCompiler().Compile(filepath.Join("..", "schema", string(e.Name)+".json"))
		if err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(filepath.Join("..", "testdata", "v1", string(e.Name)+".json"))
		if err != nil {
			t.Fatal(err)
		}
		var f struct{ Body json.RawMessage }
		if err := json.Unmarshal(data, &f); err != nil {
			t.Fatal(err)
		}
		body, err := jsonschema.UnmarshalJSON(bytes.NewReader(f.Body))
		if err != nil {
			t.Fatal(err)
		}
		if err := schema.Validate(body); err != nil {
			t.Errorf("%s: %v", e.Name, err)
		}
		if schema.Validate([]any{}) == nil {
			t.Errorf("the schema of %s accepts a list", e.Name)
		}
	}
}

// TestAsyncAPIHolds: every reference of the document leads somewhere.
func TestAsyncAPIHolds(t *testing.T) {
	data, err := os.ReadFile(filepath.Join("..", "asyncapi.json"))
	if err != nil {
		t.Fatal(err)
	}
	var doc map[string]any
	if err := json.Unmarshal(data, &doc); err != nil {
		t.Fatal(err)
	}
	for _, e := range events.Catalog {
		if _, ok := doc["channels"].(map[string]any)[string(e.Name)]; !ok {
			t.Errorf("no channel for %s", e.Name)
		}
	}
	var walk func(v any)
	walk = func(v any) {
		switch v := v.(type) {
		case []any:
			for _, x := range v {
				walk(x)
			}
		case map[string]any:
			if target, ok := v["$ref"].(string); ok {
				resolve(t, doc, target)
			}
			for _, x := range v {
				walk(x)
			}
		}
	}
	walk(doc)
}

func resolve(t *testing.T, doc map[string]any, target string) {
	t.Helper()
	path, local := strings.CutPrefix(target, "#/")
	if !local {
		if _, err := os.Stat(filepath.Join("..", target)); err != nil {
			t.Errorf("%s: %v", target, err)
		}
		return
	}
	var at any = doc
	for part := range strings.SplitSeq(path, "/") {
		m, _ := at.(map[string]any)
		var ok bool
		if at, ok = m[part]; !ok {
			t.Errorf("%s leads nowhere", target)
			return
		}
	}
}
