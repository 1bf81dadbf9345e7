package bus

import (
	"context"
	"errors"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/leafmill/leafmill/events"
)

// Read is a stored event with the error of its decoding, if any.
type Read struct {
	events.Message
	Err error
	// Pending is how many more matching events the stream had when this one was sent.
	Pending uint64
}

// Bounds are the stream's first and last sequence; last is 0 when it never had an event.
func (c *Conn) Bounds(ctx context.Context) (first, last uint64, err error) {
	s, err := c.js.Stream(ctx, events.StreamDocs)
	if err != nil {
		return 0, 0, unavailable(err)
	}
	st := s.CachedInfo().State
	return st.FirstSeq, st.LastSeq, nil
}

// Fill is how full the stream is, 0 to 1.
func (c *Conn) Fill(ctx context.Context) (float64, error) {
	s, err := c.js.Stream(ctx, events.StreamDocs)
	if err != nil {
		return 0, unavailable(err)
	}
	if i := s.CachedInfo(); i.Config.MaxBytes > 0 {
		return float64(i.State.Bytes) / float64(i.Config.MaxBytes), nil
	}
	return 0, nil
}

// Last is the last event on a subject, or ErrNotFound.
func (c *Conn) Last(ctx context.Context, subject string) (events.Message, error) {
	s, err := c.js.Stream(ctx, events.StreamDocs)
	if err != nil {
		return events.Message{}, unavailable(err)
	}
	raw, err := s.GetLastMsgForSubject(ctx, subject)
	return decodeRaw(raw, err)
}

// Get is the event of a sequence, or ErrNotFound.
func (c *Conn) Get(ctx context.Context, sequence uint64) (events.Message, error) {
	s, err := c.js.Stream(ctx, events.StreamDocs)
	if err != nil {
		return events.Message{}, unavailable(err)
	}
	raw, err := s.GetMsg(ctx, sequence)
	return decodeRaw(raw, err)
}

func decodeRaw(raw *jetstream.RawStreamMsg, err error) (events.Message, error) {
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return events.Message{}, ErrNotFound
	}
	if err != nil {
		return events.Message{}, unavailable(err)
	}
	return events.Decode(events.Stored{Sequence: raw.Sequence, Subject: raw.Subject, Time: raw.Time,
		Header: raw.Header.Get, Data: raw.Data})
}

func unavailable(err error) error {
	return events.Fail(events.Unavailable, "The bus does not answer; try again later.").Because(err)
}

// Reader reads the stream in order, from a sequence on, for ever. It survives reconnects
// and never misses or repeats an event.
type Reader struct {
	ch   chan Read
	err  error // set before ch closes
	stop context.CancelFunc
	done chan struct{}
}

const (
	readerBuffer = 512
	readerBytes  = 4 << 20 // of a pull

	followBuffer = 16
	followBytes  = 2 << 20 // more than the largest message
)

// Read starts reading at sequence from (1 is the beginning; 0 is only what is new), of
// all events or of the given subjects. The reader ends with ctx or Close.
func (c *Conn) Read(ctx context.Context, from uint64, subjects ...string) (*Reader, error) {
	return c.read(ctx, from, readerBuffer, readerBytes, subjects)
}

// Follow is Read for one of many readers that may be slow: it holds a few events only.
func (c *Conn) Follow(ctx context.Context, from uint64, subjects ...string) (*Reader, error) {
	return c.read(ctx, from, followBuffer, followBytes, subjects)
}

func (c *Conn) read(ctx context.Context, from uint64, buffer, bytes int, subjects []string) (*Reader, error) {
	oc := jetstream.OrderedConsumerConfig{FilterSubjects: subjects, DeliverPolicy: jetstream.DeliverByStartSequencePolicy,
		OptStartSeq: from, InactiveThreshold: readerForgotten}
	if from == 0 {
		oc.DeliverPolicy, oc.OptStartSeq = jetstream.DeliverNewPolicy, 0
	}
	cons, err := c.js.OrderedConsumer(ctx, events.StreamDocs, oc)
	if err != nil {
		return nil, unavailable(err)
	}
	it, err := cons.Messages(jetstream.PullMaxBytes(bytes))
	if err != nil {
		c.forget(ctx, cons)
		return nil, unavailable(err)
	}
	ctx, stop := context.WithCancel(ctx)
	r := &Reader{ch: make(chan Read, buffer), stop: stop, done: make(chan struct{})}
	go func() {
		defer close(r.done)
		defer close(r.ch)
		defer c.forget(ctx, cons)
		defer it.Stop()
		for {
			jm, err := it.Next(jetstream.NextContext(ctx))
			if ctx.Err() != nil {
				r.err = ctx.Err()
				return
			}
			if err != nil {
				if errors.Is(err, jetstream.ErrMsgIteratorClosed) {
					r.err = unavailable(err)
					return
				}
				c.log.Warn("reading the stream", "error", err)
				pause(ctx, 200*time.Millisecond)
				continue
			}
			md, err := jm.Metadata()
			if err != nil {
				continue
			}
			rd := Read{Pending: md.NumPending}
			rd.Message, rd.Err = events.Decode(events.Stored{Sequence: md.Sequence.Stream, Subject: jm.Subject(),
				Time: md.Timestamp, Header: jm.Headers().Get, Data: jm.Data()})
			select {
			case r.ch <- rd:
			case <-ctx.Done():
				r.err = ctx.Err()
				return
			}
		}
	}()
	return r, nil
}

// readerForgotten is when the server drops the consumer of a reader that has vanished.
const readerForgotten = time.Minute

// forget drops a reader's consumer on the server, which would keep it for a while and
// takes a limited number of them.
func (c *Conn) forget(ctx context.Context, cons jetstream.Consumer) {
	info := cons.CachedInfo()
	if info == nil || c.Healthy() != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if err := c.js.DeleteConsumer(ctx, events.StreamDocs, info.Name); err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
		c.log.Debug("a reader's consumer stays for a while", "error", err)
	}
}

// Next waits for an event and returns it with those that are there already, at most limit.
func (r *Reader) Next(ctx context.Context, limit int) ([]Read, error) {
	var batch []Read
	select {
	case rd, ok := <-r.ch:
		if !ok {
			return nil, r.err
		}
		batch = append(batch, rd)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	for len(batch) < limit {
		select {
		case rd, ok := <-r.ch:
			if !ok {
				return batch, nil
			}
			batch = append(batch, rd)
		default:
			return batch, nil
		}
	}
	return batch, nil
}

// Close ends the reader.
func (r *Reader) Close() {
	r.stop()
	<-r.done
}

// Story calls f with every event stored now on the subjects, in order, and returns.
func (c *Conn) Story(ctx context.Context, f func(Read) error, subjects ...string) error {
	cons, err := c.js.OrderedConsumer(ctx, events.StreamDocs,
		jetstream.OrderedConsumerConfig{FilterSubjects: subjects, DeliverPolicy: jetstream.DeliverAllPolicy, InactiveThreshold: readerForgotten})
	if err != nil {
		return unavailable(err)
	}
	defer c.forget(ctx, cons)
	info, err := cons.Info(ctx)
	if err != nil {
		return unavailable(err)
	}
	if info.NumPending == 0 {
		return nil
	}
	it, err := cons.Messages(jetstream.PullMaxBytes(readerBytes))
	if err != nil {
		return unavailable(err)
	}
	defer it.Stop()
	for {
		jm, err := it.Next(jetstream.NextContext(ctx))
		if err != nil {
			return unavailable(err)
		}
		md, err := jm.Metadata()
		if err != nil {
			return unavailable(err)
		}
		rd := Read{Pending: md.NumPending}
		rd.Message, rd.Err = events.Decode(events.Stored{Sequence: md.Sequence.Stream, Subject: jm.Subject(),
			Time: md.Timestamp, Header: jm.Headers().Get, Data: jm.Data()})
		if err := f(rd); err != nil {
			return err
		}
		if md.NumPending == 0 {
			return nil
		}
	}
}
