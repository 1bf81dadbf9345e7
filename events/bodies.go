package events

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
)

// Pass says to which pass of which document an event belongs. Every event but submitted
// and replayed, which begin one, carries it; an event without is invalid.
type Pass struct {
	// Run is the sequence of the event that began this pass: a submitted or a replayed. Later runs win.
	Run uint64 `json:"run"`
	// Version is the sequence of the submitted event. A higher version replaces a lower one once it is complete.
	Version uint64 `json:"version"`
	// Collection and DocumentID name the document.
	Collection string `json:"collection"`
	DocumentID string `json:"document_id"`
	// Units is how many units the document has; 0 while nobody knows.
	Units int `json:"units"`
	// Name is the document's file name, for people.
	Name string `json:"name,omitempty"`
}

func (p Pass) check() error {
	switch {
	case p.Run == 0:
		return Fail(Invalid, "The event has no run.")
	case p.Version == 0 || p.Version > p.Run:
		return Fail(Invalid, "The event has no version, or one above its run.")
	case !ValidCollection(p.Collection):
		return Fail(Invalid, "The event has no valid collection.")
	case !ValidDocument(p.DocumentID):
		return Fail(Invalid, "The event has no valid document_id.")
	case p.Units < 0 || p.Units > MaxUnits:
		return Fail(Invalid, "The event's units are out of range.")
	}
	return nil
}

// MaxUnits bounds the units of one document.
const MaxUnits = 1 << 20

// Unit is one unit of a document in a message: a page of a PDF or image, of other formats
// a piece of up to 8 KB of text.
type Unit struct {
	// Unit is its number, from 1.
	Unit int `json:"unit"`
	// Page is the number of the page, slide, sheet or chapter it lies on, else 1.
	Page int `json:"page"`
	// Length of its text in code points.
	Length int `json:"length"`
	// Method is how the text was found: text_layer, ocr or parser.
	Method string `json:"method,omitempty"`
	// Confidence of a recognised page, the mean of its words, 0 to 1.
	Confidence float64 `json:"confidence,omitempty"`
	// Warning says, in a sentence, why the text may be worse than it could be.
	Warning string `json:"warning,omitempty"`
	// Chunks made of it (from chunked on), and how many of them have a vector (from embedded on).
	Chunks  int `json:"chunks,omitempty"`
	Vectors int `json:"vectors,omitempty"`
	// Problem is set when the unit failed; it has no text then and the rest of the document goes on.
	Problem *Problem `json:"problem,omitempty"`
}

// Content is what a segment carries: inline up to 64 KB of JSON, else an object in the
// bucket artifacts. Read and write it through internal/artifacts only.
type Content struct {
	Inline json.RawMessage `json:"inline,omitempty"`
	Object string          `json:"object,omitempty"` // <job>/<sha256>
	Size   int             `json:"size,omitempty"`   // bytes of JSON
}

// Chunk is a passage: what is embedded, indexed and found. It never crosses a unit.
type Chunk struct {
	// ID is <document>@<version>/<unit>.<n>: writing a chunk again overwrites it.
	ID   string `json:"id"`
	Unit int    `json:"unit"`
	// N numbers the chunks of a unit, from 1.
	N    int `json:"n"`
	Page int `json:"page"`
	// Start and End are the span inside the unit's text, in code points.
	Start int    `json:"start"`
	End   int    `json:"end"`
	Text  string `json:"text"`
	// Tokens of the text as the embedding model counts them.
	Tokens int `json:"tokens"`
	// Vector is there once the chunk is embedded.
	Vector Vector `json:"vector,omitempty"`
}

// ChunkID names a chunk.
func ChunkID(document string, version uint64, unit, n int) string {
	return fmt.Sprintf("%s@%d/%d.%d", document, version, unit, n)
}

// Vector is an embedding; in JSON the base64 of its little-endian float32 values.
type Vector []float32

// MarshalText writes the vector as base64.
func (v Vector) MarshalText() ([]byte, error) {
	raw := make([]byte, 4*len(v))
	for i, f := range v {
		binary.LittleEndian.PutUint32(raw[4*i:], math.Float32bits(f))
	}
	return base64.StdEncoding.AppendEncode(nil, raw), nil
}

// UnmarshalText reads what MarshalText writes and refuses values that are not finite.
func (v *Vector) UnmarshalText(text []byte) error {
	raw, err := base64.StdEncoding.AppendDecode(nil, text)
	if err != nil || len(raw)%4 != 0 {
		return Fail(Invalid, "A vector is not base64 of float32 values.")
	}
	out := make(Vector, len(raw)/4)
	for i := range out {
		out[i] = math.Float32frombits(binary.LittleEndian.Uint32(raw[4*i:]))
		if f := float64(out[i]); math.IsNaN(f) || math.IsInf(f, 0) {
			return Fail(Invalid, "A vector has a value that is not finite.")
		}
	}
	*v = out
	return nil
}

// Source is where a document's bytes lie and what is known of them.
type Source struct {
	Bucket    string `json:"bucket"`
	Object    string `json:"object"`
	SHA256    string `json:"sha256,omitempty"` // hex, names the local copy
	Size      int64  `json:"size,omitempty"`
	MediaType string `json:"media_type,omitempty"`
	Language  string `json:"language,omitempty"`
}

// Submitted says that a document was handed in: inline text, inline base64 data, or an
// object in the bucket originals, exactly one of them.
type Submitted struct {
	Text   string `json:"text,omitempty"`
	Data   string `json:"data,omitempty"`   // base64
	Object string `json:"object,omitempty"` // a name in the bucket originals
	// Name is the file's name, for people; content is sniffed, never trusted by name.
	Name      string `json:"name,omitempty"`
	MediaType string `json:"media_type,omitempty"`
	Size      int64  `json:"size,omitempty"` // bytes, when known
	// DocumentID names the document; the job's id when empty.
	DocumentID string `json:"document_id,omitempty"`
	Collection string `json:"collection,omitempty"`
	// Language hints at the text's language, such as de or deu+eng.
	Language string `json:"language,omitempty"`
	// Metadata is the caller's, kept with the document.
	Metadata map[string]any `json:"metadata,omitempty"`
}

// Replayed says that a job goes through again from a stage; its sequence is the new run.
type Replayed struct {
	Version    uint64 `json:"version"`
	Collection string `json:"collection"`
	DocumentID string `json:"document_id"`
	Units      int    `json:"units"`
	Name       string `json:"name,omitempty"`
	From       string `json:"from"` // ocr, chunk, embed or index
	Base       uint64 `json:"base"` // the run whose work is reused
}

// Continued says that the walk through a document goes on at Unit.
type Continued struct {
	Pass
	Unit   int    `json:"unit"`
	Source Source `json:"source"`
}

// ScanFound says that a page is a scan and waits for recognition.
type ScanFound struct {
	Pass
	Unit   int    `json:"unit"`
	Page   int    `json:"page"`
	Source Source `json:"source"`
}

// UnitText is a unit's text, the content of extracted.
type UnitText struct {
	Unit int    `json:"unit"`
	Text string `json:"text"`
}

// Extracted carries the text of a segment: consecutive units, or one recognised page.
type Extracted struct {
	Pass
	Segment string  `json:"segment"` // the range of units, such as 17-20
	Units   []Unit  `json:"unit_list"`
	Content Content `json:"content"` // []UnitText
	// Preview is the beginning of the segment's text, at most 120 code points.
	Preview   string `json:"preview,omitempty"`
	MediaType string `json:"media_type,omitempty"`
	Language  string `json:"language,omitempty"`
	// Source is where the bytes lie, so that a replay and a delete find them.
	Source *Source `json:"source,omitempty"`
}

// Chunked carries the chunks of a segment.
type Chunked struct {
	Pass
	Segment  string  `json:"segment"`
	Units    []Unit  `json:"unit_list"`
	Content  Content `json:"content"`           // []Chunk
	Preview  []Chunk `json:"preview,omitempty"` // the first three, texts cut to 120 code points
	Language string  `json:"language,omitempty"`
}

// Embedded carries the chunks of a segment, each with its vector.
type Embedded struct {
	Pass
	Segment  string  `json:"segment"`
	Units    []Unit  `json:"unit_list"`
	Content  Content `json:"content"` // []Chunk with vectors
	Language string  `json:"language,omitempty"`
	// Space names provider, model, dimensions, prefixes and graph: only vectors of one space compare.
	Space string `json:"space,omitempty"`
	Usage Usage  `json:"usage"`
}

// Degraded carries the chunks of a segment of which some have no vector, and why. The
// index makes them searchable by keyword; healing embeds what is missing.
type Degraded struct {
	Embedded
	// Reason: circuit_open, timeout, rate_limited, unavailable, malformed, network, missing_model.
	Reason  Class  `json:"reason"`
	Message string `json:"message"`
}

// Usage is what the calls to a model cost.
type Usage struct {
	Calls     int   `json:"calls"`
	Tokens    int   `json:"tokens"`
	LatencyMS int64 `json:"latency_ms"`
}

// Indexed says which units of a segment are searchable now.
type Indexed struct {
	Pass
	Segment string `json:"segment"`
	Units   []Unit `json:"unit_list"` // chunks and vectors of each
	// Superseded: a higher version of the document is complete, nothing was written.
	Superseded bool `json:"superseded,omitempty"`
}

// Cause names the message that was being handled.
type Cause struct {
	Sequence uint64 `json:"sequence"`
	Subject  string `json:"subject"`
	Durable  string `json:"durable"`
}

// Retried says that a stage tries a message, or a call of it, again.
type Retried struct {
	Pass
	Cause   Cause  `json:"cause"`
	Segment string `json:"segment,omitempty"`
	Stage   string `json:"stage"`
	Attempt int    `json:"attempt"`
	Code    string `json:"code"`
	Message string `json:"message"`
	DelayMS int64  `json:"delay_ms"`
	// Nak: the message goes back to the stream for the delay. Else the stage tries again itself.
	Nak bool `json:"nak,omitempty"`
}

// Poisoned says that a message was given up: a dead letter, with the original in it.
type Poisoned struct {
	Pass
	Cause    Cause  `json:"cause"`
	Segment  string `json:"segment,omitempty"`
	First    int    `json:"first,omitempty"` // the units that failed with it; none when 0
	Last     int    `json:"last,omitempty"`  // 0: to the end of the document
	Stage    string `json:"stage"`
	Code     string `json:"code"`
	Message  string `json:"message"`
	Attempts int    `json:"attempts"`
	// Original is the message's body, at most 64 KB of it.
	Original  []byte `json:"original,omitempty"`
	Truncated bool   `json:"truncated,omitempty"`
}

// HealExhausted says that the tries to heal a segment are used up.
type HealExhausted struct {
	Pass
	Segment string `json:"segment"`
	Code    string `json:"code"`
	Message string `json:"message"`
	Tries   int    `json:"tries"`
}

// Cancelled is a fence: runs of the job up to this event's sequence stop.
type Cancelled struct {
	Pass
}

// Deleted is a fence: versions of the document up to this event's sequence go.
type Deleted struct {
	Pass
}

// Statuses of a job; the last four are terminal.
const (
	StatusQueued    = "queued"
	StatusRunning   = "running"
	StatusSucceeded = "succeeded"
	StatusWarnings  = "succeeded_with_warnings"
	StatusFailed    = "failed"
	StatusCancelled = "cancelled"
)

// Modes of a result: every chunk has a vector, some have, none has.
const (
	ModeFull    = "full_rag"
	ModePartial = "partial_rag"
	ModeKeyword = "keyword_only"
)

// Completed is the one terminal fact of a run.
type Completed struct {
	Pass
	Status  string   `json:"status"`
	Mode    string   `json:"mode,omitempty"`
	Chunks  int      `json:"chunks"`
	Vectors int      `json:"vectors"`
	Failed  []Unit   `json:"failed,omitempty"` // with their lengths, for positions
	Problem *Problem `json:"problem,omitempty"`
}

// Healed says that a completed run got what it lacked: vectors, or redriven units.
type Healed struct {
	Completed
}
