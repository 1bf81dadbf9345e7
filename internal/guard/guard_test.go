package guard

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/leafmill/leafmill/events"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func mustNew(t testing.TB, change func(*Config)) *Guard {
	t.Helper()
	config := Defaults("embed")
	config.Seed = 7
	if change != nil {
		change(&config)
	}
	g, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// script answers with the errors in their order, then nil, and notes when it was called.
type script struct {
	errs  []error
	calls []time.Time
}

func (s *script) call(context.Context) (string, error) {
	s.calls = append(s.calls, time.Now())
	if n := len(s.calls); n <= len(s.errs) {
		return "", s.errs[n-1]
	}
	return "fine", nil
}

func fail(class events.Class) error { return events.Fail(class, "a sentence") }

// TestRetries: which failures are retried, how often, and what comes back.
func TestRetries(t *testing.T) {
	always := func(class events.Class, n int) (errs []error) {
		for range n {
			errs = append(errs, fail(class))
		}
		return errs
	}
	for _, test := range []struct {
		name     string
		errs     []error
		failures int // that open the circuit
		calls    int
		class    events.Class // "" is a success
	}{
		{"at once", nil, 3, 1, ""},
		{"after a network error", always(events.Network, 1), 3, 2, ""},
		{"after a time-out", always(events.Timeout, 2), 3, 3, ""},
		{"after rate limits", always(events.RateLimited, 4), 10, 5, ""},
		{"never", always(events.Unavailable, 9), 10, 5, events.Unavailable},
		{"the circuit opens", always(events.Network, 9), 3, 3, events.Network},
		{"malformed", always(events.Malformed, 9), 3, 1, events.Malformed},
		{"invalid", always(events.Invalid, 9), 3, 1, events.Invalid},
		{"limit", always(events.Limit, 9), 3, 1, events.Limit},
		{"no class", []error{errors.New("odd")}, 3, 1, events.Internal},
		{"wrapped", []error{fmt.Errorf("call: %w", fail(events.Network))}, 3, 2, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := mustNew(t, func(c *Config) { c.BreakerFailures = test.failures })
				s := script{errs: test.errs}
				result, err := Do(t.Context(), g, s.call)
				if len(s.calls) != test.calls {
					t.Errorf("%d calls, not %d", len(s.calls), test.calls)
				}
				if test.class == "" && (err != nil || result != "fine") {
					t.Errorf("%q, %v", result, err)
				}
				if test.class != "" && events.ClassOf(err) != test.class {
					t.Errorf("says %v", err)
				}
			})
		})
	}
}

// TestFullJitter: every delay lies below its ceiling, spreads over all of it, and is the same for the
// same seed.
func TestFullJitter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		run := func(seed uint64) (delays []time.Duration) {
			g := mustNew(t, func(c *Config) { c.Seed, c.Retries, c.BreakerFailures = seed, 7, 100 })
			s := script{errs: []error{0: nil, 7: nil}}
			for i := range s.errs {
				s.errs[i] = fail(events.Network)
			}
			_, err := Do(t.Context(), g, s.call, OnRetry(func(r Retry) {
				if r.Attempt != len(delays)+1 || r.Class != events.Network || r.Err == nil {
					t.Errorf("told of %+v", r)
				}
				delays = append(delays, r.Delay)
			}))
			if err == nil || len(s.calls) != 8 {
				t.Fatalf("%d calls, %v", len(s.calls), err)
			}
			for i, delay := range delays {
				if waited := s.calls[i+1].Sub(s.calls[i]); waited != delay {
					t.Errorf("told of %s, waited %s", delay, waited)
				}
			}
			return delays
		}
		if diff := cmp.Diff(run(1), run(1)); diff != "" {
			t.Errorf("the same seed gives other delays: %s", diff)
		}
		ceilings := []float64{.5, 1, 2, 4, 8, 8, 8}
		sums := make([]float64, len(ceilings))
		const runs = 300
		for seed := range uint64(runs) {
			for i, delay := range run(seed + 1) {
				if delay < 0 || delay.Seconds() >= ceilings[i] {
					t.Fatalf("delay %d is %s", i+1, delay)
				}
				sums[i] += delay.Seconds() / ceilings[i] / runs
			}
		}
		for i, mean := range sums {
			if mean < .4 || mean > .6 {
				t.Errorf("delay %d is %.2f of its ceiling in the mean, not half", i+1, mean)
			}
		}
	})
}

// TestRetryAfter: honoured when it can be, and otherwise said at once.
func TestRetryAfter(t *testing.T) {
	for _, test := range []struct {
		name     string
		after    time.Duration
		deadline time.Duration // of the caller; 0 is none
		calls    int
	}{
		{"honoured", time.Minute, 0, 2},
		{"the longest", 5 * time.Minute, 0, 2},
		{"too long", 5*time.Minute + time.Second, 0, 1},
		{"beyond the caller's deadline", time.Minute, 30 * time.Second, 1},
		{"within the caller's deadline", time.Minute, 2 * time.Minute, 2},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx := t.Context()
				if test.deadline > 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, test.deadline)
					defer cancel()
				}
				start := time.Now()
				s := script{errs: []error{WithRetryAfter(fail(events.RateLimited), test.after)}}
				_, err := Do(ctx, mustNew(t, nil), s.call)
				if len(s.calls) != test.calls {
					t.Fatalf("%d calls, not %d", len(s.calls), test.calls)
				}
				if test.calls == 1 {
					if after, ok := RetryAfterOf(err); events.ClassOf(err) != events.RateLimited || !ok || after != test.after {
						t.Errorf("says %v, %s", err, after)
					}
					if waited := time.Since(start); waited != 0 {
						t.Errorf("waited %s for nothing", waited)
					}
					return
				}
				if waited := s.calls[1].Sub(s.calls[0]); waited < test.after || waited > test.after+firstDelay {
					t.Errorf("waited %s", waited)
				}
			})
		})
	}
}

// TestNoDelayBeyondTheDeadline: a retry that the caller would not live to see is not waited for.
func TestNoDelayBeyondTheDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		start := time.Now()
		s := script{errs: []error{fail(events.Network)}}
		if _, err := Do(ctx, mustNew(t, nil), s.call); events.ClassOf(err) != events.Network || time.Since(start) != 0 {
			t.Errorf("after %s: %v", time.Since(start), err)
		}
	})
}

// TestCallerLeavesDuringDelay ends the wait at once, with the caller's own cause.
func TestCallerLeavesDuringDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		why := errors.New("shutting down")
		ctx, cancel := context.WithCancelCause(t.Context())
		s := script{errs: []error{WithRetryAfter(fail(events.RateLimited), time.Minute)}}
		g := mustNew(t, nil)
		_, err := Do(ctx, g, s.call, OnRetry(func(Retry) { cancel(why) }))
		if !errors.Is(err, why) || len(s.calls) != 1 {
			t.Errorf("%d calls, %v", len(s.calls), err)
		}
		if _, err := Do(ctx, g, s.call); !errors.Is(err, why) || len(s.calls) != 1 {
			t.Errorf("with an ended context: %d calls, %v", len(s.calls), err)
		}
	})
}

// TestHang: calls that ignore their context return at the time-out, are counted, and only so many are
// left behind. When they come back, all goes on.
func TestHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := mustNew(t, func(c *Config) { c.BreakerFailures, c.Retries = 1000, 0 })
		before := runtime.NumGoroutine()
		release := make(chan struct{})
		var calls atomic.Int64
		for i := range 2 * MaxHanging {
			start := time.Now()
			_, err := Do(t.Context(), g, func(context.Context) (int, error) {
				calls.Add(1)
				<-release
				return 0, nil
			})
			waited := time.Since(start)
			if i < MaxHanging && (events.ClassOf(err) != events.Timeout || waited != 10*time.Second) {
				t.Fatalf("call %d: after %s: %v", i, waited, err)
			}
			if i >= MaxHanging && (events.ClassOf(err) != events.Unavailable || waited != 0) {
				t.Fatalf("call %d: after %s: %v", i, waited, err)
			}
		}
		if n := runtime.NumGoroutine() - before; calls.Load() != MaxHanging || n > MaxHanging {
			t.Errorf("%d calls, %d goroutines", calls.Load(), n)
		}
		close(release)
		synctest.Wait()
		if _, err := Do(t.Context(), g, func(context.Context) (int, error) { return 1, nil }); err != nil {
			t.Errorf("after they came back: %v", err)
		}
		if s := g.Stats(); s.Failures != 2*MaxHanging || s.Successes != 1 || s.Running != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// TestOneTrialACoolDown: during an outage of half an hour with many callers, one call is made a cool-down;
// after it the next trial closes the circuit.
func TestOneTrialACoolDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var changes []State
		g := mustNew(t, func(c *Config) { c.OnTransition = func(tr Transition) { changes = append(changes, tr.To) } })
		var broken atomic.Bool
		var calls atomic.Int64
		broken.Store(true)
		call := func(ctx context.Context) (int, error) {
			calls.Add(1)
			time.Sleep(time.Millisecond)
			if broken.Load() {
				return 0, fail(events.Network)
			}
			return 0, nil
		}
		start := time.Now()
		for time.Since(start) < 30*time.Minute {
			var wg sync.WaitGroup
			for range 5 {
				wg.Go(func() { _, _ = Do(t.Context(), g, call) })
			}
			wg.Wait()
			time.Sleep(100 * time.Millisecond)
		}
		if made, most := int(calls.Load()), int(30*time.Minute/g.config.OpenTimeout)+8; made > most || made < most*9/10 {
			t.Errorf("%d calls in half an hour, not about %d", made, most)
		}
		broken.Store(false)
		for g.Stats().State != Closed {
			_, _ = Do(t.Context(), g, call)
			time.Sleep(100 * time.Millisecond)
		}
		for i, change := range changes[:len(changes)-1] {
			if want := []State{Open, HalfOpen}[i%2]; change != want {
				t.Fatalf("change %d is to %s", i, change)
			}
		}
		if changes[len(changes)-1] != Closed {
			t.Errorf("ends with %v", changes[len(changes)-1])
		}
	})
}

// TestAbandonedTrial: a trial whose caller goes away neither closes the circuit nor blocks the next trial.
func TestAbandonedTrial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := mustNew(t, nil)
		down := script{errs: []error{fail(events.Network), fail(events.Network), fail(events.Network)}}
		_, _ = Do(t.Context(), g, down.call)
		time.Sleep(11 * time.Second)
		ctx, leave := context.WithCancel(t.Context())
		_, err := Do(ctx, g, func(ctx context.Context) (int, error) { leave(); <-ctx.Done(); return 0, ctx.Err() })
		if s := g.Stats(); !errors.Is(err, context.Canceled) || s.State != Open || s.Failures != 3 || g.Ready() {
			t.Fatalf("%v, %+v", err, s)
		}
		time.Sleep(11 * time.Second)
		if _, err := Do(t.Context(), g, down.call); err != nil || g.Stats().State != Closed {
			t.Fatalf("the next trial: %v, %+v", err, g.Stats())
		}
	})
}

// TestPanic in a call is a failure, not the end of the process.
func TestPanic(t *testing.T) {
	g := mustNew(t, nil)
	_, err := Do(t.Context(), g, func(context.Context) (int, error) { panic("oh") })
	if events.ClassOf(err) != events.Internal || !strings.Contains(err.Error(), "oh") || g.Stats().Failures != 1 {
		t.Errorf("%v", err)
	}
}

// TestOptions: a caller may be less patient than the configuration, never more.
func TestOptions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told int
		g := mustNew(t, func(c *Config) { c.Retries, c.OnRetry = 1, func(Retry) { told++ } })
		hang := func(ctx context.Context) (int, error) { <-ctx.Done(); return 0, ctx.Err() }
		start := time.Now()
		_, err := Do(t.Context(), g, hang, Timeout(time.Second), Retries(0))
		if time.Since(start) != time.Second || events.ClassOf(err) != events.Timeout || g.Stats().Calls != 1 || told != 0 {
			t.Errorf("after %s: %v", time.Since(start), err)
		}
		start = time.Now()
		_, _ = Do(t.Context(), g, hang, Timeout(time.Hour), Retries(10))
		if calls := g.Stats().Calls; time.Since(start) > 21*time.Second || calls != 3 || told != 1 {
			t.Errorf("after %s: %d calls, told %d times", time.Since(start), calls, told)
		}
	})
}

func TestValidate(t *testing.T) {
	if err := Defaults("embed").Validate(); err != nil {
		t.Error(err)
	}
	bad := Config{Timeout: time.Hour, Retries: -1, BreakerFailures: 0, OpenTimeout: 2 * time.Hour, MaxRetryAfter: 6 * time.Minute}
	if err := bad.Validate(); err == nil || strings.Count(err.Error(), "\n") != 5 {
		t.Errorf("not all six problems are named: %v", err)
	}
	if _, err := New(bad); err == nil {
		t.Error("a guard was made of it")
	}
	if got := Defaults("embed").WorstCase(); got != 50*time.Second+4*(5*time.Minute+500*time.Millisecond) {
		t.Errorf("the worst case is %s", got)
	}
}

// TestConcurrent is for the race detector: calls, orders and readers at a time, and counters that add up.
func TestConcurrent(t *testing.T) {
	var transitions int // told one at a time
	g := mustNew(t, func(c *Config) {
		c.OpenTimeout, c.Retries = time.Millisecond, 0
		c.OnTransition = func(Transition) { transitions++ }
	})
	var wg sync.WaitGroup
	for worker := range 8 {
		wg.Go(func() {
			for i := range 500 {
				_, _ = Do(t.Context(), g, func(context.Context) (int, error) {
					if (i/20+worker)%3 == 0 {
						return 0, fail(events.Network)
					}
					return 0, nil
				})
				switch {
				case i%100 == 50:
					g.Force(ForceOpen)
				case i%100 == 60:
					g.Force(ForceNone)
				}
				if s := g.Stats(); s.Calls != s.Successes+s.Failures+s.Rejected+s.Running {
					t.Errorf("%+v", s)
				}
				g.Ready()
			}
		})
	}
	wg.Wait()
	if s := g.Stats(); s.Calls != 4000 || s.Running != 0 || transitions == 0 {
		t.Errorf("%+v", s)
	}
}

// BenchmarkDo is the overhead of a guarded call; the bar is 5 µs.
func BenchmarkDo(b *testing.B) {
	g := mustNew(b, nil)
	ctx := context.Background()
	call := func(context.Context) (int, error) { return 1, nil }
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Do(ctx, g, call); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkRejected is what a call costs while the circuit is open.
func BenchmarkRejected(b *testing.B) {
	g := mustNew(b, nil)
	g.Force(ForceOpen)
	ctx := context.Background()
	call := func(context.Context) (int, error) { return 1, nil }
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Do(ctx, g, call); err == nil {
			b.Fatal("called")
		}
	}
}
