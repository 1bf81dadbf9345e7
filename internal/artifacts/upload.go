package artifacts

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"github.com/leafmill/leafmill/events"
)

const (
	pieceBytes = 128 << 10 // of an object, in a message: the object store's own default
	// pieceWindow is how many pieces of an upload may wait to be stored. The object store's
	// Put lets up to 4,000 wait, half a gigabyte that the server holds in memory; beyond
	// 128 MB for the whole bucket it refuses, and uploads at the same time fail each other.
	pieceWindow  = 8
	pieceTimeout = 10 * time.Second
	lookEvery    = 100 * time.Millisecond // whether the bus is still there
	undoPatience = 2 * time.Second        // for the bus to come back
)

// upload writes an object in the object store's format (NATS ADR-20), piece by piece, and
// never has more than pieceWindow of them on the way.
type upload struct {
	js     jetstream.JetStream
	bucket string
	id     string // names the pieces
	window []jetstream.PubAckFuture
	hash   hash.Hash
	size   int64
	pieces uint32
}

// putNew streams r into a bucket under a name that must be new. After an error nothing is
// left behind, unless the bus is gone too.
func putNew(ctx context.Context, js jetstream.JetStream, bucket, name string, r io.Reader) (*upload, error) {
	u := &upload{js: js, bucket: bucket, id: nuid.Next(), hash: sha256.New()}
	err := u.send(ctx, r)
	if err == nil {
		err = u.commit(ctx, name)
	}
	if err != nil {
		u.undo(ctx)
		return nil, err
	}
	return u, nil
}

func (u *upload) subject() string { return "$O." + u.bucket + ".C." + u.id }

func (u *upload) send(ctx context.Context, r io.Reader) error {
	for {
		piece := make([]byte, pieceBytes) // the client keeps it until it is stored
		n, err := fill(r, piece)
		end := errors.Is(err, io.EOF)
		if err != nil && !end {
			return err
		}
		if n > 0 {
			if len(u.window) == pieceWindow {
				if err := u.settle(ctx); err != nil {
					return err
				}
			}
			f, err := u.js.PublishMsgAsync(&nats.Msg{Subject: u.subject(), Data: piece[:n]}, jetstream.WithRetryAttempts(0))
			if err != nil {
				return err
			}
			u.window = append(u.window, f)
			u.hash.Write(piece[:n])
			u.size += int64(n)
			u.pieces++
		}
		if end {
			break
		}
	}
	for len(u.window) > 0 {
		if err := u.settle(ctx); err != nil {
			return err
		}
	}
	return nil
}

// fill reads until the piece is full or r says why not. Unlike io.ReadFull it keeps a
// reader's own io.ErrUnexpectedEOF, an upload that broke off, apart from the end.
func fill(r io.Reader, piece []byte) (n int, err error) {
	for n < len(piece) && err == nil {
		var k int
		k, err = r.Read(piece[n:])
		n += k
	}
	return n, err
}

// settle waits until the oldest piece on the way is stored. It does not sit out an outage.
func (u *upload) settle(ctx context.Context) error {
	f := u.window[0]
	u.window = u.window[1:]
	deadline := time.NewTimer(pieceTimeout)
	defer deadline.Stop()
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for {
		select {
		case <-f.Ok():
			return nil
		case err := <-f.Err():
			return err
		case <-look.C:
			if !u.js.Conn().IsConnected() {
				return nats.ErrDisconnected
			}
		case <-ctx.Done():
			return ctx.Err()
		case <-deadline.C:
			return nats.ErrTimeout
		}
	}
}

// commit stores what makes the pieces an object.
func (u *upload) commit(ctx context.Context, name string) error {
	info := jetstream.ObjectInfo{
		ObjectMeta: jetstream.ObjectMeta{Name: name, Opts: &jetstream.ObjectMetaOptions{ChunkSize: pieceBytes}},
		Bucket:     u.bucket, NUID: u.id, Size: uint64(u.size), Chunks: u.pieces,
		Digest: jetstream.GetObjectDigestValue(u.hash),
	}
	data, err := json.Marshal(info)
	if err != nil {
		return fmt.Errorf("artifacts: encode: %w", err)
	}
	m := nats.NewMsg("$O." + u.bucket + ".M." + base64.URLEncoding.EncodeToString([]byte(name)))
	m.Header.Set(jetstream.MsgRollup, jetstream.MsgRollupSubject)
	m.Data = data
	ctx, cancel := context.WithTimeout(ctx, pieceTimeout)
	defer cancel()
	_, err = u.js.PublishMsg(ctx, m)
	return err
}

// undo removes the pieces, also when ctx has ended; after a short outage too, after a
// longer one they stay. Those on the way come first: a piece stored after the purge would
// stay.
func (u *upload) undo(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), pieceTimeout)
	defer cancel()
	for len(u.window) > 0 {
		_ = u.settle(ctx) // stored or not, it is settled
	}
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for end := time.Now().Add(undoPatience); !u.js.Conn().IsConnected(); <-look.C {
		if time.Now().After(end) {
			return
		}
	}
	ctx, cancel = context.WithTimeout(ctx, undoPatience)
	defer cancel()
	if s, err := u.js.Stream(ctx, "OBJ_"+u.bucket); err == nil {
		_ = s.Purge(ctx, jetstream.WithPurgeSubject(u.subject())) // nobody is left to tell
	}
}

// PutOriginal streams an upload into the bucket originals under name, which must be new.
// When r fails, or ctx ends, nothing is left behind.
func (s *Store) PutOriginal(ctx context.Context, name string, r io.Reader) (Upload, error) {
	u, err := putNew(ctx, s.js, events.BucketOriginals, name, r)
	if err != nil {
		return Upload{}, fault(events.BucketOriginals, name, err)
	}
	return Upload{Object: name, Size: u.size, SHA256: hex.EncodeToString(u.hash.Sum(nil))}, nil
}
