package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
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
	committed, err := filepath.Glob("schema/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range committed {
		if _, ok := files[filepath.ToSlash(name)]; !ok {
			t.Errorf("%s is of no event", name)
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

// TestFixturesFitTheirSchemas validates real events of each kind, and what may not be.
func TestFixturesFitTheirSchemas(t *testing.T) {
	for _, e := range events.Catalog {
		schema, err := jsonschema.NewCompiler().Compile(filepath.Join("..", "schema", string(e.Name)+".json"))
		if err != nil {
			t.Fatal(err)
		}
		for _, suffix := range []string{".json", ".full.json"} {
			body := fixture(t, string(e.Name)+suffix)
			if err := schema.Validate(body); err != nil {
				t.Errorf("%s: %v", e.Name, err)
			}
			body["from_the_future"] = true
			if err := schema.Validate(body); err != nil {
				t.Errorf("%s refuses an unknown field: %v", e.Name, err)
			}
			body["document_id"] = 7
			if schema.Validate(body) == nil {
				t.Errorf("the schema of %s accepts a number as document_id", e.Name)
			}
		}
		if schema.Validate([]any{}) == nil {
			t.Errorf("the schema of %s accepts a list", e.Name)
		}
	}
}

// TestEveryFieldIsInAFixture, so that a field that is renamed cannot go unnoticed. A field
// added in a later release needs a fixture too.
func TestEveryFieldIsInAFixture(t *testing.T) {
	seen := map[string]bool{} // by Go type and field; false: it exists, but no fixture has it
	var walk func(of reflect.Type, v any)
	walk = func(of reflect.Type, v any) {
		switch of.Kind() {
		case reflect.Pointer:
			walk(of.Elem(), v)
		case reflect.Slice:
			list, _ := v.([]any)
			for _, x := range list {
				walk(of.Elem(), x)
			}
		case reflect.Struct:
			m, _ := v.(map[string]any)
			for f := range of.Fields() {
				tag, _, _ := strings.Cut(f.Tag.Get("json"), ",")
				if f.Anonymous {
					walk(f.Type, v)
					continue
				}
				x, ok := m[tag]
				seen[of.Name()+"."+tag] = seen[of.Name()+"."+tag] || ok
				if ok {
					walk(f.Type, x)
				}
			}
		}
	}
	for _, e := range events.Catalog {
		for _, suffix := range []string{".json", ".full.json"} {
			body := fixture(t, string(e.Name)+suffix)
			walk(reflect.TypeOf(e.New()), body)
			if c, ok := body["content"].(map[string]any); ok && e.Name == events.NameExtracted {
				walk(reflect.TypeFor[[]events.UnitText](), c["inline"])
			} else if ok {
				walk(reflect.TypeFor[[]events.Chunk](), c["inline"])
			}
		}
	}
	for field, found := range seen {
		if !found {
			t.Errorf("no fixture has %s", field)
		}
	}
}

func fixture(t *testing.T, name string) map[string]any {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("..", "testdata", "v1", name))
	if err != nil {
		t.Fatal(err)
	}
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	return v.(map[string]any)["body"].(map[string]any)
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
