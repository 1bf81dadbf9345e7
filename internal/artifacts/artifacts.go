// Package artifacts keeps what is too large for an event: uploads in the bucket
// originals, stage outputs in the bucket artifacts (the claim check). Small content rides
// in the event; one Put and Get pair decides, so that no stage cares which.
//
// Objects in the bucket artifacts are named <job>/<sha256>: nothing is ever rewritten,
// and writing the same content again is free. Uploads and downloads are streamed, never
// whole in memory.
package artifacts

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/leafmill/leafmill/events"
)

// Store gives access to both buckets.
type Store struct {
	js                   jetstream.JetStream
	originals, artifacts jetstream.ObjectStore
}

// Open finds the buckets; the layout of internal/bus creates them.
func Open(ctx context.Context, js jetstream.JetStream) (*Store, error) {
	o, err := js.ObjectStore(ctx, events.BucketOriginals)
	if err != nil {
		return nil, fmt.Errorf("artifacts: bucket %s: %w", events.BucketOriginals, err)
	}
	a, err := js.ObjectStore(ctx, events.BucketArtifacts)
	if err != nil {
		return nil, fmt.Errorf("artifacts: bucket %s: %w", events.BucketArtifacts, err)
	}
	return &Store{js: js, originals: o, artifacts: a}, nil
}

func (s *Store) bucket(name string) (jetstream.ObjectStore, error) {
	switch name {
	case events.BucketOriginals:
		return s.originals, nil
	case events.BucketArtifacts:
		return s.artifacts, nil
	}
	return nil, events.Fail(events.Invalid, "There is no bucket %q.", name)
}

// Put makes the content of an event of a job from a value: inline up to 64 KB of JSON,
// else an object.
func (s *Store) Put(ctx context.Context, job string, v any) (events.Content, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return events.Content{}, fmt.Errorf("artifacts: encode: %w", err)
	}
	if len(data) <= events.MaxInline {
		return events.Content{Inline: data, Size: len(data)}, nil
	}
	sum := sha256.Sum256(data)
	name := job + "/" + hex.EncodeToString(sum[:])
	if err := s.putOnce(ctx, name, bytes.NewReader(data)); err != nil {
		return events.Content{}, err
	}
	return events.Content{Object: name, Size: len(data)}, nil
}

// Get reads the content of an event into v.
func (s *Store) Get(ctx context.Context, c events.Content, v any) error {
	data := []byte(c.Inline)
	if c.Object != "" {
		r, err := s.artifacts.Get(ctx, c.Object)
		if err != nil {
			return fault(events.BucketArtifacts, c.Object, err)
		}
		defer func() { _ = r.Close() }()
		if data, err = io.ReadAll(io.LimitReader(r, maxContent)); err != nil {
			return fault(events.BucketArtifacts, c.Object, err)
		}
	}
	if len(data) == 0 {
		return events.Fail(events.Invalid, "The event carries no content.")
	}
	if err := json.Unmarshal(data, v); err != nil {
		return events.Fail(events.Invalid, "The event's content is not what its type says.").Because(err)
	}
	return nil
}

// maxContent bounds a segment's content, in bytes of JSON: a page of 8 MB of text, chunked
// and with vectors.
const maxContent = 256 << 20

// putOnce writes an object unless it is there: putting a name again would stop its readers.
func (s *Store) putOnce(ctx context.Context, name string, r io.Reader) error {
	if _, err := s.artifacts.GetInfo(ctx, name); err == nil {
		return nil
	}
	if _, err := s.artifacts.Put(ctx, jetstream.ObjectMeta{Name: name}, r); err != nil {
		return fault(events.BucketArtifacts, name, err)
	}
	return nil
}

// Upload is a stored original.
type Upload struct {
	Object string
	Size   int64
	SHA256 string // hex
}

// DeleteOriginal removes an upload; one that is not there is no error.
func (s *Store) DeleteOriginal(ctx context.Context, name string) error {
	if err := s.originals.Delete(ctx, name); err != nil && !errors.Is(err, jetstream.ErrObjectNotFound) {
		return fault(events.BucketOriginals, name, err)
	}
	return nil
}

// Keep stores a local copy in the bucket artifacts under a name of the job's own, so that
// other replicas find it, and returns the source.
func (s *Store) Keep(ctx context.Context, job string, l Local) (events.Source, error) {
	f, err := os.Open(l.Path)
	if err != nil {
		return events.Source{}, fmt.Errorf("artifacts: %w", err)
	}
	defer func() { _ = f.Close() }()
	src := events.Source{Bucket: events.BucketArtifacts, Object: job + "/" + l.SHA256, SHA256: l.SHA256, Size: l.Size}
	return src, s.putOnce(ctx, src.Object, f)
}

// fault classifies what a bucket said.
func fault(bucket, name string, err error) error {
	var f *events.Failure
	switch {
	case errors.As(err, &f):
		return err // a limit of the reader's own
	case errors.Is(err, jetstream.ErrObjectNotFound):
		return events.Fail(events.Invalid, "The object %s/%s is gone.", bucket, name).Because(err)
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("artifacts: %s/%s: %w", bucket, name, err)
	}
	return events.Fail(events.Unavailable, "The object store does not answer; try again later.").Because(err)
}
