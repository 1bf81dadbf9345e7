package client

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/leafmill/leafmill/internal/api"
)

// maxEvent bounds a line of the event stream, in bytes: an event and what surrounds it.
const maxEvent = 1 << 20

// Events calls f with every event of a job after a sequence (0: all), stored ones first and
// then new ones as they happen, until f says enough, ctx ends or the server closes.
func (c *Client) Events(ctx context.Context, job string, after uint64, f func(api.StreamEvent) (enough bool, err error)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+"/jobs/"+url.PathEscape(job)+"/events", nil)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", "text/event-stream")
	if after > 0 {
		req.Header.Set("Last-Event-ID", strconv.FormatUint(after, 10))
	}
	resp, err := c.send(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return refused(resp)
	}
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(make([]byte, 64<<10), maxEvent)
	var data strings.Builder
	for lines.Scan() {
		field, value, _ := strings.Cut(lines.Text(), ":")
		switch {
		case lines.Text() == "" && data.Len() > 0:
			var e api.StreamEvent
			if err := json.Unmarshal([]byte(data.String()), &e); err != nil {
				return fmt.Errorf("an event of %s cannot be read: %w", c.base, err)
			}
			data.Reset()
			if enough, err := f(e); enough || err != nil {
				return err
			}
		case field == "data":
			if data.Len() > 0 {
				data.WriteByte('\n')
			}
			data.WriteString(strings.TrimPrefix(value, " "))
			if data.Len() > maxEvent {
				return fmt.Errorf("an event of %s is larger than %d bytes", c.base, maxEvent)
			}
		}
	}
	if err := lines.Err(); err != nil {
		return c.unreachable(ctx, err)
	}
	return nil
}
