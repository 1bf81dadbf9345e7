package model

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/leafmill/leafmill/events"
	"github.com/leafmill/leafmill/internal/guard"
)

const (
	openAIBatch = 32

	// A value of a vector is at most some 25 bytes of JSON; 8192 is twice the longest
	// vector of any known model.
	maxDims     = 8192
	maxValueLen = 32
	maxOverhead = 64 << 10
	maxBatch    = 2048 // what OpenAI allows

	endpointName = "The embedding endpoint"
)

// OpenAIConfig names an endpoint that speaks the OpenAI embeddings API.
type OpenAIConfig struct {
	BaseURL       string // http or https; "/embeddings" is put behind it
	APIKey        string // sent as a bearer token; none when empty
	Model         string
	QueryPrefix   string // put before every query, such as "query: "
	PassagePrefix string // put before every passage
	Batch         int    // texts in a call; 32 when 0

	// Client makes the calls; one with the standard transport when nil. Its CheckRedirect is
	// not used. Time-outs come from the context of the call.
	Client *http.Client
}

// OpenAI calls an endpoint. Guarantees:
//
//   - an answer is taken only whole: a vector for every text, each once, finite, all as
//     long as the first ones ever were; anything else is malformed;
//   - no answer makes it read more than the vectors asked for can need;
//   - the key goes to the configured host only, whatever redirects say, and is in no error.
type OpenAI struct {
	cfg      OpenAIConfig
	endpoint string
	client   http.Client
	dims     atomic.Int64 // of the first answer; 0 before
}

// NewOpenAI checks the settings; it makes no call.
func NewOpenAI(cfg OpenAIConfig) (*OpenAI, error) {
	base, err := url.Parse(cfg.BaseURL)
	if err != nil || base.Scheme != "http" && base.Scheme != "https" || base.Host == "" || base.RawQuery != "" || base.Fragment != "" {
		// The URL may hold a password: it is not repeated.
		return nil, events.Fail(events.Invalid, "LEAFMILL_EMBED_BASE_URL is no URL of an endpoint; write https://host/v1.")
	}
	if cfg.Model == "" {
		return nil, events.Fail(events.Invalid, "LEAFMILL_EMBED_MODEL is empty; name the endpoint's model.")
	}
	if strings.ContainsAny(cfg.APIKey, "\r\n\x00") {
		return nil, events.Fail(events.Invalid, "LEAFMILL_EMBED_API_KEY has a line break in it.")
	}
	if cfg.Batch == 0 {
		cfg.Batch = openAIBatch
	}
	if cfg.Batch < 1 || cfg.Batch > maxBatch {
		return nil, events.Fail(events.Invalid, "A batch is 1 to %d texts, not %d.", maxBatch, cfg.Batch)
	}
	o := &OpenAI{cfg: cfg, endpoint: base.JoinPath("embeddings").String()}
	if cfg.Client != nil {
		o.client = *cfg.Client
	} else if shared, ok := http.DefaultTransport.(*http.Transport); ok {
		o.client.Transport = shared.Clone() // its own connections, that Close can let go
	}
	// An API does not redirect a POST; to follow would drop the texts (303) or take them and
	// the key somewhere else.
	o.client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return o, nil
}

// Name is the model's.
func (o *OpenAI) Name() string { return o.cfg.Model }

// Batch is the configured one.
func (o *OpenAI) Batch() int { return o.cfg.Batch }

// Space is openai/<model>/<dimensions>[/<hash of the prefixes>], empty before the first answer.
func (o *OpenAI) Space() string {
	dims := o.dims.Load()
	if dims == 0 {
		return ""
	}
	space := "openai/" + o.cfg.Model + "/" + strconv.FormatInt(dims, 10)
	if o.cfg.QueryPrefix != "" || o.cfg.PassagePrefix != "" {
		sum := sha256.Sum256(fmt.Appendf(nil, "%q %q", o.cfg.QueryPrefix, o.cfg.PassagePrefix))
		space += "/" + hex.EncodeToString(sum[:4])
	}
	return space
}

// Close lets idle connections go.
func (o *OpenAI) Close() error {
	o.client.CloseIdleConnections()
	return nil
}

// Embed makes one call. No texts need none.
func (o *OpenAI) Embed(ctx context.Context, kind Kind, texts []string) (Result, error) {
	if len(texts) == 0 {
		return Result{}, nil
	}
	prefix := o.cfg.PassagePrefix
	if kind == Query {
		prefix = o.cfg.QueryPrefix
	}
	input := make([]string, len(texts))
	length := 0
	for i, text := range texts {
		if strings.TrimSpace(text) == "" {
			return Result{}, events.Fail(events.Invalid, "The text is empty: there is nothing to embed.")
		}
		input[i] = prefix + text
		length += len(input[i])
	}
	answer, err := o.post(ctx, input)
	if err != nil {
		return Result{}, err
	}
	vectors, tokens, err := decodeEmbeddings(answer, len(texts))
	if err != nil {
		return Result{}, events.Fail(events.Malformed, "%s gave an answer that is no embeddings; check LEAFMILL_EMBED_BASE_URL and LEAFMILL_EMBED_MODEL.", endpointName).Because(err)
	}
	if got := int64(len(vectors[0])); !o.dims.CompareAndSwap(0, got) && o.dims.Load() != got {
		return Result{}, events.Fail(events.Malformed,
			"%s gives vectors of %d dimensions that had %d before: another model answers under the same name. Restart Leafmill when that is meant.",
			endpointName, got, o.dims.Load())
	}
	if tokens == 0 {
		tokens = max(length/4, 1)
	}
	return Result{Vectors: vectors, Tokens: tokens}, nil
}

// post gives the body of a 2xx answer.
func (o *OpenAI) post(ctx context.Context, input []string) ([]byte, error) {
	body, err := json.Marshal(struct {
		Model    string   `json:"model"`
		Input    []string `json:"input"`
		Encoding string   `json:"encoding_format"`
	}{o.cfg.Model, input, "float"})
	if err != nil {
		return nil, err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, o.endpoint, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("Accept", "application/json")
	if o.cfg.APIKey != "" {
		request.Header.Set("Authorization", "Bearer "+o.cfg.APIKey)
	}
	response, err := o.client.Do(request)
	if err != nil {
		return nil, guard.FromTransport(endpointName, withoutURL(err))
	}
	defer func() { _ = response.Body.Close() }() // only read from
	if response.StatusCode < 200 || response.StatusCode > 299 {
		return nil, o.refused(response)
	}
	limit := int64(len(input))*maxDims*maxValueLen + maxOverhead
	answer, err := io.ReadAll(io.LimitReader(response.Body, limit+1))
	if err != nil {
		return nil, guard.FromTransport(endpointName, withoutURL(err))
	}
	if int64(len(answer)) > limit {
		return nil, events.Fail(events.Malformed, "%s gave an answer of more than %d bytes for %d texts.", endpointName, limit, len(input))
	}
	return answer, nil
}

// refused is the failure that an answer other than 2xx means. The endpoint's own words are
// not passed on: some repeat the key or the texts.
func (o *OpenAI) refused(response *http.Response) error {
	// A little is read, so that the connection can be used again.
	_, _ = io.CopyN(io.Discard, response.Body, maxOverhead)
	switch status := response.StatusCode; {
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		return events.Fail(events.Invalid, "%s refused the key (HTTP %d); check LEAFMILL_EMBED_API_KEY.", endpointName, status)
	case status == http.StatusNotFound:
		return events.Fail(events.Invalid, "%s does not know this address or the model %q (HTTP 404); check LEAFMILL_EMBED_BASE_URL and LEAFMILL_EMBED_MODEL.", endpointName, o.cfg.Model)
	case status >= 300 && status <= 399:
		return events.Fail(events.Invalid, "%s sends elsewhere (HTTP %d), which is not followed; set LEAFMILL_EMBED_BASE_URL to the address that answers.", endpointName, status)
	default:
		return guard.FromStatus(endpointName, status, response.Header)
	}
}

// withoutURL takes the address off a client's error: it may hold a password.
func withoutURL(err error) error {
	if wrapped, ok := errors.AsType[*url.Error](err); ok {
		return wrapped.Err
	}
	return err
}
