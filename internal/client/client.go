// Package client talks to Leafmill's gateway over HTTP, for the command line and for Go
// programs of this module.
//
// Guarantees:
//   - uploads are streamed from their file, never whole in memory;
//   - a busy server (429, 503) is asked again after its Retry-After, for at most [Client.Patience]
//     in all; nothing else is repeated, since an upload whose answer was lost may have been taken;
//   - an error is [ErrUnreachable], a [Refused] with the server's problem, or the context's.
package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/textproto"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/leafmill/leafmill/internal/api"
)

// ErrUnreachable says that nobody answers at the server's address.
var ErrUnreachable = errors.New("the server cannot be reached")

// Refused is an answer other than success, as RFC 9457 tells it.
type Refused struct {
	Status     int
	Code       string `json:"code"`
	Title      string `json:"title"`
	Detail     string `json:"detail"`
	RetryAfter time.Duration
}

func (r *Refused) Error() string {
	what := r.Detail
	if what == "" {
		what = r.Title
	}
	if what == "" {
		what = http.StatusText(r.Status)
	}
	if r.Code != "" {
		return fmt.Sprintf("%s (%s)", what, r.Code)
	}
	return fmt.Sprintf("%s (%d)", what, r.Status)
}

// Client of one gateway. Its methods may be called from many goroutines.
type Client struct {
	base string
	key  string
	http *http.Client
	// Patience bounds the waiting for a busy server, a call.
	Patience time.Duration
	// OnBusy is told of every wait for a busy server; may be nil.
	OnBusy func(wait time.Duration, because error)
}

// New makes a client of the gateway at base, such as http://127.0.0.1:8080. Key may be empty.
func New(base, key string) *Client {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConnsPerHost = 16
	transport.ResponseHeaderTimeout = 2 * time.Minute // the longest long poll is half of it
	return &Client{base: strings.TrimRight(base, "/"), key: key, http: &http.Client{Transport: transport}, Patience: 10 * time.Second}
}

// Upload is a document to hand in.
type Upload struct {
	Name       string
	DocumentID string
	Collection string
	Language   string
	MediaType  string // made from the name when empty
	Bulk       bool   // in no hurry
	Size       int64  // bytes that Open gives
	Open       func() (io.ReadCloser, error)
}

// Accepted is the receipt of a document.
type Accepted struct {
	JobID      string `json:"job_id"`
	DocumentID string `json:"document_id"`
	Status     string `json:"status"`
}

// Submit hands a document in. When it returns without error the server has stored it.
func (c *Client) Submit(ctx context.Context, u Upload) (Accepted, error) {
	head, tail, contentType, err := form(u)
	if err != nil {
		return Accepted{}, err
	}
	var out Accepted
	err = c.patiently(ctx, func() error {
		file, err := u.Open()
		if err != nil {
			return err
		}
		defer func() { _ = file.Close() }() // only read from
		body := io.MultiReader(bytes.NewReader(head), io.LimitReader(file, u.Size), bytes.NewReader(tail))
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.base+"/documents", body)
		if err != nil {
			return err
		}
		req.ContentLength = int64(len(head)) + u.Size + int64(len(tail))
		req.Header.Set("Content-Type", contentType)
		return c.do(req, &out)
	})
	return out, err
}

// form is what stands before and after the file in a multipart form, whose length is then known.
func form(u Upload) (head, tail []byte, contentType string, err error) {
	var buf bytes.Buffer
	w := multipart.NewWriter(&buf)
	fields := [][2]string{{"document_id", u.DocumentID}, {"collection", u.Collection}, {"language", u.Language}}
	if u.Bulk {
		fields = append(fields, [2]string{"bulk", "true"})
	}
	for _, f := range fields {
		if f[1] != "" {
			if err := w.WriteField(f[0], f[1]); err != nil {
				return nil, nil, "", err
			}
		}
	}
	media := u.MediaType
	if media == "" {
		media = mime.TypeByExtension(filepath.Ext(u.Name))
	}
	if media == "" {
		media = "application/octet-stream"
	}
	h := textproto.MIMEHeader{}
	h.Set("Content-Disposition", multipart.FileContentDisposition("file", u.Name))
	h.Set("Content-Type", media)
	if _, err := w.CreatePart(h); err != nil {
		return nil, nil, "", err
	}
	n := buf.Len()
	if err := w.Close(); err != nil {
		return nil, nil, "", err
	}
	return buf.Bytes()[:n], buf.Bytes()[n:], w.FormDataContentType(), nil
}

// Job is a job's view. With wait it comes when the job has ended or the time is up.
func (c *Client) Job(ctx context.Context, id string, wait time.Duration) (api.Job, error) {
	q := url.Values{}
	if wait > 0 {
		q.Set("wait", wait.String())
	}
	var j api.Job
	return j, c.get(ctx, "/jobs/"+url.PathEscape(id), q, &j)
}

// Await is a job's view once it has ended.
func (c *Client) Await(ctx context.Context, id string) (api.Job, error) {
	for {
		began := time.Now()
		j, err := c.Job(ctx, id, 30*time.Second)
		if err != nil || j.Terminal() {
			return j, err
		}
		// A server that does not hold the request back shall not be asked without pause.
		if err := sleep(ctx, 250*time.Millisecond-time.Since(began)); err != nil {
			return j, err
		}
	}
}

// Jobs is a page of jobs, newest first.
func (c *Client) Jobs(ctx context.Context, r api.JobsRequest) (api.JobsAnswer, error) {
	q := url.Values{}
	set(q, "status", r.Status)
	set(q, "collection", r.Collection)
	set(q, "cursor", r.Cursor)
	if r.Limit > 0 {
		q.Set("limit", strconv.Itoa(r.Limit))
	}
	var out api.JobsAnswer
	return out, c.get(ctx, "/jobs", q, &out)
}

// Search asks for passages.
func (c *Client) Search(ctx context.Context, r api.SearchRequest) (api.SearchAnswer, error) {
	q := url.Values{"q": {r.Q}}
	set(q, "mode", r.Mode)
	set(q, "collection", r.Collection)
	set(q, "document_id", r.DocumentID)
	if r.K > 0 {
		q.Set("k", strconv.Itoa(r.K))
	}
	var out api.SearchAnswer
	return out, c.get(ctx, "/search", q, &out)
}

// Ready is what the server says of its dependencies, as JSON, and whether it is ready.
func (c *Client) Ready(ctx context.Context) (json.RawMessage, bool, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+"/readyz", nil)
	if err != nil {
		return nil, false, err
	}
	resp, err := c.send(req)
	if err != nil {
		return nil, false, err
	}
	defer func() { _ = resp.Body.Close() }()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, false, c.unreachable(ctx, err)
	}
	if !json.Valid(data) {
		return nil, false, &Refused{Status: resp.StatusCode, Detail: "something other than Leafmill answers there"}
	}
	return data, resp.StatusCode == http.StatusOK, nil
}

// maxAnswer bounds an answer, in bytes of JSON: 300 hits, or 500 jobs, with room to spare.
const maxAnswer = 64 << 20

func set(q url.Values, key, value string) {
	if value != "" {
		q.Set(key, value)
	}
}

func (c *Client) get(ctx context.Context, path string, q url.Values, out any) error {
	target := c.base + path
	if len(q) > 0 {
		target += "?" + q.Encode()
	}
	return c.patiently(ctx, func() error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
		if err != nil {
			return err
		}
		return c.do(req, out)
	})
}

// do sends a request and decodes its answer.
func (c *Client) do(req *http.Request, out any) error {
	resp, err := c.send(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode/100 != 2 {
		return refused(resp)
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(out); err != nil {
		if req.Context().Err() != nil {
			return req.Context().Err()
		}
		return fmt.Errorf("the answer of %s cannot be read: %w", c.base, err)
	}
	return nil
}

func (c *Client) send(req *http.Request) (*http.Response, error) {
	if c.key != "" {
		req.Header.Set("Authorization", "Bearer "+c.key)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.unreachable(req.Context(), err)
	}
	return resp, nil
}

func (c *Client) unreachable(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err // the address is told once
	}
	return fmt.Errorf("%w at %s: %w", ErrUnreachable, c.base, err)
}

func refused(resp *http.Response) *Refused {
	r := &Refused{}
	data, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	_ = json.Unmarshal(data, r) // a proxy in between may answer with anything
	r.Status = resp.StatusCode
	r.RetryAfter = retryAfter(resp.Header.Get("Retry-After"))
	return r
}

// retryAfter reads both forms of the header; what cannot be read is none.
func retryAfter(h string) time.Duration {
	if s, err := strconv.Atoi(h); err == nil && s > 0 {
		return time.Duration(min(s, 24*3600)) * time.Second
	}
	if t, err := http.ParseTime(h); err == nil {
		return max(0, time.Until(t))
	}
	return 0
}

// patiently calls f again while the server is busy.
func (c *Client) patiently(ctx context.Context, f func() error) error {
	end := time.Now().Add(c.Patience)
	for {
		err := f()
		r, ok := errors.AsType[*Refused](err)
		if !ok || r.Status != http.StatusTooManyRequests && r.Status != http.StatusServiceUnavailable {
			return err
		}
		wait := max(r.RetryAfter, time.Second)
		if time.Now().Add(wait).After(end) {
			return err
		}
		if c.OnBusy != nil {
			c.OnBusy(wait, err)
		}
		if err := sleep(ctx, wait); err != nil {
			return err
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
