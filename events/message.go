package events

import (
	"encoding/base64"
	"encoding/json"
	"strconv"
	"strings"
	"time"
)

// CloudEvents headers, binary mode, as NATS headers.
const (
	HeaderID          = "ce-id"
	HeaderType        = "ce-type"
	HeaderSource      = "ce-source" // /leafmill/<service>/<instance>
	HeaderTime        = "ce-time"   // RFC 3339
	HeaderSpecVersion = "ce-specversion"
	HeaderFault       = "ce-leafmillfault" // set on what an injected fault brought about
	HeaderTrace       = "traceparent"
)

// Message is a stored event, decoded.
type Message struct {
	Sequence uint64 // in the stream
	Subject  string
	Event    Name
	Job      string
	ID       string // ce-id; made from the sequence when the sender gave none
	Source   string // ce-source, may be empty
	Time     time.Time
	// Pass has everything filled in: for submitted and replayed the run is the sequence,
	// for submitted the version too, and the defaults of collection and document id apply.
	Pass Pass
	Body Body
	Raw  json.RawMessage
}

// Stored is a message as the stream has it.
type Stored struct {
	Sequence uint64
	Subject  string
	Time     time.Time // when the stream stored it
	Header   func(key string) string
	Data     []byte
}

// Decode reads a stored event. On an error the Message still has all that could be read:
// sequence, subject, name, job, time and, as far as the body is JSON, its Pass; the error
// is a [Failure] of class Invalid (or Unsupported, for an unknown major version).
func Decode(s Stored) (Message, error) {
	m := Message{Sequence: s.Sequence, Subject: s.Subject, Time: s.Time.UTC(), Raw: s.Data}
	header := s.Header
	if header == nil {
		header = func(string) string { return "" }
	}
	if m.ID = header(HeaderID); m.ID == "" {
		m.ID = StreamDocs + ":" + strconv.FormatUint(s.Sequence, 10)
	}
	m.Source = header(HeaderSource)
	if t, err := time.Parse(time.RFC3339Nano, header(HeaderTime)); err == nil {
		m.Time = t.UTC()
	}
	var ok bool
	m.Event, m.Job, ok = ParseSubject(s.Subject)
	if !ok {
		return m, Fail(Invalid, "The subject is not docs.<event>.<job> with a job of [A-Za-z0-9_-]{1,64}.")
	}
	begins := m.Event == NameSubmitted || m.Event == NameSubmittedBulk
	if begins {
		m.Pass = Pass{Run: s.Sequence, Version: s.Sequence, Collection: DefaultCollection, DocumentID: m.Job}
	}
	entry, ok := EntryOf(m.Event)
	if !ok {
		return m, Fail(Invalid, "There is no event %q.", m.Event)
	}
	if err := checkType(header(HeaderType), m.Event); err != nil {
		return m, err
	}
	body := entry.New()
	if err := json.Unmarshal(s.Data, body); err != nil {
		m.salvage(s.Data)
		return m, Fail(Invalid, "The event is not the JSON object that %s wants.", m.Event.Type()).Because(err)
	}
	m.Body = body
	switch b := body.(type) {
	case *Submitted:
		m.begin(b)
	case *Replayed:
		m.Pass = b.Position()
		m.Pass.Run = s.Sequence
		if b.Version > s.Sequence || b.Base > s.Sequence {
			return m, Fail(Invalid, "The replay is of a version or a run that is not there yet.")
		}
	default:
		m.Pass = body.Position()
	}
	return m, body.check()
}

// begin fills in what a submission leaves to the defaults.
func (m *Message) begin(b *Submitted) {
	m.Pass.Name = b.Name
	if ValidCollection(b.Collection) {
		m.Pass.Collection = b.Collection
	}
	if ValidDocument(b.DocumentID) {
		m.Pass.DocumentID = b.DocumentID
	}
}

// salvage reads the pass of a body that is JSON of another shape, so that a dead letter
// can still be counted for its job.
func (m *Message) salvage(data []byte) {
	var p Pass
	if json.Unmarshal(data, &p) == nil && m.Pass.Run == 0 && p.check() == nil {
		m.Pass = p
	}
}

// checkType refuses another event's type and an unknown major version. v1, v1.2 and
// v1.2.3 are all of major version 1.
func checkType(t string, n Name) error {
	if t == "" {
		return nil
	}
	v, ok := strings.CutPrefix(t, "leafmill.docs."+string(n)+".v")
	if !ok {
		return Fail(Invalid, "The ce-type %q does not fit the subject of a %s event.", t, n)
	}
	major, _, _ := strings.Cut(v, ".")
	if major != strconv.Itoa(Version) {
		return Fail(Unsupported, "The event is of version %s; this release knows version %d.", v, Version)
	}
	return nil
}

// Bytes are the inline bytes of a submission: its text, or its data decoded.
func (s *Submitted) Bytes() ([]byte, error) {
	if s.Data == "" {
		return []byte(s.Text), nil
	}
	b, err := base64.StdEncoding.DecodeString(s.Data)
	if err != nil {
		return nil, Fail(Invalid, "The data is not valid base64.").Because(err)
	}
	return b, nil
}
