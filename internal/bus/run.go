package bus

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/leafmill/leafmill/events"
)

// Consumer is a stage at work: who handles its durable's messages, and how many at once.
type Consumer struct {
	Durable string
	Workers int           // messages in the process at once (1 when 0)
	Timeout time.Duration // of one try of the handler (5 min when 0)
	Handle  Handler
}

// RunConfig bounds a service's consumers; zero values are usable.
type RunConfig struct {
	AckWait time.Duration // must be what the layout says; 30 s when 0
	Grace   time.Duration // for handlers at shutdown; 20 s when 0
	MaxAge  time.Duration // a message that still fails when it is older is poisoned; 24 h when 0
	Metrics *Metrics      // may be nil
}

// Service is a service at work: what it answers and what it consumes.
type Service struct {
	Info      ServiceInfo // Workers are filled in from the consumers
	Consumers []Consumer
}

// RunService registers the service and handles its consumers' messages until ctx ends or
// one of both fails; it returns when everything in hand is settled.
func (c *Conn) RunService(ctx context.Context, cfg RunConfig, s Service) error {
	s.Info.Workers = map[string]int{}
	for _, cons := range s.Consumers {
		s.Info.Workers[cons.Durable] = max(1, cons.Workers)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return c.Serve(ctx, s.Info) })
	if len(s.Consumers) > 0 {
		g.Go(func() error { return c.Run(ctx, cfg, s.Consumers...) })
	}
	return g.Wait()
}

// Run handles the consumers' messages until ctx ends, and returns when everything in
// flight is settled.
func (c *Conn) Run(ctx context.Context, cfg RunConfig, consumers ...Consumer) error {
	if cfg.Grace == 0 {
		cfg.Grace = 20 * time.Second
	}
	if cfg.MaxAge == 0 {
		cfg.MaxAge = 24 * time.Hour
	}
	logger := watermill.NewSlogLoggerWithLevelMapping(c.log, map[slog.Level]slog.Level{
		slog.LevelInfo: slog.LevelDebug, slog.LevelError: slog.LevelDebug}) // telemetry says it better
	router, err := message.NewRouter(message.RouterConfig{CloseTimeout: cfg.Grace + 10*time.Second}, logger)
	if err != nil {
		return fmt.Errorf("bus: %w", err)
	}
	for _, cons := range consumers {
		stage, ok := events.StageOf(cons.Durable)
		if !ok {
			return fmt.Errorf("bus: no stage has the durable %q", cons.Durable)
		}
		if cons.Timeout == 0 {
			cons.Timeout = 5 * time.Minute
		}
		var gate Gate
		if stage.Gated {
			gate = newQueueGate(c, cons.Durable)
		}
		sub := NewSubscriber(SubscriberConfig{JetStream: c.js, Workers: cons.Workers, Gate: gate, Grace: cfg.Grace, Log: c.log,
			Consumer: func(string) jetstream.ConsumerConfig { return consumerConfig(stage, Layout{AckWait: cfg.AckWait}) }})
		chain := &stageChain{conn: c, cons: cons, stage: stage.Service, gate: gate, maxAge: cfg.MaxAge,
			metrics: cfg.Metrics, log: c.log.With("stage", cons.Durable)}
		mws, err := chain.middlewares()
		if err != nil {
			return fmt.Errorf("bus: %w", err)
		}
		h := router.AddConsumerHandler(cons.Durable, cons.Durable, sub, func(msg *message.Message) error {
			return cons.Handle(msg.Context(), attemptOf(msg).d)
		})
		h.AddMiddleware(mws...)
		cfg.Metrics.register(stage)
	}
	return router.Run(ctx)
}
