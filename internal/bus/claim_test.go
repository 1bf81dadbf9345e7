package bus_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/leafmill/leafmill/events"
)

func TestClaimHasOneOwner(t *testing.T) {
	srv := startServer(t)
	c := connect(t, srv, "index")
	layout(t, c)
	for range 2 { // again, as after a crash
		if err := c.Claim(t.Context(), "index", "first"); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := c.Claim(ctx, "index", "second"); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("two own it: %v", err)
	}
	got := make(chan error, 1)
	go func() { got <- c.Claim(t.Context(), "index", "second") }()
	kv, err := c.JetStream().KeyValue(t.Context(), events.BucketControl)
	if err != nil {
		t.Fatal(err)
	}
	if err := kv.Delete(t.Context(), "owner.index"); err != nil {
		t.Fatal(err)
	}
	if err := <-got; err != nil {
		t.Error(err)
	}
}
