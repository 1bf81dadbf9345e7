package bus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/leafmill/leafmill/events"
)

// Claim waits until owner is the one owner of a name on this bus: at once when nobody is,
// or when it is owner already; else as a stand-by, which the log says, until the name is
// given up (nats kv del control owner.<name>). A claim does not run out: what belongs to
// the name, such as the chunks of an index, lies with its owner and nowhere else.
func (c *Conn) Claim(ctx context.Context, name, owner string) error {
	kv, err := c.js.KeyValue(ctx, events.BucketControl)
	if err != nil {
		return unavailable(err)
	}
	key := "owner." + name
	for said := false; ; {
		if _, err := kv.Create(ctx, key, []byte(owner)); err == nil {
			return nil
		}
		e, err := kv.Get(ctx, key)
		if err == nil && string(e.Value()) == owner {
			return nil
		}
		if err == nil && !said {
			said = true
			c.log.Warn("standing by: the "+name+" of this bus lies in another folder, and its documents are not in this one",
				"owner", string(e.Value()), "this", owner,
				"to give that one up", "nats kv del control "+key+", then hand the documents in again")
		}
		if err != nil && !errors.Is(err, jetstream.ErrKeyNotFound) {
			c.log.Warn("the owner cannot be read", "name", name, "error", err)
		}
		pause(ctx, 500*time.Millisecond)
		if ctx.Err() != nil {
			return fmt.Errorf("bus: claim %s: %w", name, ctx.Err())
		}
	}
}
