package status

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/leafmill/leafmill/events"
	"github.com/leafmill/leafmill/internal/api"
	"github.com/leafmill/leafmill/internal/bus"
	"github.com/leafmill/leafmill/services/status/store"
	"github.com/leafmill/leafmill/services/status/view"
)

const (
	maxWait    = 60 * time.Second
	maxWaiters = 10_000
	maxPage    = bus.MaxReply - 64<<10 // bytes of views in a reply
	findLimit  = 1000
)

// serve registers the micro service leafmill-status.
func (s *Service) serve(ctx context.Context) error {
	return s.conn.Serve(ctx, bus.ServiceInfo{Name: "status", Version: s.cfg.Version,
		Description: "What became of every job",
		Endpoints: []bus.Endpoint{
			{Subject: api.SubjectJob, Limit: maxWaiters, Handle: func(hctx context.Context, req []byte) (any, error) {
				return s.job(hctx, ctx.Done(), req)
			}},
			{Subject: api.SubjectJobs, Handle: s.jobs},
			{Subject: api.SubjectFind, Handle: s.find},
			{Subject: api.SubjectRebuild, Every: true, Limit: 2, Handle: func(_ context.Context, _ []byte) (any, error) {
				return s.Rebuild(ctx) // ends with the service at once, unlike other requests
			}},
		}})
}

func decode(request []byte, into any) error {
	if len(request) == 0 {
		return nil
	}
	if err := json.Unmarshal(request, into); err != nil {
		return events.Fail(events.Invalid, "The request is not the JSON object that this subject wants.").Because(err)
	}
	return nil
}

// job answers leafmill.jobs.get. Waiting ends with the service.
func (s *Service) job(ctx context.Context, stopping <-chan struct{}, request []byte) (any, error) {
	var r api.JobRequest
	if err := decode(request, &r); err != nil {
		return nil, err
	}
	if !events.ValidJob(r.ID) {
		return nil, notFound(r.ID)
	}
	wait := min(time.Duration(max(0, r.WaitMS))*time.Millisecond, maxWait)
	if wait == 0 {
		doc, _, err := s.lookUp(ctx, r.ID)
		return doc, err
	}
	done, leave := s.watch.on(r.ID) // before looking, so that no end is missed
	defer leave()
	doc, ended, err := s.lookUp(ctx, r.ID)
	if err != nil || ended {
		return doc, err
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-done:
	case <-t.C:
	case <-stopping:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	doc, _, err = s.lookUp(ctx, r.ID)
	return doc, err
}

// lookUp is a job's view and whether it is terminal. What the views do not have yet and
// the stream has is queued.
func (s *Service) lookUp(ctx context.Context, job string) (doc json.RawMessage, ended bool, err error) {
	var status string
	err = s.use(func(st *store.Store) (err error) {
		doc, status, err = st.Status(ctx, job)
		return err
	})
	if !errors.Is(err, store.ErrNoJob) {
		return doc, status != events.StatusQueued && status != events.StatusRunning, err
	}
	for _, name := range []events.Name{events.NameSubmitted, events.NameSubmittedBulk} {
		m, derr := s.conn.Last(ctx, name.Subject(job))
		if errors.Is(derr, bus.ErrNotFound) {
			continue
		}
		if m.Sequence == 0 {
			return nil, false, derr
		}
		var st view.State
		st.Apply(m, derr)
		doc, err = json.Marshal(st.View())
		return doc, false, err
	}
	return nil, false, notFound(job)
}

// CodeNotFound is the code of the answer for a job that nobody has handed in.
const CodeNotFound = "status.not_found"

func notFound(job string) error {
	if len(job) > 64 {
		job = job[:64] + "…"
	}
	return &bus.RemoteError{Problem: events.Problem{Code: CodeNotFound, Stage: "status", Message: "There is no job " + job + "."}}
}

// page is api.JobsAnswer and api.FindAnswer with the views as they are stored.
type page struct {
	Jobs []json.RawMessage `json:"jobs"`
	Next string            `json:"next,omitempty"`
}

// jobs answers leafmill.jobs.list.
func (s *Service) jobs(ctx context.Context, request []byte) (any, error) {
	var r api.JobsRequest
	if err := decode(request, &r); err != nil {
		return nil, err
	}
	switch {
	case r.Limit == 0:
		r.Limit = 50
	case r.Limit < 0 || r.Limit > 500:
		return nil, events.Fail(events.Invalid, "The limit must be 1 to 500.")
	}
	if r.Collection != "" && !events.ValidCollection(r.Collection) {
		return nil, events.Fail(events.Invalid, "The collection must match [A-Za-z0-9._:-]{1,128}.")
	}
	var p store.Page
	err := s.use(func(st *store.Store) (err error) {
		p, err = st.List(ctx, store.Query{Status: r.Status, Collection: r.Collection, Cursor: r.Cursor, Limit: r.Limit, Bytes: maxPage})
		return err
	})
	return page(p), err
}

// find answers leafmill.jobs.find.
func (s *Service) find(ctx context.Context, request []byte) (any, error) {
	var r api.FindRequest
	if err := decode(request, &r); err != nil {
		return nil, err
	}
	if r.Collection == "" {
		r.Collection = events.DefaultCollection
	}
	if !events.ValidCollection(r.Collection) || !events.ValidDocument(r.DocumentID) {
		return nil, events.Fail(events.Invalid, "The collection and the document_id must match [A-Za-z0-9._:-]{1,128}.")
	}
	var p store.Page
	err := s.use(func(st *store.Store) (err error) {
		p, err = st.Find(ctx, r.Collection, r.DocumentID, findLimit, maxPage)
		return err
	})
	return page{Jobs: p.Jobs}, err
}
