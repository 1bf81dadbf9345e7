package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/cenkalti/backoff/v4"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/leafmill/leafmill/events"
)

// uuidHeader carries a Watermill UUID that is not the event's ce-id; watermill-nats uses the same.
const uuidHeader = "_watermill_message_uuid"

const (
	publishTries   = 4
	publishTimeout = 5 * time.Second // of one try
	codeConflict   = 10071           // JetStream: wrong last sequence
	codeFull       = 10077           // JetStream: maximum bytes exceeded
)

// Publisher is a Watermill Publisher on JetStream. A topic is a subject; metadata become
// headers; each message waits for the stream's acknowledgement.
type Publisher struct {
	js jetstream.JetStream
}

// NewPublisher makes one. The connection belongs to the caller.
func NewPublisher(js jetstream.JetStream) *Publisher { return &Publisher{js: js} }

// Publish stores the messages in order. It stops at the first that cannot be stored.
func (p *Publisher) Publish(topic string, msgs ...*message.Message) error {
	for _, m := range msgs {
		if _, err := p.publish(m.Context(), topic, m); err != nil {
			return err
		}
	}
	return nil
}

// Close does nothing: Watermill's router closes publishers while handlers still use them.
func (p *Publisher) Close() error { return nil }

// publish tries a few times with the same Nats-Msg-Id, so that a lost acknowledgement
// stores nothing twice. The tries outlive the cancellation of ctx: what a handler has
// decided to say should not be lost to a shutdown.
func (p *Publisher) publish(ctx context.Context, subject string, m *message.Message) (*jetstream.PubAck, error) {
	nm := &nats.Msg{Subject: subject, Data: m.Payload, Header: make(nats.Header, len(m.Metadata)+2)}
	for k, v := range m.Metadata {
		nm.Header[k] = []string{v}
	}
	if m.Metadata.Get(events.HeaderID) != m.UUID {
		nm.Header[uuidHeader] = []string{m.UUID}
	}
	if m.Metadata.Get(jetstream.MsgIDHeader) == "" {
		// Scoped by subject: a copy of a message elsewhere is not a duplicate of it.
		nm.Header[jetstream.MsgIDHeader] = []string{subject + "/" + m.UUID}
	}
	ctx = context.WithoutCancel(ctx)
	var ack *jetstream.PubAck
	bo := backoff.NewExponentialBackOff(backoff.WithInitialInterval(100*time.Millisecond), backoff.WithMultiplier(3))
	err := backoff.Retry(func() (err error) {
		tctx, cancel := context.WithTimeout(ctx, publishTimeout)
		defer cancel()
		ack, err = p.js.PublishMsg(tctx, nm, jetstream.WithRetryAttempts(0))
		var api *jetstream.APIError
		if errors.As(err, &api) {
			switch api.ErrorCode {
			case codeConflict:
				return backoff.Permanent(ErrConflict)
			case codeFull:
				return backoff.Permanent(ErrFull)
			}
		}
		if errors.Is(err, nats.ErrMaxPayload) || errors.Is(err, nats.ErrBadSubject) {
			return backoff.Permanent(err)
		}
		return err
	}, backoff.WithMaxRetries(bo, publishTries-1))
	switch {
	case err == nil:
		return ack, nil
	case errors.Is(err, ErrConflict), errors.Is(err, ErrFull):
		return nil, err
	case errors.Is(err, nats.ErrMaxPayload), errors.Is(err, nats.ErrBadSubject):
		return nil, events.Fail(events.Invalid, "The event cannot be published.").Because(err)
	}
	return nil, events.Fail(events.Unavailable, "The bus did not store the event; try again later.").Because(err)
}

// newMessage makes an event in CloudEvents binary mode.
func newMessage(source string, name events.Name, body any, id string) (*message.Message, error) {
	data, err := json.Marshal(body)
	if err != nil {
		return nil, fmt.Errorf("bus: encode %s: %w", name, err)
	}
	begins := name == events.NameSubmitted || name == events.NameSubmittedBulk
	if len(data) > events.MaxSize && !begins {
		return nil, fmt.Errorf("bus: a %s event of %d bytes exceeds %d", name, len(data), events.MaxSize)
	}
	if id == "" {
		id = watermill.NewUUID()
	}
	m := message.NewMessage(id, data)
	m.Metadata = message.Metadata{
		events.HeaderSpecVersion: "1.0",
		events.HeaderID:          id,
		events.HeaderType:        name.Type(),
		events.HeaderSource:      source,
		events.HeaderTime:        time.Now().UTC().Format(time.RFC3339Nano),
		"content-type":           "application/json",
	}
	return m, nil
}
