package guard

import (
	"sync"
	"time"

	"github.com/sony/gobreaker/v2"

	"github.com/leafmill/leafmill/events"
)

// State is what a circuit does with calls.
type State string

// The states.
const (
	Closed     State = "closed"      // calls are made
	Open       State = "open"        // rejected, until a time
	HalfOpen   State = "half_open"   // one trial call is being made, others are rejected
	ForcedOpen State = "forced_open" // rejected, by an operator
)

// Forced is an operator's order.
type Forced string

// The orders.
const (
	ForceNone   Forced = ""       // the circuit decides
	ForceOpen   Forced = "open"   // reject every call
	ForceClosed Forced = "closed" // make every call, however many fail
)

// Transition is one change of a circuit.
type Transition struct {
	From, To State
	At       time.Time
	Stats    Stats // right after it
}

// Stats are what a guard counted since it was made. Calls = Successes + Failures + Rejected + Running;
// every try of a Do is a call.
type Stats struct {
	Name                string    `json:"name"`
	State               State     `json:"state"`
	Forced              Forced    `json:"forced,omitempty"`
	Calls               int64     `json:"calls"`
	Successes           int64     `json:"successes"` // answered, a refused request included
	Failures            int64     `json:"failures"`
	Rejected            int64     `json:"rejected"` // not made: the circuit was open
	Running             int64     `json:"running"`
	ConsecutiveFailures int64     `json:"consecutive_failures"`
	LastError           string    `json:"last_error,omitempty"` // of the last failure
	LastErrorAt         time.Time `json:"last_error_at,omitzero"`
	OpenedAt            time.Time `json:"opened_at,omitzero"` // the last time
	Until               time.Time `json:"until,omitzero"`     // while open: from when on a trial is made
	Since               time.Time `json:"since"`              // when State began
	LatencyMS           Latency   `json:"latency_ms"`         // of successes and failures
}

// Latency is how long calls took, in milliseconds.
type Latency struct {
	Last float64 `json:"last"`
	Mean float64 `json:"mean"`
	Max  float64 `json:"max"`
}

// breaker is gobreaker's state machine with what it lacks: counters that survive its transitions, calls
// that count as nothing, force, and transitions told outside its lock.
type breaker struct {
	config Config

	mu      sync.Mutex // guards all below, and is held around every use of circuit
	circuit *gobreaker.TwoStepCircuitBreaker[struct{}]
	stats   Stats
	turn    int           // grows with every transition and every new circuit
	total   time.Duration // of all latencies
	pending []Transition  // to be told

	telling sync.Mutex // held while transitions are told, which keeps their order
}

func newBreaker(config Config) *breaker {
	b := &breaker{config: config}
	b.stats = Stats{Name: config.Name, State: Closed, Since: time.Now()}
	b.circuit = b.newCircuit()
	return b
}

// newCircuit makes a closed circuit.
func (b *breaker) newCircuit() *gobreaker.TwoStepCircuitBreaker[struct{}] {
	return gobreaker.NewTwoStepCircuitBreaker[struct{}](gobreaker.Settings{
		Name:        b.config.Name,
		MaxRequests: 1,
		Timeout:     b.config.OpenTimeout,
		ReadyToTrip: func(c gobreaker.Counts) bool { return int(c.ConsecutiveFailures) >= b.config.BreakerFailures },
		OnStateChange: func(_ string, _, to gobreaker.State) {
			switch to {
			case gobreaker.StateOpen:
				b.become(Open)
			case gobreaker.StateHalfOpen:
				b.become(HalfOpen)
			default:
				b.become(Closed)
			}
		},
	})
}

// become changes the state; mu is held.
func (b *breaker) become(to State) {
	from := b.stats.State
	if from == to {
		return
	}
	now := time.Now()
	b.turn++
	b.stats.State, b.stats.Since, b.stats.Until = to, now, time.Time{}
	switch to {
	case Open:
		b.stats.OpenedAt, b.stats.Until = now, now.Add(b.config.OpenTimeout)
	case ForcedOpen:
		b.stats.OpenedAt = now
	case Closed:
		b.stats.ConsecutiveFailures = 0
	}
	if b.config.OnTransition != nil {
		b.pending = append(b.pending, Transition{From: from, To: to, At: now, Stats: b.snapshot()})
	}
}

// begin asks for one call. It must be followed by exactly one call of report, which says whether the
// circuit is open afterwards. The error is a circuit_open Failure.
func (b *breaker) begin() (report func(outcome, error) (open bool), err error) {
	b.mu.Lock()
	var done func(bool)
	switch {
	case b.stats.Forced == ForceOpen:
		err = events.Fail(events.CircuitOpen, "%s was switched off by hand.", b.config.Name)
	case b.stats.Forced == ForceClosed:
		done = func(bool) {}
	default:
		if done, err = b.circuit.Allow(); err != nil {
			err = events.Fail(events.CircuitOpen, "%s does not work at the moment and is not called until it has recovered.", b.config.Name).
				Because(err)
		}
	}
	if err != nil {
		b.stats.Rejected++
	} else {
		b.stats.Running++
	}
	turn := b.turn
	b.unlock()
	if err != nil {
		return nil, err
	}

	started := time.Now()
	return func(o outcome, cause error) bool {
		b.mu.Lock()
		defer b.unlock()
		b.stats.Running--
		// A call from before the last transition is counted and says nothing to the circuit. (gobreaker
		// knows that too, but would go to half open on hearing of it, without a trial being made.)
		stale := turn != b.turn
		switch o {
		case success:
			b.stats.Successes++
			b.measure(time.Since(started))
			if !stale {
				b.stats.ConsecutiveFailures = 0
				done(true)
			}
		case failure:
			b.stats.Failures++
			b.measure(time.Since(started))
			b.stats.LastError, b.stats.LastErrorAt = cause.Error(), time.Now()
			if !stale {
				b.stats.ConsecutiveFailures++
				done(false)
			}
		case abandoned:
			// A trial without a result must not hold the circuit half open for ever, nor close it
			// without proof: the cool-down begins again.
			if !stale && b.stats.State == HalfOpen {
				done(false)
			}
		}
		return b.stats.State == Open || b.stats.State == ForcedOpen
	}, nil
}

// measure adds one latency; mu is held.
func (b *breaker) measure(latency time.Duration) {
	b.total += latency
	ms := float64(latency) / float64(time.Millisecond)
	b.stats.LatencyMS.Last = ms
	b.stats.LatencyMS.Max = max(b.stats.LatencyMS.Max, ms)
}

// unlock releases mu and tells the transitions that happened under it.
func (b *breaker) unlock() {
	tell := len(b.pending) > 0
	b.mu.Unlock()
	if !tell {
		return
	}
	b.telling.Lock()
	defer b.telling.Unlock()
	for {
		b.mu.Lock()
		pending := b.pending
		b.pending = nil
		b.mu.Unlock()
		if len(pending) == 0 {
			return
		}
		for _, transition := range pending {
			b.config.OnTransition(transition)
		}
	}
}

// snapshot is stats with what is computed; mu is held.
func (b *breaker) snapshot() Stats {
	s := b.stats
	s.Calls = s.Successes + s.Failures + s.Rejected + s.Running
	if measured := s.Successes + s.Failures; measured > 0 {
		s.LatencyMS.Mean = float64(b.total) / float64(time.Millisecond) / float64(measured)
	}
	return s
}

// Stats is what the guard counted so far.
func (g *Guard) Stats() Stats {
	g.breaker.mu.Lock()
	defer g.breaker.mu.Unlock()
	return g.breaker.snapshot()
}

// Ready says whether a call would be made now: the circuit is closed, or open with its trial due. Asking
// changes nothing.
func (g *Guard) Ready() bool {
	b := g.breaker
	b.mu.Lock()
	defer b.mu.Unlock()
	switch b.stats.State {
	case Closed:
		return true
	case Open:
		return time.Now().After(b.stats.Until)
	}
	return false
}

// Force sets or ends an operator's order. When one begins or ends, so does the count of failures in a
// row, and a circuit that is not forced open begins closed.
func (g *Guard) Force(forced Forced) {
	b := g.breaker
	b.mu.Lock()
	defer b.unlock()
	if b.stats.Forced != forced {
		b.renew(forced)
	}
}

// Reset closes the circuit and ends an operator's order. The counters stay.
func (g *Guard) Reset() {
	b := g.breaker
	b.mu.Lock()
	defer b.unlock()
	b.renew(ForceNone)
}

// renew begins with a new circuit; calls that are running say nothing to it. mu is held.
func (b *breaker) renew(forced Forced) {
	b.turn++
	b.circuit = b.newCircuit()
	b.stats.Forced, b.stats.ConsecutiveFailures = forced, 0
	if forced == ForceOpen {
		b.become(ForcedOpen)
	} else {
		b.become(Closed)
	}
}
