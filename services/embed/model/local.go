//go:build cgo

package model

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"

	ort "github.com/yalue/onnxruntime_go"
	"golang.org/x/sync/errgroup"

	"github.com/leafmill/leafmill/events"
	"github.com/leafmill/leafmill/internal/localmodel"
	"github.com/leafmill/leafmill/internal/tokenizer"
)

// The graph of all-MiniLM-L6-v2.
const (
	localName      = "all-MiniLM-L6-v2"
	localSpace     = "local/all-MiniLM-L6-v2/384/fp32"
	localDims      = 384
	localPositions = 512 // that a text may have, [CLS] and [SEP] included
	localBatch     = 4
)

// local is the built-in model. Texts are computed one by one, without padding, on as many
// goroutines as there are cores: measured faster than batches, in a tenth of the memory.
type local struct {
	tokens  *tokenizer.WordPiece
	session *ort.DynamicAdvancedSession
	slots   chan struct{} // one a running text; Close takes all of them for ever

	close  sync.Once
	closed chan struct{}
}

// OpenLocal opens the built-in model from a folder of models (see localmodel.Dir); it
// computes at most so many texts at a time, cores of them, each on one thread. All files
// are hashed before any is used. The error is a missing_model Failure when they are not
// all there and right.
//
// A process holds one copy of the model, however often it is opened: 190 MB. The folder of
// a later opening is checked all the same. The memory goes when the last one is closed; the
// runtime's library stays loaded.
func OpenLocal(dir string, cores int) (Model, error) {
	files := localmodel.In(dir)
	// A truncated library kills the process (SIGBUS) when it is loaded: the hash comes first.
	if err := files.Check(); err != nil {
		return nil, err
	}
	tokens, err := tokenizer.Load(files.Tokenizer.Path)
	if err != nil {
		return nil, events.Fail(events.MissingModel, "The tokenizer of the local embedding model cannot be read; run `make setup`.").Because(err)
	}
	session, err := process.open(files)
	if err != nil {
		return nil, events.Fail(events.MissingModel,
			"The ONNX Runtime of the local embedding model cannot be started (it needs glibc 2.28 or later and libstdc++6); "+
				"set LEAFMILL_EMBED_PROVIDER=openai and an endpoint, or none.").Because(err)
	}
	return &local{
		tokens:  tokens,
		session: session,
		slots:   make(chan struct{}, max(cores, 1)),
		closed:  make(chan struct{}),
	}, nil
}

func (*local) Name() string  { return localName }
func (*local) Space() string { return localSpace }
func (*local) Batch() int    { return localBatch }

// Embed refuses all texts when one is empty or too long, before it computes any.
func (l *local) Embed(ctx context.Context, _ Kind, texts []string) (Result, error) {
	ids := make([][]int64, len(texts))
	result := Result{Vectors: make([][]float32, len(texts))}
	for i, text := range texts {
		var err error
		if ids[i], err = l.encode(text); err != nil {
			return Result{}, err
		}
		result.Tokens += len(ids[i])
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(cap(l.slots))
	for i := range ids {
		group.Go(func() error {
			if err := l.acquire(ctx); err != nil {
				return err
			}
			defer func() { <-l.slots }()
			var err error
			result.Vectors[i], err = compute(l.session, ids[i])
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return Result{}, err
	}
	return result, nil
}

// encode gives the ids of a text between [CLS] and [SEP].
func (l *local) encode(text string) ([]int64, error) {
	tokens := l.tokens.Encode(text)
	switch n := len(tokens) + 2; {
	case len(tokens) == 0:
		// The model would give a vector that looks like any other.
		return nil, events.Fail(events.Invalid, "The text is empty: there is nothing to embed.")
	case n > localPositions:
		return nil, events.Fail(events.Invalid, "The text is too long: it has %d tokens and the local model reads %d; cut it into smaller chunks.", n, localPositions)
	}
	ids := make([]int64, 0, len(tokens)+2)
	ids = append(ids, int64(tokenizer.CLS))
	for _, token := range tokens {
		ids = append(ids, int64(token.ID))
	}
	return append(ids, int64(tokenizer.SEP)), nil
}

// acquire waits for one of the slots.
func (l *local) acquire(ctx context.Context) error {
	// Several cases of a select may be ready, and then chance decides: an ended context or
	// a closed model is asked for first.
	if ctx.Err() == nil && !l.isClosed() {
		select {
		case l.slots <- struct{}{}:
			return nil
		case <-ctx.Done():
		case <-l.closed:
		}
	}
	if l.isClosed() {
		return events.Fail(events.Unavailable, "The local embedding model is closed.")
	}
	return events.Fail(events.Timeout, "The local embedding model did not finish in time.").Because(context.Cause(ctx))
}

func (l *local) isClosed() bool {
	select {
	case <-l.closed:
		return true
	default:
		return false
	}
}

// Close waits for the texts that are being computed. Later calls of Embed fail.
func (l *local) Close() error {
	var err error
	l.close.Do(func() {
		close(l.closed)
		for range cap(l.slots) {
			l.slots <- struct{}{}
		}
		err = process.release()
	})
	return err
}

// compute runs the graph on one text and gives its vector: the mean of the positions'
// vectors, at unit length. There is no padding, so the mask has ones only.
func compute(session *ort.DynamicAdvancedSession, ids []int64) (vector []float32, err error) {
	n := int64(len(ids))
	mask := make([]int64, n)
	for i := range mask {
		mask[i] = 1
	}
	var values [4]ort.Value
	defer func() {
		for _, value := range values {
			if value != nil {
				err = errors.Join(err, value.Destroy())
			}
		}
		if err != nil {
			vector, err = nil, events.Fail(events.Internal, "The local embedding model failed.").Because(err)
		}
	}()
	for i, data := range [][]int64{ids, mask, make([]int64, n)} {
		tensor, err := ort.NewTensor(ort.NewShape(1, n), data)
		if err != nil {
			return nil, err
		}
		values[i] = tensor
	}
	hidden, err := ort.NewEmptyTensor[float32](ort.NewShape(1, n, localDims))
	if err != nil {
		return nil, err
	}
	values[3] = hidden
	if err := session.Run(values[:3], values[3:]); err != nil {
		return nil, err
	}
	return pool(hidden.GetData())
}

// pool is the mean over rows of localDims values, at unit length.
func pool(rows []float32) ([]float32, error) {
	var sums [localDims]float64
	for row := rows; len(row) >= localDims; row = row[localDims:] {
		for i, v := range row[:localDims] {
			sums[i] += float64(v)
		}
	}
	var square float64
	for _, v := range sums {
		square += v * v
	}
	length := math.Sqrt(square) // of the sum: the mean has the same direction
	if !(length > 0) || math.IsInf(length, 0) {
		return nil, fmt.Errorf("the vector has length %v", length)
	}
	vector := make([]float32, localDims)
	for i, v := range sums {
		vector[i] = float32(v / length)
	}
	return vector, nil
}

// process is this process's one session. A global, as the library has a global environment:
// a second copy of the model would be of no use and cost 107 MB.
var process shared

type shared struct {
	mu      sync.Mutex
	users   int
	session *ort.DynamicAdvancedSession
}

// open gives the session, made from these checked files if there is none yet. Any checked
// files are equal, wherever they lie.
func (s *shared) open(files localmodel.Files) (*ort.DynamicAdvancedSession, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.session == nil {
		if !ort.IsInitialized() {
			ort.SetSharedLibraryPath(files.Runtime.Path)
			if err := ort.InitializeEnvironment(ort.WithLogLevelFatal()); err != nil {
				return nil, err
			}
		}
		session, err := newSession(files.Model.Path)
		if err != nil {
			return nil, err
		}
		s.session = session
	}
	s.users++
	return s.session, nil
}

func (s *shared) release() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.users--; s.users > 0 {
		return nil
	}
	session := s.session
	s.session = nil
	return session.Destroy()
}

func newSession(path string) (session *ort.DynamicAdvancedSession, err error) {
	options, err := ort.NewSessionOptions()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, options.Destroy()) }()
	err = errors.Join(
		options.SetIntraOpNumThreads(1), // the cores are used by texts
		options.SetInterOpNumThreads(1),
		options.AddSessionConfigEntry("session.intra_op.allow_spinning", "0"), // three times the CPU for nothing
		options.SetLogSeverityLevel(ort.LoggingLevelFatal),
	)
	if err != nil {
		return nil, err
	}
	return ort.NewDynamicAdvancedSession(path,
		strings.Fields("input_ids attention_mask token_type_ids"), []string{"last_hidden_state"}, options)
}
