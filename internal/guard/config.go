package guard

import (
	"errors"
	"fmt"
	"time"
)

// Config sets the limits of a guard. Start from Defaults: there is no other meaning of zero than zero.
type Config struct {
	Name            string        // of the dependency, such as embed or llm
	Timeout         time.Duration // for one call
	Retries         int           // calls after the first
	BreakerFailures int           // failures in a row that open the circuit
	OpenTimeout     time.Duration // how long the circuit stays open before one trial call
	MaxRetryAfter   time.Duration // the longest Retry-After that is waited for
	Seed            uint64        // of the jitter; 0 takes one at random

	// OnTransition is told of every change of the circuit, in their order; OnRetry of every delay before
	// a retry (the option of the same name tells one caller of its own). Both run on the caller's
	// goroutine and outside all locks; a slow one delays calls.
	OnTransition func(Transition)
	OnRetry      func(Retry)
}

// The bounds of the settings.
const (
	MaxTimeout         = 10 * time.Minute
	MaxRetries         = 20
	MaxBreakerFailures = 1000
	MaxOpenTimeout     = time.Hour
	MaxRetryAfter      = 5 * time.Minute

	// MaxHanging is the most calls that may ignore their time-out at a time: while so many have not come
	// back, no further one is made.
	MaxHanging = 16
)

// The delays between retries: full jitter below a ceiling that doubles.
const (
	firstDelay = 500 * time.Millisecond
	delayCap   = 8 * time.Second
)

// Defaults are the settings of a dependency that nobody configured.
func Defaults(name string) Config {
	return Config{Name: name, Timeout: 10 * time.Second, Retries: 4, BreakerFailures: 3,
		OpenTimeout: 10 * time.Second, MaxRetryAfter: MaxRetryAfter}
}

// Validate names all settings that are out of bounds, joined; nil when there are none.
func (c Config) Validate() error {
	var problems []error
	duration := func(what string, value, least, most time.Duration) {
		if value < least || value > most {
			problems = append(problems, fmt.Errorf("%s: %s must be %s to %s, not %s", c.Name, what, least, most, value))
		}
	}
	number := func(what string, value, least, most int) {
		if value < least || value > most {
			problems = append(problems, fmt.Errorf("%s: %s must be %d to %d, not %d", c.Name, what, least, most, value))
		}
	}
	if c.Name == "" {
		problems = append(problems, errors.New("a guard needs a name"))
	}
	duration("the time-out", c.Timeout, time.Millisecond, MaxTimeout)
	number("retries", c.Retries, 0, MaxRetries)
	number("breaker failures", c.BreakerFailures, 1, MaxBreakerFailures)
	duration("the breaker's open time-out", c.OpenTimeout, time.Millisecond, MaxOpenTimeout)
	duration("the longest Retry-After", c.MaxRetryAfter, 0, MaxRetryAfter)
	return errors.Join(problems...)
}

// WorstCase is the longest that one Do can take: every call runs into its time-out and every delay is
// the longest. A deadline around it should be longer, or it, not the guard, decides.
func (c Config) WorstCase() time.Duration {
	return time.Duration(c.Retries+1)*c.Timeout + time.Duration(c.Retries)*max(delayCap, c.MaxRetryAfter+firstDelay)
}
