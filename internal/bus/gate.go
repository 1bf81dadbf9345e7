package bus

import (
	"context"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/leafmill/leafmill/events"
)

// Background work is pulled only while the queues ahead are short: see "Fresh work
// first" in docs/architecture.md.
const (
	messagesPerWorker = 8 // LIMIT, for each worker that answers for a durable
	gatePoll          = 100 * time.Millisecond
	workersAge        = 3 * time.Second
)

// queueGate is open while every durable it looks at has a queue below its limit.
type queueGate struct {
	conn    *Conn
	durable string

	mu      sync.Mutex
	workers map[string]int
	asked   time.Time
}

func newQueueGate(c *Conn, durable string) *queueGate {
	return &queueGate{conn: c, durable: durable}
}

// Wait polls until the gate is open. Polling, since no event says that a queue got short.
func (g *queueGate) Wait(ctx context.Context) error {
	for {
		open, err := g.open(ctx)
		if open {
			return nil
		}
		if err != nil && ctx.Err() == nil {
			g.conn.log.Debug("the gate cannot be read", "durable", g.durable, "error", err)
		}
		pause(ctx, gatePoll)
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

func (g *queueGate) open(ctx context.Context) (bool, error) {
	ahead, share := []string{"ocr-pages", "chunk", "embed", "index"}, 2
	if g.durable == "embed-heal" {
		ahead, share = []string{"embed", "index"}, 1
	}
	workers, err := g.answering(ctx)
	if err != nil {
		return false, err
	}
	for _, d := range ahead {
		q, err := g.conn.queue(ctx, d)
		if err != nil {
			return false, err
		}
		if q*share >= messagesPerWorker*workers[d] {
			return false, nil
		}
	}
	if g.durable == "ocr-bulk" {
		cons, err := g.conn.js.Consumer(ctx, events.StreamDocs, "ocr-walk")
		if err != nil {
			return false, err
		}
		return cons.CachedInfo().NumPending == 0, nil
	}
	return true, nil
}

// queue is what waits for a durable or is being worked on, without what waits for its
// retry: num_pending + num_ack_pending - num_redelivered.
func (c *Conn) queue(ctx context.Context, durable string) (int, error) {
	cons, err := c.js.Consumer(ctx, events.StreamDocs, durable)
	if err != nil {
		return 0, err
	}
	return queueOf(cons.CachedInfo()), nil
}

func queueOf(i *jetstream.ConsumerInfo) int {
	return int(i.NumPending) + i.NumAckPending - i.NumRedelivered
}

// answering counts the workers of each durable by asking who is there: counters of the
// server cannot tell (num_waiting is 0 whenever the replicas are busy).
func (g *queueGate) answering(ctx context.Context) (map[string]int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if time.Since(g.asked) < workersAge {
		return g.workers, nil
	}
	infos, err := g.conn.Replicas(ctx)
	if err != nil {
		return nil, err
	}
	g.workers = map[string]int{}
	for _, i := range infos {
		for _, s := range events.Pipeline {
			n, _ := strconv.Atoi(i.Metadata[workersKey(s.Durable)])
			g.workers[s.Durable] += n
		}
	}
	g.asked = time.Now()
	for _, d := range []string{"ocr-pages", "chunk", "embed", "index"} {
		if g.workers[d] == 0 {
			g.asked = g.asked.Add(300*time.Millisecond - workersAge) // somebody is starting: look again soon
			break
		}
	}
	return g.workers, nil
}

// workersKey is the micro service metadata that says how many workers a replica has.
func workersKey(durable string) string { return "workers." + durable }
