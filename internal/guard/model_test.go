package guard

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/leafmill/leafmill/events"
)

// reference is the circuit as simply as it can be said.
type reference struct {
	state                                  State
	forced                                 Forced
	turn, consecutive                      int
	until                                  time.Time
	successes, failures, rejected, running int64
	transitions                            []State
}

const (
	modelFailures = 3
	modelTimeout  = 10 * time.Second
	modelOpen     = 7 * time.Second
)

func (r *reference) become(s State) {
	if r.state == s {
		return
	}
	r.turn++
	r.state = s
	r.transitions = append(r.transitions, s)
	if s == Open {
		r.until = time.Now().Add(modelOpen)
	}
	if s == Closed {
		r.consecutive = 0
	}
}

func (r *reference) force(f Forced) {
	if r.forced == f {
		return
	}
	r.forced, r.consecutive = f, 0
	r.turn++
	if f == ForceOpen {
		r.become(ForcedOpen)
	} else {
		r.become(Closed)
	}
}

// begin says whether a call is made.
func (r *reference) begin() bool {
	if r.state == Open && time.Now().After(r.until) {
		r.become(HalfOpen)
	} else if r.state != Closed {
		r.rejected++
		return false
	}
	r.running++
	return true
}

func (r *reference) end(turn int, o outcome) {
	r.running--
	switch o {
	case success:
		r.successes++
	case failure:
		r.failures++
	}
	if turn != r.turn {
		return
	}
	switch {
	case o == success:
		r.consecutive = 0
		if r.state == HalfOpen {
			r.become(Closed)
		}
	case o == failure:
		r.consecutive++
		if r.state == HalfOpen || r.state == Closed && r.forced == ForceNone && r.consecutive >= modelFailures {
			r.become(Open)
		}
	case r.state == HalfOpen: // an abandoned trial
		r.become(Open)
	}
}

// modelCall is one Do of the test.
type modelCall struct {
	answer  chan error // what the dependency will say
	cancel  context.CancelFunc
	done    chan error
	started time.Time
	turn    int
	deaf    bool // it ignores its context
}

// TestModel runs random calls, answers, pauses and orders on a guard and on the reference, on a clock
// that only the test moves.
func TestModel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// Not t itself: rapid would ask it for a deadline, which has no meaning on this clock.
		rapid.Check(struct{ testing.TB }{t}, modelRun)
	})
}

func modelRun(t *rapid.T) {
	var told []State
	config := Defaults("dependency")
	config.Timeout, config.OpenTimeout, config.BreakerFailures, config.Retries = modelTimeout, modelOpen, modelFailures, 0
	config.OnTransition = func(tr Transition) { told = append(told, tr.To) }
	g, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	ref := &reference{state: Closed}
	var running, deaf []*modelCall

	take := func(t *rapid.T) *modelCall {
		if len(running) == 0 {
			t.Skip("no call is running")
		}
		i := rapid.IntRange(0, len(running)-1).Draw(t, "call")
		c := running[i]
		running = append(running[:i:i], running[i+1:]...)
		return c
	}
	start := func(t *rapid.T, isDeaf bool) {
		if len(deaf) >= MaxHanging-1 {
			t.Skip("enough hang") // TestHang goes to the bound
		}
		ctx, cancel := context.WithCancel(context.Background())
		c := &modelCall{answer: make(chan error, 1), cancel: cancel, done: make(chan error, 1), started: time.Now(), deaf: isDeaf}
		made := ref.begin()
		c.turn = ref.turn
		called := false
		go func() {
			_, err := Do(ctx, g, func(ctx context.Context) (int, error) {
				called = true
				if c.deaf {
					return 1, <-c.answer
				}
				select {
				case err := <-c.answer:
					return 1, err
				case <-ctx.Done():
					return 0, ctx.Err()
				}
			})
			c.done <- err
		}()
		synctest.Wait()
		if called != made {
			t.Fatalf("the call was made: %v, should be: %v", called, made)
		}
		if !made {
			if err := <-c.done; events.ClassOf(err) != events.CircuitOpen {
				t.Fatalf("a rejected call says %v", err)
			}
			cancel()
			return
		}
		running = append(running, c)
		if isDeaf {
			deaf = append(deaf, c)
		}
	}
	answer := func(t *rapid.T, err error, o outcome) {
		c := take(t)
		if c.deaf {
			deaf = without(deaf, c)
		}
		c.answer <- err
		if got := <-c.done; !errors.Is(got, err) {
			t.Fatalf("Do says %v, the call %v", got, err)
		}
		c.cancel()
		ref.end(c.turn, o)
	}

	t.Repeat(map[string]func(*rapid.T){
		"call":        func(t *rapid.T) { start(t, false) },
		"deaf call":   func(t *rapid.T) { start(t, true) },
		"succeed":     func(t *rapid.T) { answer(t, nil, success) },
		"fail":        func(t *rapid.T) { answer(t, events.Fail(events.Network, "gone"), failure) },
		"malformed":   func(t *rapid.T) { answer(t, events.Fail(events.Malformed, "nonsense"), failure) },
		"unknown":     func(t *rapid.T) { answer(t, errors.New("what?"), failure) },
		"refuse":      func(t *rapid.T) { answer(t, events.Fail(events.Invalid, "no"), success) },
		"force open":  func(*rapid.T) { g.Force(ForceOpen); ref.force(ForceOpen) },
		"force close": func(*rapid.T) { g.Force(ForceClosed); ref.force(ForceClosed) },
		"force none":  func(*rapid.T) { g.Force(ForceNone); ref.force(ForceNone) },
		"reset":       func(*rapid.T) { g.Reset(); ref.forced = "another"; ref.force(ForceNone) },
		"outage": func(t *rapid.T) { // the way to a trial that random calls seldom find
			for range modelFailures {
				before := len(running)
				start(t, false)
				if len(running) == before {
					return
				}
				c := running[before]
				running = running[:before]
				c.answer <- fail(events.Network)
				<-c.done
				c.cancel()
				ref.end(c.turn, failure)
			}
		},
		"caller leaves": func(t *rapid.T) {
			c := take(t)
			c.cancel()
			if err := <-c.done; !errors.Is(err, context.Canceled) {
				t.Fatalf("the caller left and Do says %v", err)
			}
			ref.end(c.turn, abandoned)
		},
		"pause": func(t *rapid.T) {
			// One nanosecond more than whole seconds, so that nothing falls on the end of the cool-down.
			for range rapid.IntRange(1, 12).Draw(t, "seconds") {
				time.Sleep(time.Second + time.Nanosecond)
				synctest.Wait()
				for _, c := range append([]*modelCall(nil), running...) {
					if time.Since(c.started) < modelTimeout {
						continue
					}
					if err := <-c.done; events.ClassOf(err) != events.Timeout {
						t.Fatalf("a call that takes too long says %v", err)
					}
					running = without(running, c)
					ref.end(c.turn, failure)
				}
			}
		},
		"": func(t *rapid.T) {
			s := g.Stats()
			if s.Calls != s.Successes+s.Failures+s.Rejected+s.Running {
				t.Fatalf("the counters do not add up: %+v", s)
			}
			if s.State != ref.state || s.Successes != ref.successes || s.Failures != ref.failures ||
				s.Rejected != ref.rejected || s.Running != ref.running || s.Running != int64(len(running)) ||
				s.ConsecutiveFailures != int64(ref.consecutive) {
				t.Fatalf("guard: %+v\nreference: %+v", s, *ref)
			}
			if len(told) != len(ref.transitions) || len(told) > 0 && told[len(told)-1] != ref.state {
				t.Fatalf("told of %v, not %v", told, ref.transitions)
			}
			if ready := ref.state == Closed || ref.state == Open && time.Now().After(ref.until); g.Ready() != ready {
				t.Fatalf("Ready is not %v in %+v", ready, s)
			}
		},
	})
	for _, c := range append(running, deaf...) {
		c.answer <- nil
		c.cancel()
	}
	synctest.Wait()
	if n := g.hanging.Load(); n != 0 {
		t.Fatalf("%d calls hang that have come back", n)
	}
}

func without(calls []*modelCall, gone *modelCall) []*modelCall {
	var rest []*modelCall
	for _, c := range calls {
		if c != gone {
			rest = append(rest, c)
		}
	}
	return rest
}
