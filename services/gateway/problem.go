package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/leafmill/leafmill/events"
	"github.com/leafmill/leafmill/internal/bus"
)

// Codes of the gateway's own refusals; those of other services are passed on.
const (
	codeInvalid          = "gateway.invalid"
	codeEmpty            = "gateway.empty"
	codeTooLarge         = "gateway.too_large"
	codeUnsupportedMedia = "gateway.unsupported_media_type"
	codeIncomplete       = "gateway.incomplete"
	codeTimeout          = "gateway.timeout"
	codeNotFound         = "gateway.not_found"
	codeMethod           = "gateway.method_not_allowed"
	codeUnauthorized     = "gateway.unauthorized"
	codeForbiddenHost    = "gateway.forbidden_host"
	codeForbiddenOrigin  = "gateway.forbidden_origin"
	codeBusy             = "gateway.busy"
	codeUnavailable      = "gateway.unavailable"
	codeFull             = "gateway.full"
	codeInternal         = "gateway.internal"
)

// problemDetails is the body of every refusal.
type problemDetails struct {
	Type   string        `json:"type" doc:"Always about:blank; the code tells problems apart." example:"about:blank"`
	Title  string        `json:"title" doc:"The status in words." example:"Not Found"`
	Status int           `json:"status" doc:"The HTTP status." example:"404"`
	Detail string        `json:"detail" doc:"A sentence that says what is wrong and what to do."`
	Code   string        `json:"code" doc:"A stable code, stage.class." example:"gateway.not_found"`
	Errors []fieldDetail `json:"errors,omitempty" doc:"What is wrong with which parameter."`

	header http.Header
}

type fieldDetail struct {
	Location string `json:"location" doc:"Where, such as query.k." example:"query.k"`
	Message  string `json:"message" doc:"What is wrong with it."`
}

func refuse(status int, code, format string, args ...any) *problemDetails {
	return &problemDetails{Type: "about:blank", Title: http.StatusText(status), Status: status,
		Detail: fmt.Sprintf(format, args...), Code: code}
}

func (p *problemDetails) with(key, value string) *problemDetails {
	if p.header == nil {
		p.header = http.Header{}
	}
	p.header.Set(key, value)
	return p
}

// after says when to try again, in seconds.
func (p *problemDetails) after(seconds int) *problemDetails {
	return p.with("Retry-After", strconv.Itoa(seconds))
}

func (p *problemDetails) Error() string             { return p.Code + ": " + p.Detail }
func (p *problemDetails) GetStatus() int            { return p.Status }     // for huma
func (p *problemDetails) GetHeaders() http.Header   { return p.header }     // for huma
func (p *problemDetails) ContentType(string) string { return problemMedia } // for huma

const problemMedia = "application/problem+json"

func busy() *problemDetails {
	return refuse(http.StatusTooManyRequests, codeBusy, "The server is at its limit of such requests; try again in a moment.").after(1)
}

func unavailable() *problemDetails {
	return refuse(http.StatusServiceUnavailable, codeUnavailable, "A service that is needed does not answer; try again later.").after(2)
}

// problemOf is what a client is told about an error; what it must not be told is logged.
func (g *Gateway) problemOf(err error) *problemDetails {
	if p, ok := errors.AsType[*problemDetails](err); ok {
		return p
	}
	if re, ok := errors.AsType[*bus.RemoteError](err); ok {
		return g.remote(re)
	}
	switch {
	case errors.Is(err, bus.ErrFull):
		return full()
	case errors.Is(err, bus.ErrNoService), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return unavailable()
	}
	if f, ok := errors.AsType[*events.Failure](err); ok {
		switch f.Class {
		case events.Invalid:
			return refuse(http.StatusUnprocessableEntity, codeInvalid, "%s", f.Message)
		case events.Network, events.Timeout, events.RateLimited, events.Unavailable, events.CircuitOpen:
			g.log.Warn("a request failed", "error", err)
			return unavailable()
		}
	}
	g.log.Error("a request failed", "error", err)
	return internal()
}

func internal() *problemDetails {
	return refuse(http.StatusInternalServerError, codeInternal, "Something went wrong here; the server's log says what.")
}

// remote passes on what another service said, unless it is about its insides.
func (g *Gateway) remote(re *bus.RemoteError) *problemDetails {
	_, class, _ := strings.Cut(re.Code, ".")
	switch events.Class(class) {
	case events.Invalid, events.Empty, events.Unsupported:
		return refuse(http.StatusUnprocessableEntity, re.Code, "%s", re.Message)
	case events.Limit:
		return refuse(http.StatusRequestEntityTooLarge, re.Code, "%s", re.Message)
	case events.RateLimited:
		return refuse(http.StatusTooManyRequests, re.Code, "%s", re.Message).after(2)
	case events.Network, events.Timeout, events.Unavailable, events.CircuitOpen, events.MissingModel, events.NoOCR:
		return refuse(http.StatusServiceUnavailable, re.Code, "%s", re.Message).after(2)
	}
	g.log.Error("a service failed", "code", re.Code, "error", re.Message)
	return internal()
}

// fail answers with a problem. Nothing must have been written before.
func (g *Gateway) fail(w http.ResponseWriter, r *http.Request, err error) {
	p := g.problemOf(err)
	body, merr := json.Marshal(p)
	if merr != nil { // strings only: cannot be
		panic(merr)
	}
	for k, v := range p.header {
		w.Header()[k] = v
	}
	w.Header().Set("Content-Type", problemMedia)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(p.Status)
	if r.Method != http.MethodHead {
		_, _ = w.Write(body) // a peer that is gone needs no answer
	}
}

// ownProblem turns huma's validation errors into ours.
func ownProblem(_ huma.Context, _ string, v any) (any, error) {
	m, ok := v.(*huma.ErrorModel)
	if !ok {
		return v, nil
	}
	code := codeInvalid
	if m.Status >= 500 {
		code = codeInternal
	}
	p := refuse(m.Status, code, "The request has something that is not allowed: see errors.")
	for _, e := range m.Errors {
		p.Errors = append(p.Errors, fieldDetail{Location: e.Location, Message: e.Message})
	}
	return p, nil
}
