// Command gen writes what is made from the contract: JSON Schemas, the AsyncAPI document,
// and the diagram in the README. It runs by `go generate ./events`.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/invopop/jsonschema"

	"github.com/leafmill/leafmill/events"
)

const module = "github.com/leafmill/leafmill"

func main() {
	if err := run("..", "."); err != nil {
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1)
	}
}

// run writes all files; root is the repository, source the folder of package events. It is
// called with the working directory events.
func run(root, source string) error {
	files, err := generate(source)
	if err != nil {
		return err
	}
	for name, data := range files {
		path := filepath.Join(source, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			return err
		}
	}
	readme := filepath.Join(root, "README.md")
	text, err := os.ReadFile(readme)
	if err != nil {
		return err
	}
	text, err = withDiagram(text)
	if err != nil {
		return err
	}
	return os.WriteFile(readme, text, 0o644)
}

// generate makes the files below events, by name.
func generate(source string) (map[string][]byte, error) {
	comments := &jsonschema.Reflector{}
	if err := comments.AddGoComments(module+"/events", source); err != nil {
		return nil, err
	}
	r := &jsonschema.Reflector{AllowAdditionalProperties: true, ExpandedStruct: true, Mapper: mapped, CommentMap: comments.CommentMap}
	files := map[string][]byte{}
	for _, e := range events.Catalog {
		body := e.New()
		s := r.Reflect(body)
		s.ID = jsonschema.ID("urn:leafmill:events:v1:" + string(e.Name))
		s.Title = e.Name.Type()
		s.Description = e.Says
		describeContent(r, s, body)
		data, err := indent(s)
		if err != nil {
			return nil, err
		}
		files["schema/"+string(e.Name)+".json"] = data
	}
	doc, err := indent(asyncAPI())
	if err != nil {
		return nil, err
	}
	files["asyncapi.json"] = doc
	return files, nil
}

// unescape undoes what encoding/json does for HTML, so that people read <job>.
var unescape = strings.NewReplacer(`\u003c`, "<", `\u003e`, ">", `\u0026`, "&")

// indent writes JSON for people.
func indent(v any) ([]byte, error) {
	data, err := json.MarshalIndent(v, "", "  ")
	return []byte(unescape.Replace(string(data)) + "\n"), err
}

// describeContent says what an event's inline content is: the Go type is raw JSON, because
// large content is elsewhere.
func describeContent(r *jsonschema.Reflector, s *jsonschema.Schema, body events.Body) {
	var item any
	switch body.(type) {
	case *events.Extracted:
		item = events.UnitText{}
	case *events.Chunked, *events.Embedded, *events.Degraded:
		item = events.Chunk{}
	default:
		return
	}
	name := reflect.TypeOf(item).Name()
	of := r.Reflect(item)
	of.Version = ""
	of.ID = ""
	s.Definitions[name] = of
	s.Definitions["Content"].Properties.Set("inline", &jsonschema.Schema{Type: "array", Items: &jsonschema.Schema{Ref: "#/$defs/" + name}})
}

// mapped describes types whose JSON is not what their Go type says.
func mapped(t reflect.Type) *jsonschema.Schema {
	switch t {
	case reflect.TypeFor[events.Vector]():
		return &jsonschema.Schema{Type: "string", ContentEncoding: "base64", Description: "little-endian float32 values"}
	case reflect.TypeFor[json.RawMessage]():
		return &jsonschema.Schema{Description: "any JSON"}
	case reflect.TypeFor[[]byte]():
		return &jsonschema.Schema{Type: "string", ContentEncoding: "base64"}
	}
	return nil
}

type object = map[string]any

func ref(path string) object { return object{"$ref": path} }

// asyncAPI is the AsyncAPI 3 document: a channel an event, an operation a stage and event.
func asyncAPI() object {
	channels, messages, operations := object{}, object{}, object{}
	for _, e := range events.Catalog {
		n := string(e.Name)
		channels[n] = object{"address": "docs." + n + ".{job}", "description": e.Says,
			"parameters": object{"job": object{"description": "the job's id, [A-Za-z0-9_-]{1,64}"}},
			"messages":   object{n: ref("#/components/messages/" + n)}}
		messages[n] = object{"name": e.Name.Type(), "title": n, "summary": e.Says, "contentType": "application/json",
			"headers": ref("#/components/schemas/headers"), "payload": object{"$ref": "schema/" + n + ".json"}}
	}
	operation := func(who, action, service string, n events.Name) {
		operations[strings.ReplaceAll(who, " ", "_")+"."+action+"s."+string(n)] = object{"action": action, "channel": ref("#/channels/" + string(n)), "title": service,
			"messages": []any{ref("#/channels/" + string(n) + "/messages/" + string(n))}}
	}
	for _, s := range events.Pipeline {
		for _, n := range s.Consumes {
			operation(s.Durable, "receive", s.Service, n)
		}
		for _, n := range s.Publishes {
			operation(s.Durable, "send", s.Service, n)
		}
	}
	// What is outside the table of durables: status reads everything, and whoever the catalog names besides.
	inPipeline := func(who string) bool {
		return slices.ContainsFunc(events.Pipeline, func(s events.Stage) bool { return s.Service == who })
	}
	for _, e := range events.Catalog {
		operation("status", "receive", "status", e.Name)
		for _, who := range e.By {
			if !inPipeline(who) {
				operation(who, "send", who, e.Name)
			}
		}
	}
	text := object{"type": "string"}
	return object{
		"asyncapi": "3.0.0",
		"info": object{"title": "Leafmill", "version": fmt.Sprintf("%d.0.0", events.Version),
			"description": "Every event of every document, in the JetStream stream " + events.StreamDocs + "."},
		"defaultContentType": "application/json",
		"channels":           channels, "operations": operations,
		"components": object{"messages": messages, "schemas": object{"headers": object{"type": "object",
			"description": "CloudEvents in binary mode; all of them optional for a submitted event",
			"properties": object{events.HeaderSpecVersion: text, events.HeaderID: text, events.HeaderType: text,
				events.HeaderSource: text, events.HeaderTime: object{"type": "string", "format": "date-time"},
				events.HeaderTrace: text, "Nats-Msg-Id": text}}}},
	}
}

const begin, end = "<!-- pipeline:begin -->", "<!-- pipeline:end -->"

// withDiagram puts the pipeline between the README's markers.
func withDiagram(readme []byte) ([]byte, error) {
	head, rest, ok := bytes.Cut(readme, []byte(begin))
	_, tail, found := bytes.Cut(rest, []byte(end))
	if !ok || !found {
		return nil, fmt.Errorf("README.md has no %s and %s", begin, end)
	}
	return slices.Concat(head, []byte(begin+"\n```\n"+diagram()+"```\n"+end), tail), nil
}

// diagram draws a line a durable: what it takes, who it is, what it says next.
func diagram() string {
	var b strings.Builder
	names := func(list []events.Name) string {
		out := make([]string, len(list))
		for i, n := range list {
			out[i] = string(n)
		}
		return strings.Join(out, ", ")
	}
	rows := [][3]string{{"gateway, CLI, nats pub", "", "submitted"}}
	left, middle := len(rows[0][0]), 0
	for _, s := range events.Pipeline {
		who := s.Durable
		if s.Gated {
			who += " *"
		}
		takes := names(s.Consumes)
		if len(takes) > 30 {
			takes = string(s.Consumes[0]) + ", ..."
		}
		rows = append(rows, [3]string{takes, who, names(s.Publishes)})
	}
	rows = append(rows, [3]string{"every event", "status", "completed, healed; the job views"})
	for _, r := range rows {
		left, middle = max(left, len(r[0])), max(middle, len(r[1]))
	}
	for _, r := range rows {
		if r[1] == "" {
			fmt.Fprintf(&b, "%-*s  %s %s\n", left, r[0], strings.Repeat("-", middle+6)+">", r[2])
			continue
		}
		fmt.Fprintf(&b, "%-*s  -> %-*s -> %s\n", left, r[0], middle+2, "["+r[1]+"]", r[2])
	}
	b.WriteString("* background: taken only while the queues of fresh work are short\n")
	return b.String()
}
