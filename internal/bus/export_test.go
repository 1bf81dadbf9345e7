package bus

import (
	"context"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/leafmill/leafmill/events"
)

// MakeForeignConsumer makes a durable with our name and another filter.
func MakeForeignConsumer(ctx context.Context, c *Conn, durable string) error {
	_, err := c.js.CreateConsumer(ctx, events.StreamDocs, jetstream.ConsumerConfig{Durable: durable,
		FilterSubject: "docs.embedded.*", AckPolicy: jetstream.AckExplicitPolicy, MaxDeliver: -1})
	return err
}
