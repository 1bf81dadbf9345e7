package gateway

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/leafmill/leafmill/events"
	"github.com/leafmill/leafmill/internal/api"
)

type searchInput struct {
	Q          string `query:"q" required:"true" minLength:"1" maxLength:"4096" doc:"What to look for, in words."`
	K          int    `query:"k" minimum:"1" maximum:"300" default:"10" doc:"How many passages."`
	Mode       string `query:"mode" enum:"hybrid,keyword,dense" default:"hybrid" doc:"How to look; the answer says how it was done."`
	Collection string `query:"collection" pattern:"^[A-Za-z0-9._:-]{1,128}$" doc:"Only in this collection."`
	DocumentID string `query:"document_id" pattern:"^[A-Za-z0-9._:-]{1,128}$" doc:"Only in this document."`
}

type searchOutput struct{ Body SearchResults }

// SearchResults are the passages found, best first.
type SearchResults struct {
	Query    string    `json:"query"`
	Mode     string    `json:"mode" doc:"The mode really used."`
	Degraded bool      `json:"degraded" doc:"A better mode was asked for but its model does not answer."`
	TookMS   float64   `json:"took_ms"`
	Results  []api.Hit `json:"results"`
}

func (g *Gateway) searchRoute() {
	operation(g, huma.Operation{OperationID: "search", Method: http.MethodGet, Path: "/search", Tags: []string{"search"},
		Summary: "Search passages"},
		[]int{http.StatusTooManyRequests, http.StatusServiceUnavailable}, g.search)
}

// search joins the pages of an answer, each of which fits a message.
func (g *Gateway) search(ctx context.Context, in *searchInput) (*searchOutput, error) {
	req := api.SearchRequest{Q: in.Q, K: in.K, Mode: in.Mode, Collection: in.Collection, DocumentID: in.DocumentID}
	out := &searchOutput{SearchResults{Results: []api.Hit{}}}
	for {
		var a api.SearchAnswer
		if err := g.ask(ctx, api.SubjectSearch, req, &a); err != nil {
			return nil, err
		}
		if req.From == 0 {
			out.Body.Query, out.Body.Mode = a.Query, a.Mode
		}
		out.Body.Degraded = out.Body.Degraded || a.Degraded
		out.Body.TookMS += a.TookMS
		out.Body.Results = append(out.Body.Results, a.Results[:min(len(a.Results), in.K-len(out.Body.Results))]...)
		if a.Next == 0 || len(out.Body.Results) >= in.K {
			break
		}
		if a.Next <= req.From {
			return nil, events.Fail(events.Internal, "The index pages backwards, from %d to %d.", req.From, a.Next)
		}
		req.From = a.Next
	}
	for i := range out.Body.Results {
		empty(&out.Body.Results[i].Highlights)
	}
	return out, nil
}
