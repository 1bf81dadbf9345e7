package bus_test

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/tests"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/leafmill/leafmill/internal/bus"
)

// TestWatermillSuite runs Watermill's own tests of a Pub/Sub against ours, on a stream of
// its own in a real server.
func TestWatermillSuite(t *testing.T) {
	srv := startServer(t)
	conn := connect(t, srv, "suite")
	js := conn.JetStream()
	_, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "SUITE", Subjects: []string{"suite.>"}})
	if err != nil {
		t.Fatal(err)
	}
	build := func(t *testing.T, group string) (message.Publisher, message.Subscriber) {
		return bus.NewPublisher(js), bus.NewSubscriber(bus.SubscriberConfig{
			JetStream: js, Stream: "SUITE", Workers: 1, Grace: time.Second, NakDelay: time.Millisecond,
			Log: slog.New(slog.DiscardHandler),
			Consumer: func(topic string) jetstream.ConsumerConfig {
				return jetstream.ConsumerConfig{Durable: group + "_" + strings.ReplaceAll(topic, ".", "_"), FilterSubject: topic,
					AckPolicy: jetstream.AckExplicitPolicy, AckWait: 5 * time.Second, MaxDeliver: -1, MaxAckPending: -1}
			},
		})
	}
	tests.TestPubSub(t,
		tests.Features{ConsumerGroups: true, GuaranteedOrder: false, GuaranteedOrderWithSingleSubscriber: true,
			Persistent:        true,
			GenerateTopicFunc: func(tc tests.TestContext) string { return "suite." + tc.TestID.String() }},
		func(t *testing.T) (message.Publisher, message.Subscriber) { return build(t, "all") },
		build)
}
