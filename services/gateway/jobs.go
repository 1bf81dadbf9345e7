package gateway

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/leafmill/leafmill/events"
	"github.com/leafmill/leafmill/internal/api"
	"github.com/leafmill/leafmill/internal/bus"
)

const maxWait = time.Minute

type jobInput struct {
	ID          string `path:"id" pattern:"^[A-Za-z0-9_-]{1,64}$" doc:"The job."`
	Wait        string `query:"wait" pattern:"^([0-9]+(\\.[0-9]+)?(ms|s|m|h)?)+$" example:"30s" doc:"Answer when the job is terminal, or after this time; a duration or seconds, at most 60s."`
	IfNoneMatch string `header:"If-None-Match" doc:"Answer 304 when the job still has this ETag."`
}

type jobOutput struct {
	Status       int
	ETag         string `header:"ETag"`
	CacheControl string `header:"Cache-Control"`
	Body         api.Job
}

type jobsInput struct {
	Status     string `query:"status" enum:"queued,running,succeeded,succeeded_with_warnings,failed,cancelled" doc:"Only jobs of this status."`
	Collection string `query:"collection" pattern:"^[A-Za-z0-9._:-]{1,128}$" doc:"Only jobs of this collection."`
	Cursor     string `query:"cursor" maxLength:"512" doc:"The member next of the page before."`
	Limit      int    `query:"limit" minimum:"1" maximum:"500" default:"50" doc:"Jobs a page."`
}

type jobsOutput struct{ Body Jobs }

type deleteInput struct {
	ID         string `path:"id" pattern:"^[A-Za-z0-9._:-]{1,128}$" doc:"The document."`
	Collection string `query:"collection" pattern:"^[A-Za-z0-9._:-]{1,128}$" default:"default" doc:"Its collection."`
}

func (g *Gateway) jobRoutes() {
	operation(g, huma.Operation{OperationID: "get-job", Method: http.MethodGet, Path: "/jobs/{id}", Tags: []string{"jobs"},
		Summary:   "A job's state",
		Responses: map[string]*huma.Response{"304": {Description: "Not Modified"}}},
		[]int{http.StatusNotFound, http.StatusServiceUnavailable}, g.getJob)
	operation(g, huma.Operation{OperationID: "list-jobs", Method: http.MethodGet, Path: "/jobs", Tags: []string{"jobs"},
		Summary: "Jobs, newest first"},
		[]int{http.StatusServiceUnavailable}, g.listJobs)
	operation(g, huma.Operation{OperationID: "delete-document", Method: http.MethodDelete, Path: "/documents/{id}", Tags: []string{"documents"},
		Summary: "Delete a document with all its versions",
		Description: "Answers when the deletion is stored: from then on no work on any version of the document counts. " +
			"What other services hold of it goes as they read that.",
		DefaultStatus: http.StatusNoContent},
		[]int{http.StatusNotFound, http.StatusServiceUnavailable, http.StatusInsufficientStorage}, g.deleteDocument)
}

func (g *Gateway) getJob(ctx context.Context, in *jobInput) (*jobOutput, error) {
	wait, err := parseWait(in.Wait)
	if err != nil {
		return nil, err
	}
	j, err := g.job(ctx, in.ID, 0)
	if err != nil {
		return nil, err
	}
	if wait > 0 && !j.Terminal() && g.waits.take() {
		j, err = g.await(ctx, in.ID, wait, j)
		g.waits.give()
		if err != nil {
			return nil, err
		}
	}
	tidyJob(j)
	data, err := json.Marshal(j)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(data)
	out := &jobOutput{Status: http.StatusOK, ETag: `"` + hex.EncodeToString(sum[:12]) + `"`, CacheControl: "no-cache", Body: *j}
	if matches(in.IfNoneMatch, out.ETag) {
		out.Status = http.StatusNotModified
	}
	return out, nil
}

// await asks for the job once it is terminal or the time is up. A shutdown ends it early:
// the client gets the job as it is.
func (g *Gateway) await(ctx context.Context, id string, wait time.Duration, last *api.Job) (*api.Job, error) {
	ctx, cancel := g.untilDrain(ctx)
	defer cancel()
	j, err := g.job(ctx, id, wait)
	if g.draining.Err() != nil {
		return last, nil
	}
	return j, err
}

func (g *Gateway) job(ctx context.Context, id string, wait time.Duration) (*api.Job, error) {
	if err := g.bus.Healthy(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, wait+requestTimeout)
	defer cancel()
	var j api.Job
	if err := g.bus.Request(ctx, api.SubjectJob, api.JobRequest{ID: id, WaitMS: wait.Milliseconds()}, &j); unknown(err) {
		return nil, noJob()
	} else if err != nil {
		return nil, err
	}
	return &j, nil
}

// unknown says that the answer of a service means: no such job or document.
func unknown(err error) bool {
	re, ok := errors.AsType[*bus.RemoteError](err)
	return ok && strings.HasSuffix(re.Code, ".not_found")
}

func noJob() *problemDetails {
	return refuse(http.StatusNotFound, codeNotFound, "There is no such job.")
}

// tidyJob makes lists and maps that are empty say so: [] and {}, not null.
func tidyJob(j *api.Job) {
	empty(&j.CompletedStages)
	empty(&j.Warnings)
	empty(&j.Artifacts.ChunksPreview)
	if j.Usage == nil {
		j.Usage = map[string]api.Usage{}
	}
	if j.Timings == nil {
		j.Timings = map[string]api.StageTime{}
	}
	if j.Result != nil {
		empty(&j.Result.CompletedStages)
	}
}

func empty[T any](s *[]T) {
	if *s == nil {
		*s = []T{}
	}
}

func parseWait(s string) (time.Duration, error) {
	if s == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(s)
	if seconds, serr := strconv.ParseFloat(s, 64); serr == nil && seconds >= 0 && seconds < 1e6 {
		d, err = time.Duration(seconds*float64(time.Second)), nil
	}
	if err != nil || d < 0 {
		return 0, invalid("The parameter wait must be a duration such as 30s.")
	}
	return min(d, maxWait), nil
}

// matches compares an If-None-Match list with an ETag, weakly.
func matches(list, etag string) bool {
	for tag := range strings.SplitSeq(list, ",") {
		if tag = strings.TrimSpace(tag); tag == "*" || strings.TrimPrefix(tag, "W/") == etag {
			return true
		}
	}
	return false
}

func (g *Gateway) listJobs(ctx context.Context, in *jobsInput) (*jobsOutput, error) {
	var a api.JobsAnswer
	if err := g.ask(ctx, api.SubjectJobs, api.JobsRequest{Status: in.Status, Collection: in.Collection,
		Cursor: in.Cursor, Limit: in.Limit}, &a); err != nil {
		return nil, err
	}
	empty(&a.Jobs)
	for i := range a.Jobs {
		tidyJob(&a.Jobs[i])
	}
	return &jobsOutput{Jobs{Jobs: a.Jobs, Next: a.Next}}, nil
}

// ask is a request that does not hang when the bus is away.
func (g *Gateway) ask(ctx context.Context, subject string, request, answer any) error {
	if err := g.bus.Healthy(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	return g.bus.Request(ctx, subject, request, answer)
}

func (g *Gateway) deleteDocument(ctx context.Context, in *deleteInput) (*struct{}, error) {
	var found api.FindAnswer
	err := g.ask(ctx, api.SubjectFind, api.FindRequest{Collection: in.Collection, DocumentID: in.ID}, &found)
	if unknown(err) || err == nil && len(found.Jobs) == 0 {
		return nil, refuse(http.StatusNotFound, codeNotFound, "There is no document %s in the collection %s.", in.ID, in.Collection)
	}
	if err != nil {
		return nil, err
	}
	for _, j := range found.Jobs {
		fence := events.Deleted{Pass: events.Pass{Run: j.Run, Version: j.Version, Collection: j.Collection,
			DocumentID: j.DocumentID, Units: j.Units.Total, Name: j.Name}}
		if _, err := g.bus.Publish(ctx, events.NameDeleted, j.ID, fence, bus.PublishOptions{}); err != nil {
			return nil, err
		}
	}
	for _, j := range found.Jobs { // those the fence covers; what was submitted otherwise, status purges
		g.discard(ctx, j.ID+"/original")
	}
	return nil, nil
}

// Jobs is a page of jobs.
type Jobs struct {
	Jobs []api.Job `json:"jobs"`
	Next string    `json:"next,omitempty" doc:"The cursor of the next page; absent on the last one."`
}
