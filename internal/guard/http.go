package guard

import (
	"context"
	"errors"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/leafmill/leafmill/events"
)

// retryAfter is an error with the time that the dependency asked us to wait.
type retryAfter struct {
	error
	delay time.Duration
}

func (r *retryAfter) Unwrap() error { return r.error }

// WithRetryAfter adds to an error how long the dependency asked us to wait. No wait adds nothing.
func WithRetryAfter(err error, delay time.Duration) error {
	if err == nil || delay <= 0 {
		return err
	}
	return &retryAfter{err, delay}
}

// RetryAfterOf is the wait that an error asks for.
func RetryAfterOf(err error) (time.Duration, bool) {
	if r, ok := errors.AsType[*retryAfter](err); ok {
		return r.delay, true
	}
	return 0, false
}

// FromStatus is the failure that an HTTP status other than 2xx means, with its Retry-After; who is the
// dependency's name for the sentence. 429 is rate_limited, 408 and 504 timeout, any other 5xx unavailable,
// and the rest invalid: asking again does not help.
func FromStatus(who string, status int, header http.Header) error {
	name := strings.TrimSpace(strconv.Itoa(status) + " " + http.StatusText(status))
	var f *events.Failure
	switch {
	case status == http.StatusTooManyRequests:
		f = events.Fail(events.RateLimited, "%s is asked too often (HTTP %s).", who, name)
	case status == http.StatusRequestTimeout || status == http.StatusGatewayTimeout:
		f = events.Fail(events.Timeout, "%s gave no answer in time (HTTP %s).", who, name)
	case status >= 500:
		f = events.Fail(events.Unavailable, "%s is not available (HTTP %s).", who, name)
	default:
		return events.Fail(events.Invalid, "%s refused the request (HTTP %s).", who, name)
	}
	return WithRetryAfter(f, parseRetryAfter(header.Get("Retry-After"), time.Now()))
}

// FromTransport is the failure that an error of an HTTP client means: timeout or network. The error of
// an ended context stays reachable by errors.Is.
func FromTransport(who string, err error) error {
	netErr, ok := errors.AsType[net.Error](err)
	if errors.Is(err, context.DeadlineExceeded) || ok && netErr.Timeout() {
		return events.Fail(events.Timeout, "%s gave no answer in time.", who).Because(err)
	}
	return events.Fail(events.Network, "%s cannot be reached or broke the connection.", who).Because(err)
}

// longestRetryAfter bounds what is understood; longer than any MaxRetryAfter is all the same.
const longestRetryAfter = 365 * 24 * time.Hour

// parseRetryAfter understands both forms of the header, seconds and a date; 0 when it is neither or over.
func parseRetryAfter(value string, now time.Time) time.Duration {
	value = strings.TrimSpace(value)
	// Seconds may come with a fraction, though RFC 9110 has none.
	if seconds, err := strconv.ParseFloat(value, 64); err == nil {
		switch {
		case !(seconds > 0): // also not a number
			return 0
		case seconds > longestRetryAfter.Seconds():
			return longestRetryAfter
		}
		return time.Duration(seconds * float64(time.Second))
	}
	if date, err := http.ParseTime(value); err == nil {
		return min(max(date.Sub(now), 0), longestRetryAfter)
	}
	return 0
}
