package gateway

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
)

const (
	jobPattern      = `^[A-Za-z0-9_-]{1,64}$`
	documentPattern = `^[A-Za-z0-9._:-]{1,128}$`
	mediaJSON       = "application/json"
	mediaText       = "text/plain; charset=utf-8"
	mediaEvents     = "text/event-stream"
)

// routes registers every operation together with its description, so that neither exists
// without the other.
func (g *Gateway) routes() error {
	cfg := huma.Config{
		OpenAPI: &huma.OpenAPI{
			OpenAPI: "3.1.0",
			Info: &huma.Info{Title: "Leafmill", Version: g.cfg.Version,
				Description: "Documents in, passages out. Every refusal is application/problem+json with a stable code."},
			Components: &huma.Components{
				Schemas: huma.NewMapRegistry("#/components/schemas/", huma.DefaultSchemaNamer),
				SecuritySchemes: map[string]*huma.SecurityScheme{
					"bearer": {Type: "http", Scheme: "bearer"},
					"key":    {Type: "apiKey", In: "header", Name: "X-API-Key"},
				},
			},
			// None is needed on a loopback server without keys.
			Security: []map[string][]string{{}, {"bearer": {}}, {"key": {}}},
		},
		Formats:       map[string]huma.Format{mediaJSON: huma.DefaultJSONFormat, "json": huma.DefaultJSONFormat},
		DefaultFormat: mediaJSON,
		Transformers:  []huma.Transformer{ownProblem},
	}
	g.api = humago.New(g.mux, cfg)

	g.submitRoute()
	g.jobRoutes()
	g.streamRoutes()
	g.artifactRoutes()
	g.searchRoute()
	g.healthRoutes()

	var spec []byte
	g.plain(&huma.Operation{OperationID: "describe", Method: http.MethodGet, Path: "/openapi.json", Tags: []string{"service"},
		Summary:   "This description",
		Responses: g.responses(http.StatusOK, "OpenAPI 3.1", mediaJSON, &huma.Schema{Type: "object"})},
		func(w http.ResponseWriter, r *http.Request) error {
			w.Header().Set("Content-Type", mediaJSON)
			w.Header().Set("Content-Length", strconv.Itoa(len(spec)))
			_, _ = w.Write(spec) // a peer that is gone needs no answer
			return nil
		})
	g.tidySchemas()
	var err error
	if spec, err = json.Marshal(g.api.OpenAPI()); err != nil {
		return fmt.Errorf("describe the API: %w", err)
	}
	return nil
}

// tidySchemas removes huma's own error types, which ownProblem replaces, and the claim
// that answers never get further members: they do.
func (g *Gateway) tidySchemas() {
	schemas := g.api.OpenAPI().Components.Schemas.Map()
	maps.DeleteFunc(schemas, func(name string, _ *huma.Schema) bool { return name == "ErrorModel" || name == "ErrorDetail" })
	for _, s := range schemas {
		if s.AdditionalProperties == false {
			s.AdditionalProperties = nil
		}
	}
}

// operation registers a JSON operation. Its errors become problems.
func operation[I, O any](g *Gateway, op huma.Operation, problems []int, h func(context.Context, *I) (*O, error)) {
	op.Responses = g.problems(op.Responses, append(problems, http.StatusUnprocessableEntity)...)
	huma.Register(g.api, op, func(ctx context.Context, in *I) (*O, error) {
		out, err := h(ctx, in)
		if err != nil {
			return nil, g.problemOf(err)
		}
		return out, nil
	})
}

// plain registers an operation that reads or writes streams itself. It returns an error
// only when it has written nothing.
func (g *Gateway) plain(op *huma.Operation, h func(http.ResponseWriter, *http.Request) error) {
	pattern := op.Method + " " + op.Path
	if strings.HasSuffix(pattern, "/") {
		pattern += "{$}"
	}
	g.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		if err := h(w, r); err != nil {
			g.fail(w, r, err)
		}
	})
	g.api.OpenAPI().AddOperation(op)
}

// responses describes a success besides the problems.
func (g *Gateway) responses(status int, description, media string, s *huma.Schema, problems ...int) map[string]*huma.Response {
	return g.problems(map[string]*huma.Response{strconv.Itoa(status): {
		Description: description, Content: map[string]*huma.MediaType{media: {Schema: s}}}}, problems...)
}

// problems adds the problems that an operation answers with; any may meet the access
// check or a fault.
func (g *Gateway) problems(to map[string]*huma.Response, statuses ...int) map[string]*huma.Response {
	if to == nil {
		to = map[string]*huma.Response{}
	}
	schema := g.schema(reflect.TypeFor[problemDetails]())
	retry := map[string]*huma.Param{"Retry-After": {Description: "Seconds to wait before the next try.", Schema: &huma.Schema{Type: "integer"}}}
	for _, s := range append(slices.Clone(statuses), http.StatusUnauthorized, http.StatusForbidden, http.StatusInternalServerError) {
		r := &huma.Response{Description: http.StatusText(s), Content: map[string]*huma.MediaType{problemMedia: {Schema: schema}}}
		if s == http.StatusTooManyRequests || s == http.StatusServiceUnavailable || s == http.StatusInsufficientStorage {
			r.Headers = retry
		}
		to[strconv.Itoa(s)] = r
	}
	return to
}

func (g *Gateway) schema(t reflect.Type) *huma.Schema {
	return g.api.OpenAPI().Components.Schemas.Schema(t, true, "")
}

func pathParam(name, pattern, description string) *huma.Param {
	return &huma.Param{Name: name, In: "path", Required: true, Description: description,
		Schema: &huma.Schema{Type: "string", Pattern: pattern}}
}

func queryParam(name, description string, s *huma.Schema) *huma.Param {
	return &huma.Param{Name: name, In: "query", Description: description, Schema: s}
}

// submitRoute describes POST /documents by hand: huma would hold the upload in memory.
func (g *Gateway) submitRoute() {
	text := func(d string) *huma.Schema { return &huma.Schema{Type: "string", Description: d} }
	pattern := func(d, p string) *huma.Schema { return &huma.Schema{Type: "string", Description: d, Pattern: p} }
	fields := func() map[string]*huma.Schema {
		return map[string]*huma.Schema{
			"name":        text("The file's name, for people."),
			"document_id": pattern("Names the document within its collection; the job's id when absent.", documentPattern),
			"collection":  pattern("default when absent.", documentPattern),
			"language":    pattern("The text's language, such as de or deu+eng.", `^[A-Za-z][A-Za-z0-9_+-]{0,63}$`),
			"bulk":        {Type: "boolean", Description: "No hurry: fresh work goes first."},
			"media_type":  text("What the document is, when its content does not tell."),
		}
	}
	var params []*huma.Param
	for _, name := range slices.Sorted(maps.Keys(fields())) {
		s := fields()[name]
		params = append(params, queryParam(name, s.Description, s))
	}
	params = append(params, queryParam("metadata", "A JSON object, kept with the document; at most 16 KB.", text("")))
	form, object := fields(), fields()
	form["file"] = &huma.Schema{Type: "string", Format: "binary"}
	form["metadata"] = text("A JSON object, kept with the document; at most 16 KB.")
	object["text"] = text("The document.")
	object["metadata"] = &huma.Schema{Type: "object", AdditionalProperties: true}
	responses := g.responses(http.StatusAccepted, "Accepted: the stream has stored it.", mediaJSON, g.schema(reflect.TypeFor[Accepted]()),
		http.StatusBadRequest, http.StatusRequestTimeout, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType,
		http.StatusUnprocessableEntity, http.StatusTooManyRequests, http.StatusServiceUnavailable, http.StatusInsufficientStorage)
	responses["202"].Headers = map[string]*huma.Param{"Location": {Description: "The job.", Schema: &huma.Schema{Type: "string"}}}
	g.plain(&huma.Operation{OperationID: "submit", Method: http.MethodPost, Path: "/documents", Tags: []string{"documents"},
		Summary: "Hand in a document",
		Description: "As a form with a file (fields may stand before or after it), as JSON with a text, or as the document itself with its " +
			"Content-Type. Form fields and JSON members override query parameters.",
		Parameters: params,
		RequestBody: &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{
			"multipart/form-data": {Schema: &huma.Schema{Type: "object", Properties: form, Required: []string{"file"}}},
			mediaJSON:             {Schema: &huma.Schema{Type: "object", Properties: object, Required: []string{"text"}}},
			"*/*":                 {Schema: &huma.Schema{Type: "string", Format: "binary"}},
		}},
		Responses: responses}, g.submit)
}
