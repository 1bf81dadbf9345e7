package bus

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/leafmill/leafmill/events"
)

// Handler handles one event of a stage. It returns nil when everything it had to say is
// stored, or an error: a [events.Failure] of a permanent class gives the message up at
// once, everything else is tried again.
type Handler func(ctx context.Context, d *Delivery) error

// Delivery is an event on its way through a stage.
type Delivery struct {
	events.Message
	Durable   string
	Delivered int // deliveries of this message so far, this one included

	conn    *Conn
	gate    Gate
	trace   string
	stage   string
	retries atomic.Int64 // retried events of this delivery
}

// cause names what is emitted: the same message makes the same ids when it comes again,
// and the stream drops the doubles; another message (a heal, a replay) makes others.
// embedded and degraded share a word, so that a message has one outcome.
func (d *Delivery) cause(name events.Name, segment string) string {
	if name == events.NameEmbedded || name == events.NameDegraded {
		name = "outcome"
	}
	return strings.Join([]string{strconv.FormatUint(d.Sequence, 10), d.Durable, string(name), segment}, "/")
}

// Emit stores an event of the same job, caused by this message. Segment is the range of
// units it is about; one message emits an event name at most once a segment.
func (d *Delivery) Emit(ctx context.Context, name events.Name, segment string, body any) error {
	m, err := d.message(name, d.cause(name, segment), body)
	if err != nil {
		return err
	}
	m.SetContext(ctx)
	return d.conn.pub.Publish(name.Subject(d.Job), m)
}

// EmitAfter is Emit, but only when the sequence last (0: none) is still the last of the
// event's subject; else ErrConflict.
func (d *Delivery) EmitAfter(ctx context.Context, name events.Name, segment string, body any, last uint64) error {
	m, err := d.message(name, d.cause(name, segment), body)
	if err != nil {
		return err
	}
	m.Metadata.Set(jetstream.ExpectedLastSubjSeqHeader, strconv.FormatUint(last, 10))
	m.SetContext(ctx)
	return d.conn.pub.Publish(name.Subject(d.Job), m)
}

func (d *Delivery) message(name events.Name, msgID string, body any) (*message.Message, error) {
	m, err := newMessage(d.conn.source, name, body, "")
	if err != nil {
		return nil, err
	}
	m.Metadata.Set(jetstream.MsgIDHeader, msgID)
	if d.trace != "" {
		m.Metadata.Set(events.HeaderTrace, d.trace)
	}
	return m, nil
}

// Last is the job's last event of a name, or ErrNotFound.
func (d *Delivery) Last(ctx context.Context, name events.Name) (events.Message, error) {
	return d.conn.Last(ctx, name.Subject(d.Job))
}

// AwaitGate waits, for background work, until the queues of fresh work are short.
func (d *Delivery) AwaitGate(ctx context.Context) error {
	if d.gate == nil {
		return nil
	}
	return d.gate.Wait(ctx)
}

// Retrying says that the stage tries a call of this message again after delay. It is told
// to the user by a retried event; failing to store that stops nothing.
func (d *Delivery) Retrying(ctx context.Context, err error, delay time.Duration) {
	d.retrying(ctx, err, delay, false)
}

func (d *Delivery) retrying(ctx context.Context, err error, delay time.Duration, nak bool) {
	if d.Body == nil || d.Pass.Run == 0 {
		return // undecodable: it is poisoned, not retried
	}
	n := d.retries.Add(1)
	p := events.ProblemOf(d.stage, err)
	segment := d.Body.Covers().String()
	body := events.Retried{Pass: d.Pass, Cause: d.causeOf(), Segment: segment, Stage: d.stage,
		Attempt: d.Delivered, Code: p.Code, Message: clip(p.Message, 500), DelayMS: max(0, delay).Milliseconds(), Nak: nak}
	id := fmt.Sprintf("%s/%d.%d", d.cause(events.NameRetried, segment), d.Delivered, n)
	m, err := d.message(events.NameRetried, id, body)
	if err == nil {
		m.SetContext(ctx)
		err = d.conn.pub.Publish(events.NameRetried.Subject(d.Job), m)
	}
	if err != nil {
		d.conn.log.Warn("a retry could not be told", "job", d.Job, "stage", d.stage, "error", err)
	}
}

func (d *Delivery) causeOf() events.Cause {
	return events.Cause{Sequence: d.Sequence, Subject: d.Subject, Durable: d.Durable}
}

// poisoned is the dead letter of this message.
func (d *Delivery) poisoned(err error) events.Poisoned {
	p := events.ProblemOf(d.stage, err)
	body := events.Poisoned{Pass: d.Pass, Cause: d.causeOf(), Stage: p.Stage, Code: p.Code, Message: clip(p.Message, 2000),
		Attempts: d.Delivered, Original: d.Raw}
	if len(d.Raw) > events.MaxInline {
		body.Original, body.Truncated = d.Raw[:events.MaxInline], true
	}
	r := events.Range{}
	switch {
	case d.Body != nil:
		r = d.Body.Covers()
	case d.Event == events.NameSubmitted || d.Event == events.NameSubmittedBulk:
		r = events.Range{First: 1}
	}
	body.Segment, body.First, body.Last = r.String(), r.First, r.Last
	return body
}

// clip cuts a text to n bytes of valid UTF-8.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "") + "…"
}
