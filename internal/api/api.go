// Package api holds the requests and answers of Leafmill's NATS micro services, which are
// the JSON of its HTTP interface too: services/status answers for jobs, services/index
// for searches, services/embed for the vector of a query. The gateway passes them on.
// Subjects are the contract; fields are only added.
package api

import (
	"encoding/json"
	"time"

	"github.com/leafmill/leafmill/events"
)

// Subjects of the micro services.
const (
	SubjectSearch  = "leafmill.search"         // SearchRequest -> SearchAnswer
	SubjectEmbed   = "leafmill.embed"          // EmbedRequest -> EmbedAnswer
	SubjectJob     = "leafmill.jobs.get"       // JobRequest -> Job
	SubjectJobs    = "leafmill.jobs.list"      // JobsRequest -> JobsAnswer
	SubjectFind    = "leafmill.jobs.find"      // FindRequest -> FindAnswer: the jobs of a document
	SubjectRebuild = "leafmill.status.rebuild" // {} -> RebuildAnswer, every replica on its own
)

// Job is the job view: everything known about one way of a document through the pipeline.
type Job struct {
	ID         string `json:"id"`
	DocumentID string `json:"document_id"`
	Name       string `json:"name"`
	MediaType  string `json:"media_type"`
	Size       int64  `json:"size"`
	Collection string `json:"collection"`
	Version    uint64 `json:"version"`
	Run        uint64 `json:"run"`
	Bulk       bool   `json:"bulk,omitempty"`

	Status          string    `json:"status"`
	Progress        int       `json:"progress"` // 0 to 100
	Stage           string    `json:"stage"`
	Waiting         *Waiting  `json:"waiting,omitempty"`
	Units           UnitCount `json:"units"`
	CompletedStages []string  `json:"completed_stages"`
	RetriesUsed     int       `json:"retries_used"`
	Warnings        []Warning `json:"warnings"`

	Error     *events.Problem      `json:"error,omitempty"`
	Artifacts Artifacts            `json:"artifacts"`
	Result    *Result              `json:"result,omitempty"`
	Usage     map[string]Usage     `json:"usage"` // by dependency: embed
	Timings   map[string]StageTime `json:"timings"`
	Metadata  map[string]any       `json:"metadata,omitempty"`
	CreatedAt time.Time            `json:"created_at"`
	UpdatedAt time.Time            `json:"updated_at"`
	// FinishedAt is when the run completed.
	FinishedAt *time.Time `json:"finished_at,omitempty"`
}

// Terminal says whether the run has ended.
func (j *Job) Terminal() bool {
	switch j.Status {
	case events.StatusSucceeded, events.StatusWarnings, events.StatusFailed, events.StatusCancelled:
		return true
	}
	return false
}

// Waiting says why nothing happens right now.
type Waiting struct {
	Reason string     `json:"reason"` // queued, retry_wait, breaker_open, rate_limited, ...
	Until  *time.Time `json:"until,omitempty"`
}

// UnitCount counts a document's units.
type UnitCount struct {
	Total   int `json:"total"`
	Indexed int `json:"indexed"`
	Failed  int `json:"failed"`
}

// Warning is something that went wrong without failing the job.
type Warning struct {
	Code       string     `json:"code"`
	Stage      string     `json:"stage"`
	Message    string     `json:"message"`
	Units      []string   `json:"units,omitempty"` // ranges, such as 3-3 or 17-20
	ResolvedAt *time.Time `json:"resolved_at,omitempty"`
}

// Artifacts says what the stages have made so far.
type Artifacts struct {
	TextPreview    string         `json:"text_preview"`
	ChunksPreview  []ChunkPreview `json:"chunks_preview"`
	Pages          int            `json:"pages"`
	PagesOCR       int            `json:"pages_ocr"`
	Chunks         int            `json:"chunks"`
	EmbeddingsDone int            `json:"embeddings_done"`
	Indexed        bool           `json:"indexed"` // every chunk is keyword-searchable
}

// ChunkPreview is the beginning of a chunk.
type ChunkPreview struct {
	ID   string `json:"id"`
	Page int    `json:"page"`
	Text string `json:"text"`
}

// Result is what a finished run gives.
type Result struct {
	Mode            string   `json:"mode"` // full_rag, partial_rag, keyword_only
	CompletedStages []string `json:"completed_stages"`
	Warnings        int      `json:"warnings"`
}

// Usage is what the calls of one dependency cost.
type Usage struct {
	Calls     int   `json:"calls"`
	Tokens    int   `json:"tokens"`
	LatencyMS int64 `json:"latency_ms"`
}

// StageTime is when a stage worked on a run.
type StageTime struct {
	Started  time.Time  `json:"started"`
	Finished *time.Time `json:"finished,omitempty"`
	Seconds  float64    `json:"seconds"`
}

// JobRequest asks for a job. With Wait, the answer comes when the job is terminal or the
// time is up (at most 60 s), whichever is first.
type JobRequest struct {
	ID     string `json:"id"`
	WaitMS int64  `json:"wait_ms,omitempty"`
}

// JobsRequest asks for a page of jobs, newest first.
type JobsRequest struct {
	Status     string `json:"status,omitempty"`
	Collection string `json:"collection,omitempty"`
	Cursor     string `json:"cursor,omitempty"` // next of the page before
	Limit      int    `json:"limit,omitempty"`  // 1 to 500, 50 when 0
}

// JobsAnswer is a page of jobs; Next is empty on the last one.
type JobsAnswer struct {
	Jobs []Job  `json:"jobs"`
	Next string `json:"next,omitempty"`
}

// FindRequest asks for the jobs of a document.
type FindRequest struct {
	Collection string `json:"collection"`
	DocumentID string `json:"document_id"`
}

// FindAnswer lists them, newest first, at most 1,000.
type FindAnswer struct {
	Jobs []Job `json:"jobs"`
}

// RebuildAnswer says how a rebuild went.
type RebuildAnswer struct {
	Replica string  `json:"replica"`
	Events  int     `json:"events"`
	Jobs    int     `json:"jobs"`
	Seconds float64 `json:"seconds"`
}

// Modes of a search.
const (
	ModeHybrid  = "hybrid"
	ModeKeyword = "keyword"
	ModeDense   = "dense"
)

// SearchRequest is a search. From skips hits already read of a long answer.
type SearchRequest struct {
	Q          string `json:"q"`
	K          int    `json:"k,omitempty"`    // 1 to 300, 10 when 0
	Mode       string `json:"mode,omitempty"` // hybrid when empty
	Collection string `json:"collection,omitempty"`
	DocumentID string `json:"document_id,omitempty"`
	From       int    `json:"from,omitempty"`
}

// SearchAnswer holds the hits, best first. Mode is the one really used; Degraded says that
// a better one was asked for.
type SearchAnswer struct {
	Query    string  `json:"query"`
	Mode     string  `json:"mode"`
	Degraded bool    `json:"degraded"`
	TookMS   float64 `json:"took_ms"`
	Results  []Hit   `json:"results"`
	// Next is set when the reply had to be cut to fit a message: ask again with From = Next.
	Next int `json:"next,omitempty"`
}

// Hit is a passage found. Start and End are code point offsets into the job's text
// artifact (nil while earlier units are missing): sliced by them it is exactly Text.
type Hit struct {
	DocumentID string   `json:"document_id"`
	JobID      string   `json:"job_id"`
	Collection string   `json:"collection"`
	Name       string   `json:"name"`
	Chunk      string   `json:"chunk"`
	Page       int      `json:"page"`
	Start      *int     `json:"start"`
	End        *int     `json:"end"`
	Text       string   `json:"text"`
	Score      float64  `json:"score"`
	Scores     Scores   `json:"scores"`
	Highlights [][2]int `json:"highlights"` // code point ranges in Text
}

// Scores of the two legs; nil where a leg did not see the passage.
type Scores struct {
	Keyword *float64 `json:"keyword"`
	Vector  *float64 `json:"vector"`
}

// EmbedRequest asks for the vector of a query.
type EmbedRequest struct {
	Text string `json:"text"`
}

// EmbedAnswer is the vector and its space.
type EmbedAnswer struct {
	Vector events.Vector `json:"vector"`
	Space  string        `json:"space"`
	Tokens int           `json:"tokens"`
}

// ArtifactChunks answers GET /jobs/{id}/artifacts/chunks.
type ArtifactChunks struct {
	Chunks []ArtifactChunk `json:"chunks"`
}

// ArtifactChunk is a chunk with its position in the text artifact.
type ArtifactChunk struct {
	ID     string `json:"id"`
	Page   int    `json:"page"`
	Start  *int   `json:"start"`
	End    *int   `json:"end"`
	Text   string `json:"text"`
	Tokens int    `json:"tokens"`
}

// StreamEvent is an event as GET /jobs/{id}/events sends it.
type StreamEvent struct {
	Sequence uint64          `json:"sequence"`
	Event    events.Name     `json:"event"`
	JobID    string          `json:"job_id"`
	Time     time.Time       `json:"time"`
	Data     json.RawMessage `json:"data"`
}
