package bus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/leafmill/leafmill/events"
)

// Layout is what must exist on the server before a service works.
type Layout struct {
	// MaxBytes of the stream DOCS. 0 keeps what is there, and creates it with 10 GiB.
	MaxBytes int64
	// Replicas of streams and buckets (1 when 0).
	Replicas int
	// AckWait of the durables: how long a crashed worker keeps its message (30 s when 0).
	AckWait time.Duration
}

const (
	defaultMaxBytes = 10 << 30
	defaultAckWait  = 30 * time.Second
	dedupWindow     = 15 * time.Minute
)

// Ensure creates the streams, buckets and durables that are missing and compares the
// others: a difference that would lose or misdeliver events is an error that names it.
// Any number of services may call it at once.
func (c *Conn) Ensure(ctx context.Context, l Layout) error {
	if l.Replicas == 0 {
		l.Replicas = 1
	}
	docs := jetstream.StreamConfig{
		Name: events.StreamDocs, Subjects: []string{"docs.*.*"},
		Description: "Leafmill: every event of every document",
		Retention:   jetstream.LimitsPolicy, Discard: jetstream.DiscardNew, Storage: jetstream.FileStorage,
		MaxBytes: l.MaxBytes, Duplicates: dedupWindow, Replicas: l.Replicas, AllowDirect: true,
	}
	services := jetstream.StreamConfig{
		Name: events.StreamServices, Subjects: []string{"services.*.*"},
		Description: "Leafmill: what happens to services",
		Retention:   jetstream.LimitsPolicy, Discard: jetstream.DiscardOld, Storage: jetstream.FileStorage,
		MaxBytes: 256 << 20, MaxAge: 30 * 24 * time.Hour, Duplicates: 2 * time.Minute, Replicas: l.Replicas, AllowDirect: true,
	}
	for _, sc := range []jetstream.StreamConfig{docs, services} {
		if err := c.ensureStream(ctx, sc); err != nil {
			return err
		}
	}
	for _, b := range []string{events.BucketOriginals, events.BucketArtifacts} {
		_, err := c.js.CreateObjectStore(ctx, jetstream.ObjectStoreConfig{Bucket: b, Replicas: l.Replicas})
		if err != nil && !errors.Is(err, jetstream.ErrBucketExists) {
			return fmt.Errorf("bus: bucket %s: %w", b, err)
		}
	}
	_, err := c.js.CreateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: events.BucketControl, Replicas: l.Replicas})
	if err != nil && !errors.Is(err, jetstream.ErrBucketExists) {
		return fmt.Errorf("bus: bucket %s: %w", events.BucketControl, err)
	}
	for _, s := range events.Pipeline {
		if err := c.ensureConsumer(ctx, s, l); err != nil {
			return err
		}
	}
	return nil
}

func (c *Conn) ensureStream(ctx context.Context, want jetstream.StreamConfig) error {
	st, err := c.js.Stream(ctx, want.Name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		create := want
		if create.MaxBytes == 0 {
			create.MaxBytes = defaultMaxBytes
		}
		if _, err = c.js.CreateStream(ctx, create); err == nil {
			return nil
		}
		if !errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
			return fmt.Errorf("bus: create stream %s: %w", want.Name, err)
		}
		st, err = c.js.Stream(ctx, want.Name) // another service was faster
	}
	if err != nil {
		return fmt.Errorf("bus: stream %s: %w", want.Name, err)
	}
	have := st.CachedInfo().Config
	switch {
	case !slices.Equal(have.Subjects, want.Subjects):
		return mismatch("stream "+want.Name, "subjects", have.Subjects, want.Subjects)
	case have.Retention != want.Retention:
		return mismatch("stream "+want.Name, "retention", have.Retention, want.Retention)
	case have.Discard != want.Discard:
		return mismatch("stream "+want.Name, "discard policy", have.Discard, want.Discard)
	case have.MaxAge != want.MaxAge:
		return mismatch("stream "+want.Name, "max age", have.MaxAge, want.MaxAge)
	case have.MaxMsgsPerSubject > 0 || have.MaxMsgs > 0:
		return mismatch("stream "+want.Name, "message limits", "some", "none")
	}
	if want.MaxBytes > 0 && have.MaxBytes != want.MaxBytes {
		have.MaxBytes = want.MaxBytes
		if _, err := c.js.UpdateStream(ctx, have); err != nil {
			return fmt.Errorf("bus: set max bytes of stream %s: %w", want.Name, err)
		}
	}
	return nil
}

func (c *Conn) ensureConsumer(ctx context.Context, s events.Stage, l Layout) error {
	want := consumerConfig(s, l)
	have, err := c.js.Consumer(ctx, events.StreamDocs, s.Durable)
	if errors.Is(err, jetstream.ErrConsumerNotFound) {
		_, err = c.js.CreateConsumer(ctx, events.StreamDocs, want)
		if err == nil {
			return nil
		}
		have, err = c.js.Consumer(ctx, events.StreamDocs, s.Durable)
	}
	if err != nil {
		return fmt.Errorf("bus: consumer %s: %w", s.Durable, err)
	}
	hc := have.CachedInfo().Config
	filters := hc.FilterSubjects
	if hc.FilterSubject != "" {
		filters = []string{hc.FilterSubject}
	}
	switch {
	case !sameSet(filters, s.Filters()):
		return mismatch("consumer "+s.Durable, "filter subjects", filters, s.Filters())
	case hc.AckPolicy != jetstream.AckExplicitPolicy:
		return mismatch("consumer "+s.Durable, "ack policy", hc.AckPolicy, jetstream.AckExplicitPolicy)
	case hc.MaxDeliver != -1:
		return mismatch("consumer "+s.Durable, "max deliver", hc.MaxDeliver, -1)
	}
	return nil
}

// consumerConfig is the durable of a stage. MaxDeliver is -1: a message is given up by
// what is wrong with it or by its age, never by a count that crashes share.
func consumerConfig(s events.Stage, l Layout) jetstream.ConsumerConfig {
	if l.AckWait == 0 {
		l.AckWait = defaultAckWait
	}
	cc := jetstream.ConsumerConfig{
		Durable: s.Durable, AckPolicy: jetstream.AckExplicitPolicy, DeliverPolicy: jetstream.DeliverAllPolicy,
		AckWait: l.AckWait, MaxDeliver: -1, MaxAckPending: -1, MaxWaiting: 512,
	}
	if f := s.Filters(); len(f) == 1 {
		cc.FilterSubject = f[0]
	} else {
		cc.FilterSubjects = f
	}
	return cc
}

func sameSet(a, b []string) bool {
	a, b = slices.Clone(a), slices.Clone(b)
	slices.Sort(a)
	slices.Sort(b)
	return slices.Equal(a, b)
}

func mismatch(what, field string, have, want any) error {
	return fmt.Errorf("bus: %s exists with another %s: it has %v, this release needs %v; "+
		"change it with the nats CLI, or delete it if it is not Leafmill's", what, field, have, want)
}
