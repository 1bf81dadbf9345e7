package artifacts_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/leafmill/leafmill/events"
	"github.com/leafmill/leafmill/internal/artifacts"
	"github.com/leafmill/leafmill/internal/bus"
)

func open(t *testing.T) (*artifacts.Store, jetstream.JetStream) {
	t.Helper()
	srv, err := bus.StartServer(bus.ServerConfig{Dir: t.TempDir(), Addr: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(srv.Stop)
	c, err := bus.Connect(t.Context(), bus.Options{Server: srv, Service: "gateway", Instance: "test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	if err := c.Ensure(t.Context(), bus.Layout{MaxBytes: 64 << 20}); err != nil {
		t.Fatal(err)
	}
	s, err := artifacts.Open(t.Context(), c.JetStream())
	if err != nil {
		t.Fatal(err)
	}
	return s, c.JetStream()
}

func stored(t *testing.T, js jetstream.JetStream) uint64 {
	t.Helper()
	s, err := js.Stream(t.Context(), "OBJ_"+events.BucketOriginals)
	if err != nil {
		t.Fatal(err)
	}
	return s.CachedInfo().State.Msgs
}

// TestUploadsAreObjects reads uploads with the object store's own client, which checks
// size and digest.
func TestUploadsAreObjects(t *testing.T) {
	s, js := open(t)
	bucket, err := js.ObjectStore(t.Context(), events.BucketOriginals)
	if err != nil {
		t.Fatal(err)
	}
	rnd := rand.NewChaCha8([32]byte{1})
	for _, size := range []int{0, 1, 128<<10 - 1, 128 << 10, 128<<10 + 1, 5<<20 + 7} {
		data := make([]byte, size)
		_, _ = rnd.Read(data) // never fails
		name := "job-" + hex.EncodeToString(data[:min(4, size)]) + "/original ü"
		up, err := s.PutOriginal(t.Context(), name, iotest.HalfReader(bytes.NewReader(data)))
		if err != nil {
			t.Fatal(err)
		}
		if sum := sha256.Sum256(data); up.Object != name || up.Size != int64(size) || up.SHA256 != hex.EncodeToString(sum[:]) {
			t.Errorf("%d bytes: %+v", size, up)
		}
		got, err := bucket.GetBytes(t.Context(), name)
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("%d bytes: read %d: %v", size, len(got), err)
		}
		if err := s.DeleteOriginal(t.Context(), name); err != nil {
			t.Error(err)
		}
		if _, err := bucket.GetInfo(t.Context(), name); !errors.Is(err, jetstream.ErrObjectNotFound) {
			t.Errorf("after the deletion: %v", err)
		}
	}
}

func TestAnUploadThatBreaksOffLeavesNothing(t *testing.T) {
	s, js := open(t)
	zeros := io.LimitReader(zero{}, 3<<20)
	for _, reason := range []error{io.ErrUnexpectedEOF, errors.New("gone")} {
		_, err := s.PutOriginal(t.Context(), "x", io.MultiReader(zeros, iotest.ErrReader(reason)))
		if !errors.Is(err, reason) {
			t.Errorf("%v, want %v", err, reason)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	n := 0
	_, err := s.PutOriginal(ctx, "x", readerFunc(func(p []byte) (int, error) {
		if n += len(p); n > 3<<20 {
			cancel()
		}
		return len(p), nil
	}))
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if n := stored(t, js); n != 0 {
		t.Errorf("%d messages left", n)
	}
}

// TestUploadsAtOnceDoNotFailEachOther sends more than the server takes unstored (128 MB a
// stream) faster than a disk with fsync does.
func TestUploadsAtOnceDoNotFailEachOther(t *testing.T) {
	s, _ := open(t)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			if _, err := s.PutOriginal(t.Context(), string(rune('a'+i)), io.LimitReader(zero{}, 32<<20)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

type zero struct{}

func (zero) Read(p []byte) (int, error) { clear(p); return len(p), nil }

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
