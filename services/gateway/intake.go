package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"strconv"
	"strings"

	"github.com/google/uuid"

	"github.com/leafmill/leafmill/events"
	"github.com/leafmill/leafmill/internal/bus"
)

const (
	maxMetadata = 16 << 10
	maxField    = 4 << 10   // bytes of any other form field
	maxParts    = 64        // of a form
	maxForm     = 1 << 20   // bytes of a form besides its file
	maxEvent    = 128 << 10 // bytes of a submission that carries its text
	maxName     = 255       // bytes of a file name
)

// Accepted answers a submission.
type Accepted struct {
	JobID      string `json:"job_id"`
	DocumentID string `json:"document_id"`
	Status     string `json:"status" enum:"queued"`
}

// intake is one submission on its way in.
type intake struct {
	events.Submitted
	job    string
	bulk   bool
	stored bool // the object is in the bucket
}

// submit handles POST /documents.
func (g *Gateway) submit(w http.ResponseWriter, r *http.Request) error {
	from := newBody(w, r, g.cfg.UploadIdle, g.bus.Healthy)
	in, err := g.accept(r, from)
	if err != nil {
		g.refuseUpload(w, r, from, err)
		return nil
	}
	g.metrics.received.Add(float64(in.Size))
	document := in.DocumentID
	if document == "" {
		document = in.job
	}
	w.Header().Set("Location", "/jobs/"+in.job)
	return writeJSON(w, http.StatusAccepted, Accepted{JobID: in.job, DocumentID: document, Status: events.StatusQueued})
}

// accept takes a document in, or leaves nothing of it behind.
func (g *Gateway) accept(r *http.Request, from *body) (*intake, error) {
	if !g.uploads.take() {
		return nil, busy()
	}
	defer g.uploads.give()
	g.metrics.uploads.Inc()
	defer g.metrics.uploads.Dec()
	if err := g.bus.Healthy(); err != nil {
		return nil, err
	}
	if err := g.room.check(r.Context(), r.ContentLength); err != nil {
		return nil, err
	}
	id, err := uuid.NewV7()
	if err != nil {
		return nil, err
	}
	in := &intake{job: id.String()}
	if err = g.receive(r, in, from); err == nil {
		err = g.publish(r, in)
	}
	if err != nil {
		if in.stored {
			g.discard(r.Context(), in.Object)
		}
		return nil, err
	}
	return in, nil
}

// refuseUpload answers while the peer may still be sending.
func (g *Gateway) refuseUpload(w http.ResponseWriter, r *http.Request, from *body, err error) {
	if from.done() || r.ContentLength == 0 {
		g.fail(w, r, err)
		return
	}
	w.Header().Set("Connection", "close") // the rest of the body is not worth reading
	duplex := from.rc.EnableFullDuplex() == nil
	g.fail(w, r, err)
	if waits := from.read == 0 && r.Header.Get("Expect") != ""; duplex && !waits && from.rc.Flush() == nil {
		from.finish()
	}
}

// publish stores the event; from here on the document is accepted.
func (g *Gateway) publish(r *http.Request, in *intake) error {
	if err := r.Context().Err(); err != nil { // nobody would learn of the job
		return err
	}
	name := events.NameSubmitted
	if in.bulk {
		name = events.NameSubmittedBulk
	}
	id := uuid.NewString()
	_, err := g.bus.Publish(r.Context(), name, in.job, in.Submitted, bus.PublishOptions{
		ID: id, MsgID: in.job + "/submitted/" + id, Trace: traceparent(r)})
	return err
}

// receive reads a submission of any form. After an error the intake says whether an
// object was stored.
func (g *Gateway) receive(r *http.Request, in *intake, from *body) error {
	if e := r.Header.Get("Content-Encoding"); e != "" && !strings.EqualFold(e, "identity") {
		return refuse(http.StatusUnsupportedMediaType, codeUnsupportedMedia, "Content-Encoding is not supported: send the document as it is.")
	}
	media, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil && !errors.Is(err, mime.ErrInvalidMediaParameter) || !strings.Contains(media, "/") {
		return unsupportedMedia()
	}
	for key, values := range r.URL.Query() {
		if len(values) > 1 {
			return invalid("The parameter %q is given more than once.", key)
		}
		if err := in.set(key, values[0]); err != nil {
			return err
		}
	}
	switch {
	case media == "application/json":
		return g.receiveJSON(r, in, from)
	case media == "multipart/form-data":
		if params["boundary"] == "" {
			return refuse(http.StatusBadRequest, codeInvalid, "The form has no boundary.")
		}
		return g.receiveForm(r, in, from, params["boundary"])
	case media == "application/x-www-form-urlencoded", strings.HasPrefix(media, "multipart/"):
		return unsupportedMedia()
	}
	if r.ContentLength > g.cfg.MaxUpload {
		return g.tooLarge()
	}
	in.MediaType = declared(media, params)
	return g.storeOriginal(r.Context(), in, from)
}

func unsupportedMedia() *problemDetails {
	return refuse(http.StatusUnsupportedMediaType, codeUnsupportedMedia,
		"Send multipart/form-data with a file, application/json with a text, or the document itself with its Content-Type.")
}

func invalid(format string, args ...any) *problemDetails {
	return refuse(http.StatusUnprocessableEntity, codeInvalid, format, args...)
}

func (g *Gateway) tooLarge() *problemDetails {
	return refuse(http.StatusRequestEntityTooLarge, codeTooLarge, "The document is larger than %d bytes (LEAFMILL_MAX_UPLOAD_BYTES).", g.cfg.MaxUpload)
}

// storeOriginal streams a document into the bucket.
func (g *Gateway) storeOriginal(ctx context.Context, in *intake, r io.Reader) error {
	if in.stored {
		return invalid("The form has more than one file; send each document on its own.")
	}
	src := named{&capped{r: r, left: g.cfg.MaxUpload, over: g.tooLarge()}}
	var first [1]byte
	if _, err := io.ReadFull(src, first[:]); errors.Is(err, io.EOF) {
		return refuse(http.StatusUnprocessableEntity, codeEmpty, "The document is empty.")
	} else if err != nil {
		return err
	}
	in.Object = in.job + "/original"
	// Not the request's context: when the client goes away the body fails, and with the
	// context alive the store can remove what it has.
	up, err := g.store.PutOriginal(context.WithoutCancel(ctx), in.Object, io.MultiReader(bytes.NewReader(first[:]), src))
	if err != nil {
		return err
	}
	in.stored, in.Size = true, up.Size
	return nil
}

// receiveForm reads multipart/form-data; fields count wherever they stand.
func (g *Gateway) receiveForm(r *http.Request, in *intake, from io.Reader, boundary string) error {
	if r.ContentLength > g.cfg.MaxUpload+maxForm {
		return g.tooLarge()
	}
	mr := multipart.NewReader(&capped{r: from, left: g.cfg.MaxUpload + maxForm, over: g.tooLarge()}, boundary)
	for range maxParts {
		part, err := mr.NextPart()
		if errors.Is(err, io.EOF) {
			if !in.stored {
				return invalid("The form has no part named file.")
			}
			return nil
		}
		if err != nil {
			if p, ok := errors.AsType[*problemDetails](err); ok {
				return p
			}
			return refuse(http.StatusBadRequest, codeInvalid, "The form is not well-formed multipart/form-data.")
		}
		if err := g.receivePart(r.Context(), in, part); err != nil {
			return err
		}
	}
	return invalid("The form has more than %d parts.", maxParts)
}

func (g *Gateway) receivePart(ctx context.Context, in *intake, part *multipart.Part) error {
	key := part.FormName()
	if key != "file" {
		value, err := readAll(named{part}, maxMetadata, invalid("The form field %q is too long.", key))
		if err != nil {
			return err
		}
		return in.set(key, string(value))
	}
	if in.Name == "" {
		in.Name = fileName(part.FileName())
	}
	if media, params, err := mime.ParseMediaType(part.Header.Get("Content-Type")); err == nil {
		in.MediaType = declared(media, params)
	}
	return g.storeOriginal(ctx, in, part)
}

// receiveJSON reads {"text": ...}. Short texts ride in the event, longer ones in the bucket.
func (g *Gateway) receiveJSON(r *http.Request, in *intake, from io.Reader) error {
	limit := min(maxJSON, g.cfg.MaxUpload+maxForm)
	over := refuse(http.StatusRequestEntityTooLarge, codeTooLarge,
		"A JSON submission is at most %d bytes; send the text as a file or as text/plain.", limit)
	if r.ContentLength > limit {
		return over
	}
	weight := r.ContentLength
	if weight < 0 {
		weight = limit
	}
	if !g.jsonBytes.TryAcquire(weight) {
		return busy()
	}
	defer g.jsonBytes.Release(weight)
	data, err := readAll(from, limit, over)
	if err != nil {
		return err
	}
	if err := in.decode(data); err != nil {
		return err
	}
	if int64(len(in.Text)) > g.cfg.MaxUpload {
		return g.tooLarge()
	}
	in.Size = int64(len(in.Text))
	if encoded, err := json.Marshal(in.Submitted); err != nil {
		return err
	} else if len(in.Text) <= events.MaxInline && len(encoded) <= maxEvent {
		return nil
	}
	text := in.Text
	in.Text = ""
	if in.MediaType == "" {
		in.MediaType = "text/plain; charset=utf-8"
	}
	return g.storeOriginal(r.Context(), in, strings.NewReader(text))
}

// decode reads the JSON form. Names that it does not know are ignored.
func (in *intake) decode(data []byte) error {
	var req struct {
		Text       *string         `json:"text"`
		Name       string          `json:"name"`
		MediaType  string          `json:"media_type"`
		DocumentID string          `json:"document_id"`
		Collection string          `json:"collection"`
		Language   string          `json:"language"`
		Metadata   json.RawMessage `json:"metadata"`
		Bulk       bool            `json:"bulk"`
	}
	if err := json.Unmarshal(data, &req); err != nil {
		if te, ok := errors.AsType[*json.UnmarshalTypeError](err); ok && te.Field != "" {
			return invalid("The member %s must be a %s.", te.Field, te.Type)
		} else if ok {
			return invalid("The JSON must be an object with a member text.")
		}
		return refuse(http.StatusBadRequest, codeInvalid, "The body is not valid JSON.")
	}
	if req.Text == nil {
		return invalid("The JSON object has no member text.")
	}
	if strings.TrimSpace(*req.Text) == "" {
		return refuse(http.StatusUnprocessableEntity, codeEmpty, "The text is empty.")
	}
	in.Text, in.bulk = *req.Text, in.bulk || req.Bulk
	for _, f := range [][2]string{{"name", req.Name}, {"media_type", req.MediaType}, {"document_id", req.DocumentID},
		{"collection", req.Collection}, {"language", req.Language}} {
		if err := in.set(f[0], f[1]); err != nil {
			return err
		}
	}
	if m := bytes.TrimSpace(req.Metadata); len(m) > 0 && !bytes.Equal(m, []byte("null")) {
		return in.setMetadata(m)
	}
	return nil
}

// writeJSON answers with a value.
func writeJSON(w http.ResponseWriter, status int, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(data)+1))
	w.WriteHeader(status)
	_, _ = w.Write(append(data, '\n')) // a peer that is gone needs no answer
	return nil
}
