// Package model turns texts into vectors: with the local model, with any endpoint that
// speaks the OpenAI embeddings API, or not at all.
package model

import (
	"context"

	"github.com/leafmill/leafmill/events"
)

// Kind says what a text is for: some models want questions and passages prefixed.
type Kind int

// The kinds.
const (
	Passage Kind = iota
	Query
)

// Result of a call: a vector a text, in their order, each of unit length or as the
// endpoint gave it, finite, of the space's dimension.
type Result struct {
	Vectors [][]float32
	Tokens  int // as the model counts them, or estimated where it does not say
}

// Model embeds texts. It is safe for concurrent use.
type Model interface {
	// Name is for people: the model in use.
	Name() string
	// Space names the vectors' space: provider, model, dimensions, prefixes and graph. It
	// is empty before the first answer of an endpoint whose dimension nobody knows yet.
	Space() string
	// Batch is how many texts one call should carry.
	Batch() int
	// Embed makes one call. Errors carry an events.Class; Invalid when a text is longer
	// than the model reads, nothing is ever truncated.
	Embed(ctx context.Context, kind Kind, texts []string) (Result, error)
	Close() error
}

// None is the model that is not there: every call fails with missing_model.
type None struct {
	Why string // a sentence that says what to do
}

// Name is empty: there is no model.
func (None) Name() string { return "" }

// Space is empty.
func (None) Space() string { return "" }

// Batch is 1.
func (None) Batch() int { return 1 }

// Embed fails.
func (n None) Embed(context.Context, Kind, []string) (Result, error) {
	return Result{}, events.Fail(events.MissingModel, "%s", n.Why)
}

// Close does nothing.
func (None) Close() error { return nil }
