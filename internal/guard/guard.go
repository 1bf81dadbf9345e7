// Package guard makes outside calls safe to wait for: retry(breaker(time-out(call))).
//
// Guarantees:
//
//   - Do returns within the time-out of the call, also when the call ignores its context; at most
//     MaxHanging such calls are left behind at a time.
//   - A failed call is retried when its class is network, timeout, rate_limited or unavailable, after a
//     delay with full jitter or the Retry-After of the answer. A delay that the caller's deadline or
//     MaxRetryAfter does not allow is not begun: Do fails at once.
//   - After BreakerFailures failures in a row the circuit opens: calls are rejected without being made,
//     for OpenTimeout. Then one trial call decides; there is never more than one a cool-down.
//   - circuit_open means that this Do made no call. When calls were made and the circuit opened, the error
//     is that of the last call, and no retry waits for the circuit.
//   - A malformed answer is a failure, not retried. A request that the dependency refuses (invalid, limit
//     and the other classes of the document's own fault) is neither: the dependency works.
//   - A call whose caller went away says nothing about the dependency and counts as nothing.
//   - Calls = Successes + Failures + Rejected + Running, at every moment.
//
// A Guard is one replica's view of one dependency and safe for concurrent use.
package guard

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v4"

	"github.com/leafmill/leafmill/events"
)

// Guard protects the calls to one dependency. Make it with New.
type Guard struct {
	config  Config
	breaker *breaker
	hanging atomic.Int64 // calls that outlived their time-out

	mu     sync.Mutex // guards jitter
	jitter *rand.Rand
}

// Retry describes one delay before a retry.
type Retry struct {
	Attempt int           // the call that failed, from 1
	Class   events.Class  // of its failure
	Err     error         // the failure
	Delay   time.Duration // until the next call
}

// New makes a guard. The error names every setting that is out of bounds.
func New(config Config) (*Guard, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	seed := config.Seed
	if seed == 0 {
		seed = rand.Uint64()
	}
	return &Guard{config: config, breaker: newBreaker(config), jitter: rand.New(rand.NewPCG(seed, 0))}, nil
}

// Option changes one Do.
type Option func(*call)

// call is what one Do works by.
type call struct {
	timeout time.Duration
	retries int
	onRetry func(Retry)
}

// Timeout is another time-out for each call of this Do, such as a shorter one where a user waits.
func Timeout(d time.Duration) Option { return func(c *call) { c.timeout = min(d, c.timeout) } }

// Retries is another number of calls after the first, for this Do; at most the configured one.
func Retries(n int) Option { return func(c *call) { c.retries = min(max(n, 0), c.retries) } }

// OnRetry is told of every delay of this Do, before it begins.
func OnRetry(f func(Retry)) Option { return func(c *call) { c.onRetry = f } }

// Do makes the call under the guard. The call gets a context that ends at its time-out; its error should
// carry an events.Failure, and WithRetryAfter when the dependency said when to come back. The error of Do
// carries one too, except when ctx ended: then it is ctx's cause.
func Do[T any](ctx context.Context, g *Guard, f func(context.Context) (T, error), options ...Option) (T, error) {
	c := call{timeout: g.config.Timeout, retries: g.config.Retries}
	for _, option := range options {
		option(&c)
	}
	var last error // of a call that was made
	attempt := 0
	operation := func() (T, error) {
		var none T
		if ctx.Err() != nil {
			return none, backoff.Permanent(context.Cause(ctx))
		}
		report, err := g.breaker.begin()
		if err != nil {
			if last != nil {
				err = last
			}
			return none, backoff.Permanent(err)
		}
		attempt++
		result, err := timed(ctx, g, c.timeout, f)
		if ctx.Err() != nil && err != nil {
			report(abandoned, nil)
			return none, backoff.Permanent(context.Cause(ctx))
		}
		opened := report(judge(err), err)
		if err == nil {
			return result, nil
		}
		last = err
		if opened || !retried(err) {
			return none, backoff.Permanent(err)
		}
		return none, err
	}
	result, err := operation()
	if permanent, ok := errors.AsType[*backoff.PermanentError](err); ok {
		return result, permanent.Err
	}
	if err == nil || c.retries == 0 {
		return result, err
	}
	// Only now the machinery of retries: most calls never need it. It begins with the call just made.
	made := true
	again := func() (T, error) {
		if made {
			made = false
			return result, err
		}
		return operation()
	}
	delays := &delays{guard: g, ctx: ctx, left: c.retries, last: &last}
	result, err = backoff.RetryNotifyWithData(again, backoff.WithContext(delays, ctx), func(err error, delay time.Duration) {
		retry := Retry{Attempt: attempt, Class: events.ClassOf(err), Err: err, Delay: delay}
		if g.config.OnRetry != nil {
			g.config.OnRetry(retry)
		}
		if c.onRetry != nil {
			c.onRetry(retry)
		}
	})
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx) // also when it ended during a delay
	}
	return result, err
}

// outcome is what a call says about the dependency.
type outcome int

const (
	success   outcome = iota
	failure           // it does not work
	abandoned         // nothing: the caller went away
)

// judge says what an error means for the breaker.
func judge(err error) outcome {
	if err == nil {
		return success
	}
	if class := events.ClassOf(err); class.Transient() || class == events.Malformed {
		return failure
	}
	return success // it answered; what it refuses is the request
}

// retried says whether another call may help.
func retried(err error) bool {
	switch events.ClassOf(err) {
	case events.Network, events.Timeout, events.RateLimited, events.Unavailable:
		return true
	}
	return false
}

// answer is what a call gave.
type answer[T any] struct {
	result T
	err    error
}

// timed runs one call on a goroutine of its own and waits for it until the time-out.
func timed[T any](ctx context.Context, g *Guard, timeout time.Duration, f func(context.Context) (T, error)) (T, error) {
	var none T
	if n := g.hanging.Load(); n >= MaxHanging {
		return none, events.Fail(events.Unavailable, "%s: %d earlier calls hang and have not come back.", g.config.Name, n)
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	answers := make(chan answer[T], 1)
	var left atomic.Bool // whose turn: the one who comes second knows that the call hung
	go func() {
		defer func() {
			if p := recover(); p != nil {
				err := events.Fail(events.Internal, "%s: the call failed inside Leafmill.", g.config.Name).
					Because(fmt.Errorf("panic: %v\n%s", p, debug.Stack()))
				answers <- answer[T]{err: err}
			}
			if left.Swap(true) {
				g.hanging.Add(-1)
			}
		}()
		result, err := f(ctx)
		answers <- answer[T]{result, err}
	}()

	select {
	case a := <-answers:
		return a.result, g.classified(ctx, a.err, timeout)
	case <-ctx.Done():
		g.hanging.Add(1)
		if left.Swap(true) { // it ended meanwhile
			g.hanging.Add(-1)
		}
		return none, g.classified(ctx, ctx.Err(), timeout)
	}
}

// classified makes sure that an error carries a Failure: a call that ended by its context is a timeout,
// whatever the library in it made of that.
func (g *Guard) classified(ctx context.Context, err error, timeout time.Duration) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return events.Fail(events.Timeout, "%s gave no answer within %s.", g.config.Name, timeout).Because(err)
	}
	if _, ok := errors.AsType[*events.Failure](err); ok {
		return err
	}
	return events.Fail(events.Internal, "%s: the call failed.", g.config.Name).Because(err)
}

// delays is the backoff policy of one Do.
type delays struct {
	guard    *Guard
	ctx      context.Context
	left     int    // retries
	last     *error // of the call before
	ceilings *backoff.ExponentialBackOff
}

// Reset is called once, before the first call.
func (d *delays) Reset() {
	d.ceilings = backoff.NewExponentialBackOff(backoff.WithInitialInterval(firstDelay), backoff.WithMultiplier(2),
		backoff.WithMaxInterval(delayCap), backoff.WithRandomizationFactor(0), backoff.WithMaxElapsedTime(0))
}

// NextBackOff is a random delay below a ceiling that doubles, or the Retry-After of the last answer plus
// such a delay so that the callers it held back do not come together. Stop when no retry is left or the
// delay is not allowed.
func (d *delays) NextBackOff() time.Duration {
	if d.left == 0 {
		return backoff.Stop
	}
	d.left--
	ceiling, delay := d.ceilings.NextBackOff(), time.Duration(0)
	if after, ok := RetryAfterOf(*d.last); ok {
		if after > d.guard.config.MaxRetryAfter {
			return backoff.Stop
		}
		ceiling, delay = firstDelay, after
	}
	d.guard.mu.Lock()
	delay += time.Duration(d.guard.jitter.Int64N(int64(ceiling)))
	d.guard.mu.Unlock()
	if deadline, ok := d.ctx.Deadline(); ok && time.Until(deadline) <= delay {
		return backoff.Stop
	}
	return delay
}
