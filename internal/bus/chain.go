package bus

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"

	"github.com/leafmill/leafmill/events"
)

// Retries of a handler in process: short, so that a hiccup costs no redelivery and a
// real outage goes back to the stream soon. Under 2 s in all.
const (
	handlerRetries  = 3
	retryInitial    = 100 * time.Millisecond
	retryMultiplier = 3
	retryMax        = time.Second
	nakInitial      = time.Second
	nakMax          = 5 * time.Minute
	panicsToPoison  = 5
)

var (
	errNak   = errors.New("bus: goes back to the stream")
	errPanic = errors.New("bus: handler panicked")
)

// stageChain is the middleware around a stage's handler, outermost first: telemetry,
// poison queue, settle, retry, decide, time-out, recoverer. Any other order is wrong:
// outside the poison queue a panic would be nakked for ever, and an unfiltered poison
// queue would bury messages at every shutdown.
type stageChain struct {
	conn    *Conn
	cons    Consumer
	stage   string
	gate    Gate
	maxAge  time.Duration
	metrics *Metrics
	log     *slog.Logger
}

func (s *stageChain) middlewares() ([]message.HandlerMiddleware, error) {
	poison, err := middleware.PoisonQueueWithFilter(deadLetters{s.conn}, "docs.poisoned",
		func(err error) bool { return !errors.Is(err, errNak) })
	if err != nil {
		return nil, err
	}
	retry := middleware.Retry{MaxRetries: handlerRetries, InitialInterval: retryInitial, Multiplier: retryMultiplier,
		MaxInterval: retryMax, RandomizationFactor: 0.5, ResetContextOnRetry: true}
	return []message.HandlerMiddleware{
		s.telemetry, poison, s.settle, retry.Middleware, s.decide, middleware.Timeout(s.cons.Timeout), recoverer,
	}, nil
}

// attemptKey holds what the inner middleware of one delivery tell the outer ones.
type attemptKey struct{}

type attempt struct {
	d       *Delivery
	err     error // the last error of the handler
	final   bool  // err needs no further try in this process
	tries   int
	panics  bool
	outcome string
}

func attemptOf(msg *message.Message) *attempt {
	return msg.Context().Value(attemptKey{}).(*attempt)
}

// telemetry decodes the event, once a delivery, and records how it went.
func (s *stageChain) telemetry(h message.HandlerFunc) message.HandlerFunc {
	return func(msg *message.Message) ([]*message.Message, error) {
		st := settlementOf(msg.Context())
		m, derr := events.Decode(events.Stored{Sequence: st.meta.Sequence.Stream, Subject: st.native.Subject(),
			Time: st.meta.Timestamp, Header: st.native.Headers().Get, Data: st.native.Data()})
		d := &Delivery{Message: m, Durable: s.cons.Durable, Delivered: int(st.meta.NumDelivered), conn: s.conn,
			gate: s.gate, trace: msg.Metadata.Get(events.HeaderTrace), stage: s.stage}
		a := &attempt{d: d, err: derr, final: derr != nil}
		msg.SetContext(context.WithValue(msg.Context(), attemptKey{}, a))
		if d.Delivered > 1 {
			s.metrics.redelivered(s.cons.Durable)
		}
		began := time.Now()
		out, err := h(msg)
		if a.outcome == "" {
			a.outcome = "ok"
		}
		took := time.Since(began)
		s.metrics.processed(s.cons.Durable, m.Event, a.outcome, took)
		level := slog.LevelDebug
		if a.outcome != "ok" {
			level = slog.LevelWarn
		}
		s.log.Log(msg.Context(), level, a.outcome, "event", m.Event, "job", m.Job, "sequence", m.Sequence,
			"took", took.Round(time.Millisecond), "error", a.err)
		return out, err
	}
}

// settle turns what is left of an error into a dead letter or a delayed nak.
func (s *stageChain) settle(h message.HandlerFunc) message.HandlerFunc {
	return func(msg *message.Message) ([]*message.Message, error) {
		a, st, ctx := attemptOf(msg), settlementOf(msg.Context()), msg.Context()
		if a.err == nil {
			out, err := h(msg)
			if a.err == nil && err == nil {
				return out, nil
			}
			if a.err == nil {
				a.err = err
			}
		}
		d := a.d
		switch {
		case st.stopping.Err() != nil && (ctx.Err() != nil || events.Retryable(a.err)):
			a.outcome = "interrupted"
			d.retrying(ctx, events.Fail(events.Unavailable, "The service is shutting down; another takes over.").Because(a.err), 0, true)
			st.nakIn(-1)
			return nil, errNak
		case !events.Retryable(a.err):
			a.outcome = "poisoned"
			return nil, a.err
		case a.panics && d.Delivered >= panicsToPoison:
			a.outcome = "poisoned"
			return nil, events.Fail(events.Internal, "This document makes the %s stage crash; please report it.", d.stage).Because(a.err)
		case d.Delivered > 2 && time.Since(st.meta.Timestamp) > s.maxAge:
			a.outcome = "poisoned"
			return nil, a.err
		}
		delay := nakDelay(d.Delivered)
		a.outcome = "nak"
		d.retrying(ctx, a.err, delay, true)
		st.nakIn(delay)
		return nil, errNak
	}
}

// nakDelay doubles with each delivery, with half of it jitter.
func nakDelay(delivered int) time.Duration {
	d := nakMax
	if delivered < 10 {
		d = min(nakMax, nakInitial<<max(0, delivered-1))
	}
	return d/2 + rand.N(d/2)
}

// decide classifies each try's error: only what may pass by itself within seconds is left
// to Retry. It keeps the error itself, which a cancelled wait of Retry would hide.
func (s *stageChain) decide(h message.HandlerFunc) message.HandlerFunc {
	return func(msg *message.Message) ([]*message.Message, error) {
		a, st := attemptOf(msg), settlementOf(msg.Context())
		outer := msg.Context()
		a.tries++
		out, err := h(msg)
		a.err = err
		if err == nil {
			return out, nil
		}
		if errors.Is(err, context.DeadlineExceeded) && outer.Err() == nil && events.ClassOf(err) == events.Internal {
			a.err = events.Fail(events.Timeout, "The %s stage took longer than %s.", s.stage, s.cons.Timeout).Because(err)
		}
		a.panics = errors.Is(err, errPanic)
		if !events.Retryable(a.err) || st.stopping.Err() != nil || outer.Err() != nil ||
			events.ClassOf(a.err) == events.Timeout {
			return nil, nil // settle looks at a.err
		}
		if a.tries <= handlerRetries {
			a.d.retrying(outer, a.err, retryInitial, false)
		}
		return nil, a.err
	}
}

// recoverer turns a panic into an error that decide can tell.
func recoverer(h message.HandlerFunc) message.HandlerFunc {
	rec := middleware.Recoverer(h)
	return func(msg *message.Message) ([]*message.Message, error) {
		out, err := rec(msg)
		if p, ok := errors.AsType[middleware.RecoveredPanicError](err); ok {
			err = errors.Join(errPanic, p)
		}
		return out, err
	}
}

// deadLetters is the Publisher of the poison queue: it stores a poisoned event, which has
// an id of its own (a copy under the message's id would be dropped as a duplicate).
type deadLetters struct{ conn *Conn }

func (p deadLetters) Publish(_ string, msgs ...*message.Message) error {
	for _, msg := range msgs {
		a := attemptOf(msg)
		body := a.d.poisoned(a.err)
		id := a.d.cause(events.NamePoisoned, body.Segment)
		m, err := a.d.message(events.NamePoisoned, id, body)
		if err != nil {
			return err
		}
		m.SetContext(msg.Context())
		job := a.d.Job
		if !events.ValidJob(job) {
			job = "invalid" // a subject of our stream whose last token is no job
		}
		if err := p.conn.pub.Publish(events.NamePoisoned.Subject(job), m); err != nil {
			a.outcome = "nak"
			return err
		}
	}
	return nil
}

func (p deadLetters) Close() error { return nil }
