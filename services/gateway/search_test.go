package gateway_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/leafmill/leafmill/events"
	"github.com/leafmill/leafmill/internal/api"
	"github.com/leafmill/leafmill/services/gateway"
)

func TestSearch(t *testing.T) {
	e := newEnv(t, gateway.Config{})
	if a := e.get("/search?q=x"); a.status != 503 || a.problem(t).Code != "gateway.unavailable" {
		t.Errorf("without an index: %d %s", a.status, a.body)
	}
	var asked []api.SearchRequest
	answer := func(r api.SearchRequest) (any, error) { return api.SearchAnswer{Query: r.Q, Mode: r.Mode}, nil }
	e.serve("index", map[string]func([]byte) (any, error){api.SubjectSearch: func(req []byte) (any, error) {
		var r api.SearchRequest
		if err := json.Unmarshal(req, &r); err != nil {
			return nil, err
		}
		asked = append(asked, r)
		return answer(r)
	}})
	pages := func(n, page int) {
		asked = nil
		answer = func(r api.SearchRequest) (any, error) {
			a := api.SearchAnswer{Query: r.Q, Mode: api.ModeKeyword, Degraded: true, TookMS: 1.5}
			for i := r.From; i < min(n, r.From+page, r.K); i++ {
				a.Results = append(a.Results, api.Hit{Chunk: fmt.Sprint(i)})
			}
			if next := r.From + len(a.Results); next < min(n, r.K) {
				a.Next = next
			}
			return a, nil
		}
	}

	start, end, keyword := 3, 9, 1.25
	answer = func(r api.SearchRequest) (any, error) {
		return api.SearchAnswer{Query: r.Q, Mode: "hybrid", TookMS: 1.5, Results: []api.Hit{
			{DocumentID: "d", JobID: "j", Collection: "c", Name: "a.pdf", Chunk: "d@1/1.1", Page: 2, Start: &start, End: &end, Text: "<Mühle>", Score: .5,
				Scores: api.Scores{Keyword: &keyword}, Highlights: [][2]int{{1, 6}}},
			{DocumentID: "e", JobID: "k", Collection: "c", Name: "b.txt", Chunk: "e@2/1.1", Page: 1, Text: "mill", Score: .25},
		}}, nil
	}
	golden(t, "search.json", e.get("/search?q=M%C3%BChle&k=5&mode=hybrid&collection=c&document_id=d").body)
	if want := (api.SearchRequest{Q: "Mühle", K: 5, Mode: "hybrid", Collection: "c", DocumentID: "d"}); asked[len(asked)-1] != want {
		t.Errorf("asked %+v", asked)
	}

	for _, tt := range []struct{ n, page, k, want, asks int }{
		{300, 70, 300, 300, 5}, {10, 70, 300, 10, 1}, {300, 1, 3, 3, 3}, {0, 1, 10, 0, 1},
	} {
		pages(tt.n, tt.page)
		a := e.get(fmt.Sprintf("/search?q=x&k=%d", tt.k))
		var got gateway.SearchResults
		if err := json.Unmarshal([]byte(a.body), &got); err != nil {
			t.Fatal(err)
		}
		if len(got.Results) != tt.want || len(asked) != tt.asks || got.Mode != api.ModeKeyword || !got.Degraded || got.TookMS != 1.5*float64(tt.asks) {
			t.Errorf("%+v: %d results in %d pages, %v %v %v", tt, len(got.Results), len(asked), got.Mode, got.Degraded, got.TookMS)
		}
		for i, h := range got.Results {
			if h.Chunk != fmt.Sprint(i) {
				t.Fatalf("hit %d is %s", i, h.Chunk)
			}
		}
	}

	answer = func(r api.SearchRequest) (any, error) { return api.SearchAnswer{Next: 1}, nil }
	asked = nil
	if a := e.get("/search?q=x"); a.status != 500 || len(asked) > 2 {
		t.Errorf("an index that turns in circles: %d after %d pages", a.status, len(asked))
	}
	answer = func(r api.SearchRequest) (any, error) {
		return nil, events.Fail(events.MissingModel, "There is no model, so mode dense cannot be had.")
	}
	if a := e.get("/search?q=x&mode=dense"); a.status != 503 || a.problem(t).Code != "index.missing_model" {
		t.Errorf("%d %s", a.status, a.body)
	}

	for _, query := range []string{"", "q=", "q=x&k=0", "q=x&k=301", "q=x&k=-1", "q=x&k=ten", "q=x&mode=magic", "q=x&collection=a/b", "q=x&document_id=%20",
		"q=" + strings.Repeat("x", 4097)} {
		if a := e.get("/search?" + query); a.status != 422 || a.problem(t).Code != "gateway.invalid" || len(a.problem(t).Errors) == 0 {
			t.Errorf("%.40s: %d %s", query, a.status, a.body)
		}
	}
}
