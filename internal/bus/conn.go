// Package bus moves events: a Watermill Publisher and Subscriber on NATS JetStream, the
// middleware chain around every handler, the streams and durables, the embedded server,
// and the readers of the stream.
//
// Guarantees:
//   - Publish returns only after the stream has stored the event; a retry of it carries
//     the same Nats-Msg-Id, so the stream keeps one.
//   - A delivered message is acknowledged only after its handler returned nil, or after
//     its dead letter is stored. A crash, a kill or a lost acknowledgement brings it back,
//     so handlers see a message at least once and must be idempotent.
//   - What a handler emits is named by the message it handles (see [Delivery.Emit]):
//     handling a message twice stores its events once within the dedup window.
//   - At most Workers messages of a consumer are in the process, all of them heartbeated.
//   - Shutdown never poisons.
package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/leafmill/leafmill/events"
)

// Errors that callers tell apart.
var (
	// ErrConflict: the subject's last sequence is not the expected one.
	ErrConflict = errors.New("bus: the subject has a later event")
	// ErrNotFound: the stream has no such message.
	ErrNotFound = errors.New("bus: no such event")
	// ErrFull: the stream is at its MaxBytes and refuses new events.
	ErrFull = errors.New("bus: the stream is full")
	// ErrNoService: nobody answers on this subject.
	ErrNoService = errors.New("bus: no service answers")
)

// Options of a connection.
type Options struct {
	URL      string  // nats://host:port, with user and password if the server wants them
	Server   *Server // an embedded server: connected in process, URL is ignored
	Service  string  // the service's name, for ce-source and the connection's name
	Instance string  // the replica, unique
	Log      *slog.Logger
}

// Conn is a service's connection to the bus. It reconnects for ever; requests during an
// outage fail with a [events.Failure] of class unavailable.
type Conn struct {
	nc     *nats.Conn
	js     jetstream.JetStream
	pub    *Publisher
	log    *slog.Logger
	source string
	opts   Options
}

// Connect retries with backoff until the server answers or ctx ends, so that services
// start in any order.
func Connect(ctx context.Context, o Options) (*Conn, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	no := []nats.Option{
		nats.Name("leafmill-" + o.Service + "/" + o.Instance),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(250 * time.Millisecond),
		nats.ReconnectJitter(250*time.Millisecond, time.Second),
		nats.PingInterval(20 * time.Second),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				o.Log.Warn("lost the bus", "error", err)
			}
		}),
		nats.ReconnectHandler(func(nc *nats.Conn) { o.Log.Info("back on the bus", "server", nc.ConnectedUrlRedacted()) }),
	}
	if o.Server != nil {
		no = append(no, nats.InProcessServer(o.Server.ns))
	}
	var nc *nats.Conn
	bo := backoff.NewExponentialBackOff(backoff.WithInitialInterval(100*time.Millisecond),
		backoff.WithMaxInterval(2*time.Second), backoff.WithMaxElapsedTime(0))
	err := backoff.RetryNotify(func() (err error) {
		nc, err = nats.Connect(o.URL, no...)
		if errors.Is(err, nats.ErrAuthorization) || errors.Is(err, nats.ErrNoServers) && o.URL == "" {
			return backoff.Permanent(err)
		}
		return err
	}, backoff.WithContext(bo, ctx), func(err error, d time.Duration) {
		o.Log.Warn("waiting for the bus", "error", err, "retry_in", d.Round(time.Millisecond))
	})
	if err != nil {
		return nil, fmt.Errorf("bus: connect to %s: %w", o.URL, err)
	}
	js, err := jetstream.New(nc, jetstream.WithDefaultTimeout(5*time.Second))
	if err != nil {
		nc.Close()
		return nil, fmt.Errorf("bus: %w", err)
	}
	return &Conn{nc: nc, js: js, pub: NewPublisher(js), log: o.Log, opts: o,
		source: "/leafmill/" + o.Service + "/" + o.Instance}, nil
}

// Close drops the connection. Whoever opened it closes it, after its services have ended.
func (c *Conn) Close() { c.nc.Close() }

// JetStream is for internal/artifacts, which keeps its buckets there.
func (c *Conn) JetStream() jetstream.JetStream { return c.js }

// Instance is the replica's name.
func (c *Conn) Instance() string { return c.opts.Instance }

// Healthy says whether the connection is up right now.
func (c *Conn) Healthy() error {
	if !c.nc.IsConnected() {
		return events.Fail(events.Unavailable, "The bus is not reachable; reconnecting.")
	}
	return nil
}

// PublishOptions of an event that is not the answer to another.
type PublishOptions struct {
	MsgID string  // Nats-Msg-Id; none when empty
	Last  *uint64 // the sequence that must be the subject's last (0: none yet), else ErrConflict
	ID    string  // ce-id; a new UUID when empty
	Trace string  // traceparent
}

// Publish stores an event of a job and returns its sequence. Errors: ErrConflict, ErrFull,
// or a Failure of class unavailable after a few tries.
func (c *Conn) Publish(ctx context.Context, name events.Name, job string, body any, o PublishOptions) (uint64, error) {
	m, err := newMessage(c.source, name, body, o.ID)
	if err != nil {
		return 0, err
	}
	if o.MsgID != "" {
		m.Metadata.Set(jetstream.MsgIDHeader, o.MsgID)
	}
	if o.Last != nil {
		m.Metadata.Set(jetstream.ExpectedLastSubjSeqHeader, strconv.FormatUint(*o.Last, 10))
	}
	if o.Trace != "" {
		m.Metadata.Set(events.HeaderTrace, o.Trace)
	}
	m.SetContext(ctx)
	ack, err := c.pub.publish(ctx, name.Subject(job), m)
	if err != nil {
		return 0, err
	}
	return ack.Sequence, nil
}
