package gateway

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"time"
)

// minRate is what an upload must reach in the long run, in bytes a second, so that a peer
// that sends a byte now and then does not hold a slot for hours.
const minRate = 4 << 10

// body reads a request's body in a bounded time: each piece within idle, the whole at
// minRate or faster after a first minute.
type body struct {
	r     io.Reader
	rc    *http.ResponseController
	alive func() error // checked between pieces
	idle  time.Duration
	began time.Time
	read  int64
	set   time.Time // when the deadline was last set
	err   error
}

func newBody(w http.ResponseWriter, r *http.Request, idle time.Duration, alive func() error) *body {
	return &body{r: r.Body, rc: http.NewResponseController(w), idle: idle, alive: alive, began: time.Now()}
}

func (b *body) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	if now := time.Now(); now.Sub(b.set) > b.idle/16 {
		if b.alive() != nil { // the bus is gone: nothing of this can be kept
			return 0, unavailable()
		}
		deadline := now.Add(b.idle)
		if slowest := b.began.Add(time.Minute + time.Duration(b.read/minRate)*time.Second); slowest.Before(deadline) {
			deadline = slowest
		}
		_ = b.rc.SetReadDeadline(deadline) // a test's recorder has none
		b.set = now
	}
	n, err := b.r.Read(p)
	b.read += int64(n)
	if err == nil {
		return n, nil
	}
	switch {
	case errors.Is(err, io.EOF):
		b.err = io.EOF
		_ = b.rc.SetReadDeadline(time.Time{}) // else it ends the request while the answer is being made
	case errors.Is(err, os.ErrDeadlineExceeded):
		b.err = refuse(http.StatusRequestTimeout, codeTimeout, "The upload stood still for too long.")
	default:
		b.err = incomplete()
	}
	return n, b.err
}

// done says that nothing more comes: the body was read to its end, or broke off.
func (b *body) done() bool { return b.err != nil }

func incomplete() *problemDetails {
	return refuse(http.StatusBadRequest, codeIncomplete, "The request ended before it was complete.")
}

// finish lets a peer that has not noticed the answer yet send on for a moment, as many
// clients read an answer only after they have sent everything; then the connection goes.
func (b *body) finish() {
	_ = b.rc.SetReadDeadline(time.Now().Add(5 * time.Second))
	_, _ = io.CopyN(io.Discard, b.r, 512<<20) // what it sends now does not matter
}

// capped fails with the problem over once more than left bytes came.
type capped struct {
	r    io.Reader
	left int64
	over *problemDetails
}

func (c *capped) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	if c.left -= int64(n); c.left < 0 {
		return 0, c.over
	}
	return n, err
}

// named makes a problem of a reader's own errors, so that they are not mistaken for the
// object store's.
type named struct{ r io.Reader }

func (s named) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		if _, ok := errors.AsType[*problemDetails](err); !ok {
			err = incomplete()
		}
	}
	return n, err
}

// readAll reads at most limit bytes.
func readAll(r io.Reader, limit int64, over *problemDetails) ([]byte, error) {
	return io.ReadAll(&capped{r: r, left: limit, over: over})
}

// discard removes an original that no job will use. It happens also when the client is gone.
func (g *Gateway) discard(ctx context.Context, object string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), requestTimeout)
	defer cancel()
	if err := g.store.DeleteOriginal(ctx, object); err != nil {
		g.log.Warn("an original without a job stays behind", "object", object, "error", err)
	}
}
