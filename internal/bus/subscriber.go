package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/leafmill/leafmill/events"
)

// SubscriberConfig of a Subscriber; only JetStream and Consumer are required.
type SubscriberConfig struct {
	JetStream jetstream.JetStream
	Stream    string // DOCS when empty
	// Consumer is the durable for a topic. Two subscriptions must never share a durable
	// with different filters: the server would silently keep the last.
	Consumer func(topic string) jetstream.ConsumerConfig
	// Workers is how many messages of a topic are in the process at once (1 when 0).
	Workers int
	// Gate, if set, is waited for before each pull, and messages are pulled one by one.
	Gate Gate
	// Grace is how long Close waits for handlers before it cancels their contexts (20 s when 0).
	Grace time.Duration
	// NakDelay is for naks whose delay no middleware has set (1 s when 0).
	NakDelay time.Duration
	Log      *slog.Logger
}

// Gate holds background work back.
type Gate interface {
	// Wait returns nil once the gate is open, an error when ctx ends.
	Wait(ctx context.Context) error
}

// Subscriber is a Watermill Subscriber on durable JetStream pull consumers. It pulls no
// more than its free slots, so that nothing waits unheartbeated in a client buffer.
type Subscriber struct {
	cfg  SubscriberConfig
	stop chan struct{}
	once sync.Once
	wg   sync.WaitGroup
}

// NewSubscriber makes one. The connection belongs to the caller.
func NewSubscriber(cfg SubscriberConfig) *Subscriber {
	if cfg.Stream == "" {
		cfg.Stream = events.StreamDocs
	}
	if cfg.Workers < 1 {
		cfg.Workers = 1
	}
	if cfg.Grace == 0 {
		cfg.Grace = 20 * time.Second
	}
	if cfg.NakDelay == 0 {
		cfg.NakDelay = time.Second
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Subscriber{cfg: cfg, stop: make(chan struct{})}
}

// Subscribe starts pulling. When ctx ends or Close is called no more is pulled; the
// channel closes after all messages in flight are settled.
func (s *Subscriber) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	cc := s.cfg.Consumer(topic)
	cons, err := s.cfg.JetStream.CreateOrUpdateConsumer(ctx, s.cfg.Stream, cc)
	if err != nil {
		return nil, fmt.Errorf("bus: consumer %s: %w", cc.Durable, err)
	}
	// Handlers outlive the router's context: they may finish within the grace period.
	base, cancelBase := context.WithCancel(context.WithoutCancel(ctx))
	pull, stopPull := context.WithCancel(base)
	p := &pump{s: s, cons: cons, log: s.cfg.Log.With("durable", cc.Durable), beat: cc.AckWait / 3,
		out: make(chan *message.Message), slots: make(chan struct{}, s.cfg.Workers),
		live: map[jetstream.Msg]struct{}{}, base: base, pull: pull}
	s.wg.Add(2)
	go func() {
		defer s.wg.Done()
		select {
		case <-ctx.Done():
		case <-s.stop:
		case <-base.Done():
		}
		stopPull()
		grace := time.NewTimer(s.cfg.Grace)
		defer grace.Stop()
		select {
		case <-grace.C:
		case <-base.Done():
		}
		cancelBase()
	}()
	go func() {
		defer s.wg.Done()
		defer cancelBase()
		p.run()
	}()
	return p.out, nil
}

// Close stops pulling and returns when everything in flight is settled.
func (s *Subscriber) Close() error {
	s.once.Do(func() { close(s.stop) })
	s.wg.Wait()
	return nil
}

// pump moves messages of one durable to one channel.
type pump struct {
	s          *Subscriber
	cons       jetstream.Consumer
	log        *slog.Logger
	beat       time.Duration
	out        chan *message.Message
	slots      chan struct{} // one token a message in flight
	base, pull context.Context
	wg         sync.WaitGroup
	mu         sync.Mutex
	live       map[jetstream.Msg]struct{}
}

func (p *pump) run() {
	done := make(chan struct{})
	var beats sync.WaitGroup
	beats.Go(func() { p.heartbeat(done) })
	for p.pull.Err() == nil {
		if err := p.round(); err != nil && p.pull.Err() == nil {
			p.log.Warn("pull failed", "error", err)
			pause(p.pull, 500*time.Millisecond)
		}
	}
	p.wg.Wait()
	close(done)
	beats.Wait()
	close(p.out) // last: the router closes its publisher when the channel closes
}

// round takes the free slots and fills them.
func (p *pump) round() error {
	n := p.acquire()
	got := 0
	defer func() {
		for range n - got {
			<-p.slots
		}
	}()
	if n == 0 {
		return nil
	}
	if gate := p.s.cfg.Gate; gate != nil {
		if err := gate.Wait(p.pull); err != nil {
			return err
		}
		var err error
		got, err = p.take(p.blocking(5 * time.Second))
		return err
	}
	var err error
	if got, err = p.take(p.cons.FetchNoWait(n)); got > 0 || err != nil {
		return err
	}
	got, err = p.take(p.blocking(30 * time.Second))
	return err
}

// blocking waits for one message; a pull request of the server ends when p.pull does.
func (p *pump) blocking(wait time.Duration) (jetstream.MessageBatch, error) {
	ctx, cancel := context.WithTimeout(p.pull, wait)
	b, err := p.cons.Fetch(1, jetstream.FetchContext(ctx))
	if err != nil {
		cancel()
		return nil, err
	}
	return cancelBatch{b, cancel}, nil
}

type cancelBatch struct {
	jetstream.MessageBatch
	cancel context.CancelFunc
}

func (p *pump) take(b jetstream.MessageBatch, err error) (got int, _ error) {
	if err != nil {
		return 0, err
	}
	if c, ok := b.(cancelBatch); ok {
		defer c.cancel()
	}
	for m := range b.Messages() {
		got++
		p.start(m)
	}
	switch err := b.Error(); {
	case errors.Is(err, nats.ErrTimeout), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return got, nil
	default:
		return got, err
	}
}

// acquire waits for a slot, then takes all that are free.
func (p *pump) acquire() (n int) {
	select {
	case p.slots <- struct{}{}:
		n = 1
	case <-p.pull.Done():
		return 0
	}
	for p.s.cfg.Gate == nil {
		select {
		case p.slots <- struct{}{}:
			n++
		default:
			return n
		}
	}
	return n
}

func (p *pump) start(jm jetstream.Msg) {
	p.mu.Lock()
	p.live[jm] = struct{}{}
	p.mu.Unlock()
	p.wg.Go(func() {
		defer func() {
			p.mu.Lock()
			delete(p.live, jm)
			p.mu.Unlock()
			<-p.slots
		}()
		p.handle(jm)
	})
}

func (p *pump) handle(jm jetstream.Msg) {
	md, err := jm.Metadata()
	if err != nil { // not a JetStream message: nothing can be settled
		p.log.Error("message without metadata", "subject", jm.Subject(), "error", err)
		return
	}
	st := &settlement{native: jm, meta: md, stopping: p.pull}
	ctx, cancel := context.WithCancel(context.WithValue(p.base, settlementKey{}, st))
	defer cancel()
	wm := unmarshal(jm, md)
	wm.SetContext(ctx)
	select {
	case p.out <- wm:
	case <-p.pull.Done():
		p.settled(jm.Nak()) // never started: another replica may have it at once
		return
	}
	// A handler that was cancelled gets a moment to settle; then its message goes to another.
	given := make(chan struct{})
	stop := context.AfterFunc(p.base, func() {
		time.AfterFunc(min(p.s.cfg.Grace, 5*time.Second), func() { close(given) })
	})
	defer stop()
	select {
	case <-wm.Acked():
		p.settled(jm.Ack())
	case <-given:
		p.log.Warn("a handler did not end with its context", "subject", jm.Subject(), "sequence", md.Sequence.Stream)
		p.settled(jm.Nak())
	case <-wm.Nacked():
		switch d := st.nakDelay(); {
		case d > 0:
			p.settled(jm.NakWithDelay(d))
		case p.pull.Err() != nil || d < 0:
			p.settled(jm.Nak())
		default:
			p.settled(jm.NakWithDelay(p.s.cfg.NakDelay))
		}
	}
}

func (p *pump) settled(err error) {
	if err != nil {
		p.log.Warn("settling failed; the message comes again", "error", err)
	}
}

func (p *pump) heartbeat(done <-chan struct{}) {
	if p.beat <= 0 {
		p.beat = 10 * time.Second
	}
	t := time.NewTicker(p.beat)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-done:
			return
		}
		p.mu.Lock()
		for m := range p.live {
			if err := m.InProgress(); err != nil && !errors.Is(err, jetstream.ErrMsgAlreadyAckd) {
				p.log.Warn("heartbeat failed", "error", err)
			}
		}
		p.mu.Unlock()
	}
}

// settlement lets middleware decide how a message is settled.
type settlement struct {
	native   jetstream.Msg
	meta     *jetstream.MsgMetadata
	stopping context.Context // done once the subscriber stops pulling

	mu    sync.Mutex
	delay time.Duration
}

type settlementKey struct{}

func settlementOf(ctx context.Context) *settlement {
	st, _ := ctx.Value(settlementKey{}).(*settlement)
	return st
}

// nakIn sets the delay of the nak; negative is at once.
func (s *settlement) nakIn(d time.Duration) {
	s.mu.Lock()
	s.delay = d
	s.mu.Unlock()
}

func (s *settlement) nakDelay() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.delay
}

// unmarshal never fails. A message without headers, as the nats CLI sends it, gets a UUID
// that stays the same over redeliveries.
func unmarshal(jm jetstream.Msg, md *jetstream.MsgMetadata) *message.Message {
	h := jm.Headers()
	id := h.Get(uuidHeader)
	if id == "" {
		id = h.Get(events.HeaderID)
	}
	if id == "" {
		id = fmt.Sprintf("%s:%d", md.Stream, md.Sequence.Stream)
	}
	m := message.NewMessage(id, jm.Data())
	for k, v := range h {
		if k == uuidHeader || len(v) == 0 || len(k) > 5 && k[:5] == "Nats-" {
			continue
		}
		m.Metadata[k] = v[0]
	}
	return m
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
