// Package index makes documents searchable: it writes the chunks of embedded and
// degraded events into a backend and answers searches from it.
//
// This file is what a backend must do; [embedded] is the one for a single machine.
// The guarantees hold for every backend:
//
//   - An upsert may be repeated, and messages may come in any order: a unit always ends
//     with the content of the highest run that wrote it.
//   - A search sees exactly one version of a document: the highest completed one, or the
//     newest when none is complete. Only Complete, Cancel and Delete change which, and a
//     search never sees neither or both.
//   - What Upsert returned is searchable, and survives a crash.
//
// [embedded]: https://pkg.go.dev/github.com/leafmill/leafmill/services/index/embedded
package index

import (
	"context"
	"errors"
)

// Backend stores chunks and finds them again. All methods may be called concurrently.
// Errors carry an events.Class: Invalid for a request that can never succeed,
// Unavailable when the store is down or full.
type Backend interface {
	// Upsert replaces the units of the segment by what the segment says of them. The
	// segment must not be changed afterwards, not even after an error.
	Upsert(context.Context, Segment) (Outcome, error)
	// Complete ends a run: a success makes its version the visible one and drops what it
	// replaces. Repeating it changes nothing.
	Complete(context.Context, Completion) error
	// Delete removes every version of a document up to the fence, and keeps the fence:
	// later messages of those versions write nothing.
	Delete(ctx context.Context, collection, document string, fence uint64) error
	// Cancel keeps a fence: messages of runs of the job up to it write nothing. What the
	// runs have written goes when their Completion says cancelled.
	Cancel(ctx context.Context, job string, fence uint64) error
	// Search finds chunks. A vector of another space than the active one is ErrSpace.
	Search(context.Context, Query) (Answer, error)
	// Space is the active space: whose vectors are accepted and searched. It is the zero
	// Space before the first vector.
	Space() Space
	// UseSpace makes another space active. Chunks whose vectors are of other spaces are
	// found by keywords only until an upsert brings them a vector of this one.
	UseSpace(ctx context.Context, name string) error
	// Stats counts what is stored, for readiness and metrics.
	Stats(context.Context) (Stats, error)
	// Close ends the backend; what was acknowledged is on disk.
	Close() error
}

// ErrSpace says that a query's vector is of another space than the active one, so that
// cosines would mean nothing. Searching by keywords still works.
var ErrSpace = errors.New("index: vector of another space")

// Space is a family of comparable vectors: provider, model, dimensions, prefixes, graph.
type Space struct {
	Name       string
	Dimensions int // 0 until its first vector
}

// Segment is the content of one embedded or degraded event: consecutive units of one run.
type Segment struct {
	Job        string
	Collection string
	Document   string
	Name       string // the document's, for people
	Language   string // BCP 47, such as "de"; empty: detected chunk by chunk
	Version    uint64 // stream sequence of the submitted event
	Run        uint64 // stream sequence of the event that began this pass
	Space      string // of the vectors; a degraded event may leave it empty
	TotalUnits int    // units of the document in this run; 0 when unknown
	Units      []Unit // all units of the segment, those without chunks too
	Chunks     []Chunk
}

// Unit is a page, or a piece of text of a document without pages.
type Unit struct {
	Number int // from 1
	Page   int // of the page, slide, sheet or chapter
	Length int // code points of its text
}

// Chunk is a passage inside one unit.
type Chunk struct {
	ID         string // <document>@<version>/<unit>.<n>
	Unit       int
	N          int // number inside the unit; unique there
	Page       int
	Start, End int // span inside the unit, code points
	Text       string
	Tokens     int
	Vector     []float32 // of any length but zero; nil: none
}

// Outcome says what of a segment's units is now stored and searchable.
type Outcome struct {
	Chunks, Vectors int
	Units           []UnitCount // in the segment's order
	Superseded      bool        // a higher version is complete: nothing was written
	Fenced          bool        // deleted or cancelled: nothing was written
}

// UnitCount is the state of one unit after an upsert, whichever run wrote it.
type UnitCount struct {
	Unit, Chunks, Vectors int
}

// Completion is the end of a run, from a completed or healed event.
type Completion struct {
	Job, Collection, Document string
	Name                      string
	Version, Run              uint64
	Succeeded                 bool   // with or without warnings
	Cancelled                 bool   // never together with Succeeded
	TotalUnits                int    // units of the document in this run; 0 when unknown
	Failed                    []Unit // units without chunks because they failed; their lengths count in positions
}

// Mode is which legs a search walks on.
type Mode string

// The modes. The zero value means Hybrid.
const (
	Hybrid  Mode = "hybrid"
	Keyword Mode = "keyword"
	Dense   Mode = "dense"
)

// MaxK bounds the hits of one search.
const MaxK = 300

// Query is one search.
type Query struct {
	Text   string
	Vector []float32 // the embedded text; nil: keywords only
	Space  string    // of the vector
	Mode   Mode
	K      int // 1 to MaxK; 0 means 10
	Filter Filter
	Fusion Fusion // the zero value means DefaultFusion
}

// Filter restricts a search before anything is ranked; empty fields restrict nothing.
// A document alone means that document id in any collection.
type Filter struct {
	Collection string
	Document   string
}

// Answer is what a search found.
type Answer struct {
	Mode Mode  // the one really used: Hybrid without a vector is Keyword
	Hits []Hit // best first; equal scores in order of chunk id
}

// Hit is one passage found.
type Hit struct {
	Document, Job, Collection, Name, ChunkID string

	Version    uint64
	Unit, Page int
	// Start and End are code points into the document's text, as the text artifact has
	// it; nil while the length of an earlier unit is not known.
	Start, End *int
	Text       string
	Score      float64  // of the fusion; of the only leg when there is one
	Keyword    *float64 // BM25; nil when the keyword leg did not find it
	Vector     *float64 // cosine; nil without a vector
	Highlights [][2]int // code point ranges of the query's words in Text
}

// Stats is what a backend holds.
type Stats struct {
	Documents int // with at least one version stored
	Chunks    int // stored, visible or not
	Visible   int // chunks that searches see
	Vectors   int // of the active space
	Space     Space
	DiskBytes int64
}
