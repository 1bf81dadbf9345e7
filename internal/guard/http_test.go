package guard

import (
	"context"
	"errors"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/leafmill/leafmill/events"
)

func TestFromStatus(t *testing.T) {
	for _, test := range []struct {
		status int
		after  string
		class  events.Class
		wait   time.Duration
	}{
		{429, "", events.RateLimited, 0},
		{429, "30", events.RateLimited, 30 * time.Second},
		{503, "2", events.Unavailable, 2 * time.Second},
		{500, "", events.Unavailable, 0},
		{529, "", events.Unavailable, 0}, // one of the odd ones out there
		{504, "", events.Timeout, 0},
		{408, "", events.Timeout, 0},
		{400, "30", events.Invalid, 0},
		{401, "", events.Invalid, 0},
		{404, "", events.Invalid, 0},
		{302, "", events.Invalid, 0},
	} {
		err := FromStatus("the service", test.status, http.Header{"Retry-After": {test.after}})
		wait, _ := RetryAfterOf(err)
		if events.ClassOf(err) != test.class || wait != test.wait {
			t.Errorf("%d, Retry-After %q: %v, %s", test.status, test.after, err, wait)
		}
	}
}

func TestParseRetryAfter(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for value, want := range map[string]time.Duration{
		"":                                0,
		"0":                               0,
		"-3":                              0,
		"7":                               7 * time.Second,
		" 7 ":                             7 * time.Second,
		"1.5":                             1500 * time.Millisecond,
		"NaN":                             0,
		"Inf":                             longestRetryAfter,
		"99999999999999999999":            longestRetryAfter,
		"soon":                            0,
		"Sun, 01 Mar 2026 12:02:00 GMT":   2 * time.Minute,
		"Sunday, 01-Mar-26 12:02:00 GMT":  2 * time.Minute,
		"Sun, 01 Mar 2026 11:00:00 GMT":   0,
		"Fri, 01 Mar 9999 11:00:00 GMT":   longestRetryAfter,
		"Sun, 01 Mar 2026 12:02:00 +0100": 0, // not a date of HTTP
	} {
		if got := parseRetryAfter(value, now); got != want {
			t.Errorf("%q is %s, not %s", value, got, want)
		}
	}
	if _, ok := RetryAfterOf(WithRetryAfter(errors.New("x"), 0)); ok {
		t.Error("no wait became one")
	}
	if WithRetryAfter(nil, time.Second) != nil {
		t.Error("no error became one")
	}
	if after, _ := RetryAfterOf(WithRetryAfter(errors.New("x"), math.MaxInt64)); after != math.MaxInt64 {
		t.Errorf("%s", after)
	}
}

// TestFromTransport uses the errors of a real client.
func TestFromTransport(t *testing.T) {
	release := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/break" {
			conn, _, err := w.(http.Hijacker).Hijack()
			if err == nil {
				_ = conn.Close()
			}
			return
		}
		<-release
	}))
	defer server.Close()
	defer close(release)
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	refused := "http://" + closed.Addr().String()
	if err := closed.Close(); err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	get := func(ctx context.Context, client *http.Client, url string) error {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		response, err := client.Do(request)
		if err == nil {
			_ = response.Body.Close()
			t.Fatalf("%s answered", url)
		}
		return FromTransport("the service", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	gone, leave := context.WithCancel(t.Context())
	leave()
	for name, test := range map[string]struct {
		err   error
		class events.Class
		is    error
	}{
		"deadline":        {get(ctx, &http.Client{Transport: transport}, server.URL), events.Timeout, context.DeadlineExceeded},
		"client time-out": {get(t.Context(), &http.Client{Transport: transport, Timeout: 20 * time.Millisecond}, server.URL), events.Timeout, nil},
		"broken":          {get(t.Context(), &http.Client{Transport: transport}, server.URL+"/break"), events.Network, nil},
		"refused":         {get(t.Context(), &http.Client{Transport: transport}, refused), events.Network, nil},
		"caller left":     {get(gone, &http.Client{Transport: transport}, server.URL), events.Network, context.Canceled},
	} {
		if events.ClassOf(test.err) != test.class || test.is != nil && !errors.Is(test.err, test.is) {
			t.Errorf("%s: %v", name, test.err)
		}
	}
}
