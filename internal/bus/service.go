package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"

	"github.com/leafmill/leafmill/events"
)

// MaxReply bounds the data of a reply, in bytes; longer answers are paged.
const MaxReply = 512 << 10

// ServiceInfo describes a service to `nats micro ls` and to the gates of background work.
type ServiceInfo struct {
	Name        string // registered as leafmill-<name>
	Version     string
	Description string
	Workers     map[string]int    // for each durable
	Metadata    map[string]string // shown to whoever asks, such as the model in use
	Endpoints   []Endpoint
}

// Endpoint answers requests on a subject.
type Endpoint struct {
	Subject string
	Limit   int  // requests handled at once (16 when 0); more wait
	Every   bool // every replica answers, not one of them
	// Handle answers with JSON. Its error is sent as a Problem: the client sees the code.
	Handle func(ctx context.Context, request []byte) (any, error)
}

// Serve registers the service until ctx ends, then answers what is in hand and returns.
func (c *Conn) Serve(ctx context.Context, info ServiceInfo) error {
	version := info.Version
	if version == "" {
		version = "0.0.0"
	}
	md := map[string]string{"instance": c.opts.Instance}
	maps.Copy(md, info.Metadata)
	for d, n := range info.Workers {
		md[workersKey(d)] = strconv.Itoa(n)
	}
	srv, err := micro.AddService(c.nc, micro.Config{Name: "leafmill-" + info.Name, Version: version,
		Description: info.Description, Metadata: md})
	if err != nil {
		return fmt.Errorf("bus: register service %s: %w", info.Name, err)
	}
	var wg sync.WaitGroup
	// Requests in hand may finish after ctx has ended.
	hctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	for _, e := range info.Endpoints {
		limit := e.Limit
		if limit == 0 {
			limit = 16
		}
		slots := make(chan struct{}, limit)
		opts := []micro.EndpointOpt{micro.WithEndpointSubject(e.Subject)}
		if e.Every {
			opts = append(opts, micro.WithEndpointQueueGroupDisabled())
		}
		err := srv.AddEndpoint(endpointName(e.Subject), micro.HandlerFunc(func(r micro.Request) {
			slots <- struct{}{} // micro calls one request after another; here is the bound
			wg.Go(func() {
				defer func() { <-slots }()
				c.answer(hctx, info.Name, e, r)
			})
		}), opts...)
		if err != nil {
			return errors.Join(fmt.Errorf("bus: endpoint %s: %w", e.Subject, err), srv.Stop())
		}
	}
	<-ctx.Done()
	err = srv.Stop()
	stop := time.AfterFunc(5*time.Second, cancel)
	defer stop.Stop()
	wg.Wait()
	if err != nil && !errors.Is(err, nats.ErrConnectionClosed) {
		return fmt.Errorf("bus: stop service %s: %w", info.Name, err)
	}
	return nil
}

func endpointName(subject string) string {
	out := []byte(subject)
	for i, b := range out {
		if b == '.' {
			out[i] = '-'
		}
	}
	return string(out)
}

func (c *Conn) answer(ctx context.Context, stage string, e Endpoint, r micro.Request) {
	out, err := e.Handle(ctx, r.Data())
	var data []byte
	if err == nil {
		data, err = json.Marshal(out)
	}
	if err == nil && len(data) > MaxReply {
		err = fmt.Errorf("bus: reply of %d bytes exceeds %d", len(data), MaxReply)
	}
	// Sent past micro's Request: its Error would race with the goroutine that counts.
	reply := &nats.Msg{Subject: r.Reply(), Data: data}
	if err != nil {
		p := events.ProblemOf(stage, err)
		if rp, ok := errors.AsType[*RemoteError](err); ok {
			p = rp.Problem
		}
		reply.Data, _ = json.Marshal(p)
		reply.Header = nats.Header{micro.ErrorCodeHeader: {p.Code}, micro.ErrorHeader: {oneLine(p.Message)}}
	}
	if reply.Subject == "" {
		return // published, not requested: nobody waits
	}
	if err := c.nc.PublishMsg(reply); err != nil {
		c.log.Warn("a reply could not be sent", "subject", e.Subject, "error", err)
	}
}

// oneLine makes a text fit a header.
func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

// RemoteError is the problem that another service answered with.
type RemoteError struct{ events.Problem }

func (e *RemoteError) Error() string { return e.Code + ": " + e.Message }

// Request asks a service and decodes its answer. Errors: ErrNoService when nobody is
// there, *RemoteError with the service's problem, or a Failure (timeout, unavailable).
func (c *Conn) Request(ctx context.Context, subject string, request, answer any) error {
	data, err := json.Marshal(request)
	if err != nil {
		return fmt.Errorf("bus: encode request: %w", err)
	}
	m, err := c.nc.RequestWithContext(ctx, subject, data)
	switch {
	case errors.Is(err, nats.ErrNoResponders):
		return ErrNoService
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, nats.ErrTimeout):
		return events.Fail(events.Timeout, "The service behind %s did not answer in time.", subject).Because(err)
	case err != nil:
		return unavailable(err)
	}
	return decodeReply(m, answer)
}

func decodeReply(m *nats.Msg, answer any) error {
	if m.Header.Get(micro.ErrorCodeHeader) != "" {
		re := &RemoteError{events.Problem{Code: m.Header.Get(micro.ErrorCodeHeader), Message: m.Header.Get(micro.ErrorHeader)}}
		_ = json.Unmarshal(m.Data, &re.Problem) // the headers say the same, shorter
		return re
	}
	if err := json.Unmarshal(m.Data, answer); err != nil {
		return events.Fail(events.Malformed, "The service's answer cannot be read.").Because(err)
	}
	return nil
}

// Replicas lists the Leafmill services that answer within a short time.
func (c *Conn) Replicas(ctx context.Context) ([]micro.Info, error) {
	var out []micro.Info
	err := c.gather(ctx, "$SRV.INFO", nil, 100*time.Millisecond, func(m *nats.Msg) {
		var i micro.Info
		if json.Unmarshal(m.Data, &i) == nil && len(i.Name) > 9 && i.Name[:9] == "leafmill-" {
			out = append(out, i)
		}
	})
	return out, err
}

// Gather asks every replica behind a subject and calls f with each answer's data, until
// none has come for quiet.
func (c *Conn) Gather(ctx context.Context, subject string, request any, quiet time.Duration, f func([]byte, error)) error {
	data, err := json.Marshal(request)
	if err != nil {
		return fmt.Errorf("bus: encode request: %w", err)
	}
	return c.gather(ctx, subject, data, quiet, func(m *nats.Msg) {
		var raw json.RawMessage
		err := decodeReply(m, &raw)
		f(raw, err)
	})
}

func (c *Conn) gather(ctx context.Context, subject string, data []byte, quiet time.Duration, f func(*nats.Msg)) error {
	inbox := c.nc.NewRespInbox()
	sub, err := c.nc.SubscribeSync(inbox)
	if err != nil {
		return unavailable(err)
	}
	defer func() { _ = sub.Unsubscribe() }()
	if err := c.nc.PublishRequest(subject, inbox, data); err != nil {
		return unavailable(err)
	}
	for {
		wait, cancel := context.WithTimeout(ctx, quiet)
		m, err := sub.NextMsgWithContext(wait)
		cancel()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, context.DeadlineExceeded):
			return nil
		case errors.Is(err, nats.ErrNoResponders):
			return nil
		case err != nil:
			return unavailable(err)
		}
		if m.Header.Get("Status") == "503" {
			return nil
		}
		f(m)
	}
}

// ServiceNames lists the names that answer now, with how many replicas each.
func (c *Conn) ServiceNames(ctx context.Context) (map[string]int, error) {
	infos, err := c.Replicas(ctx)
	if err != nil {
		return nil, err
	}
	out := map[string]int{}
	for _, i := range infos {
		out[i.Name[9:]]++
	}
	return out, nil
}
