// Package events is Leafmill's contract: what is said on the bus, by whom, and in which
// words. The Go types here are the source; subjects, JSON Schemas, the AsyncAPI document
// and the diagram of the README are made from them (go generate ./events).
//
// Guarantees, for every release:
//   - An event is never changed after it was stored, and fields are only added. A rename
//     or a change of meaning is a new major version; unknown fields are accepted, an
//     unknown major version is refused (and so poisoned by the stage that meets it).
//   - The body is JSON, the headers are CloudEvents in binary mode. A message without any
//     header, as `nats pub docs.submitted.my-job '{"text":"..."}'` sends it, is complete.
//   - An event is at most [MaxSize] bytes; larger content rides in the object bucket
//     [BucketArtifacts] and the event names it (see [Content]).
//
// The package imports the standard library only, so that anyone can depend on it.
package events

import (
	"fmt"
	"regexp"
	"strings"
)

//go:generate go run ./gen

// Names on the bus.
const (
	StreamDocs      = "DOCS"      // every event of every document: docs.<event>.<job>
	StreamServices  = "SERVICES"  // what happens to services: services.<service>.<event>
	BucketOriginals = "originals" // uploads, as they came in
	BucketArtifacts = "artifacts" // content too large for an event: <job>/<sha256>
	BucketControl   = "control"   // key-value: breakers forced by hand, leases

	// Version is the major version of all events of this release.
	Version = 1
	// MaxSize bounds an event that Leafmill publishes, in bytes.
	MaxSize = 256 << 10
	// MaxInline bounds the content that rides inside an event, in bytes.
	MaxInline = 64 << 10
	// SegmentBytes is how much text one message carries, and the most a unit of an
	// unpaged format has, in bytes of UTF-8. A page may be larger.
	SegmentBytes = 8 << 10
	// DefaultCollection is where a document goes that names no collection.
	DefaultCollection = "default"
)

// Name is an event's name, one word in subjects, types, schemas and fixtures.
type Name string

// The events of the stream DOCS. The catalog says what each means.
const (
	NameSubmitted     Name = "submitted"
	NameSubmittedBulk Name = "submitted_bulk"
	NameReplayed      Name = "replayed"
	NameReplayedBulk  Name = "replayed_bulk"
	NameContinued     Name = "continued"
	NameContinuedBulk Name = "continued_bulk"
	NameScanFound     Name = "scan_found"
	NameExtracted     Name = "extracted"
	NameChunked       Name = "chunked"
	NameEmbedded      Name = "embedded"
	NameDegraded      Name = "degraded"
	NameIndexed       Name = "indexed"
	NameRetried       Name = "retried"
	NamePoisoned      Name = "poisoned"
	NameHealExhausted Name = "heal_exhausted"
	NameCancelled     Name = "cancelled"
	NameDeleted       Name = "deleted"
	NameCompleted     Name = "completed"
	NameHealed        Name = "healed"
)

// Type is the CloudEvents type, such as leafmill.docs.extracted.v1.
func (n Name) Type() string { return fmt.Sprintf("leafmill.docs.%s.v%d", n, Version) }

// Subject is where this event of a job is published: docs.<event>.<job>.
func (n Name) Subject(job string) string { return "docs." + string(n) + "." + job }

// All is the subject filter for this event of all jobs.
func (n Name) All() string { return "docs." + string(n) + ".*" }

// JobSubjects is the subject filter for a job's whole story.
func JobSubjects(job string) string { return "docs.*." + job }

// ParseSubject takes docs.<event>.<job> apart.
func ParseSubject(subject string) (name Name, job string, ok bool) {
	rest, ok := strings.CutPrefix(subject, "docs.")
	if !ok {
		return "", "", false
	}
	n, job, ok := strings.Cut(rest, ".")
	return Name(n), job, ok && ValidJob(job)
}

var (
	jobPattern  = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)
	namePattern = regexp.MustCompile(`^[A-Za-z0-9._:-]{1,128}$`)
)

// ValidJob says whether s can be a job id: a subject token, [A-Za-z0-9_-]{1,64}.
func ValidJob(s string) bool { return jobPattern.MatchString(s) }

// ValidDocument says whether s can be a document id: [A-Za-z0-9._:-]{1,128}.
func ValidDocument(s string) bool { return namePattern.MatchString(s) }

// ValidCollection says whether s can be a collection: as a document id.
func ValidCollection(s string) bool { return namePattern.MatchString(s) }
