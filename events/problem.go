package events

import (
	"errors"
	"fmt"
)

// Class is the kind of a failure. The set is closed: a class is half of a code
// (`stage.class`) that users, dashboards and scripts match on.
type Class string

// The classes. Transient ones are worth another try; the others never get better
// by waiting and end the message at once.
const (
	Network      Class = "network"         // transient: the connection broke or was refused
	Timeout      Class = "timeout"         // transient: no answer in time
	RateLimited  Class = "rate_limited"    // transient: 429, try later
	Unavailable  Class = "unavailable"     // transient: 5xx, or a store that is down
	Malformed    Class = "malformed"       // the dependency answered nonsense
	CircuitOpen  Class = "circuit_open"    // transient: not called, the breaker is open
	Encrypted    Class = "encrypted"       // the document needs a password
	Corrupt      Class = "corrupt"         // the document cannot be read
	Unsupported  Class = "unsupported"     // no reader for this format
	Empty        Class = "empty"           // nothing in it
	Limit        Class = "limit"           // larger than a configured limit
	NoOCR        Class = "ocr_unavailable" // a scan, and no OCR program is installed
	MissingModel Class = "missing_model"   // no embedding model is configured or installed
	Invalid      Class = "invalid"         // the event or the request is not well-formed
	Internal     Class = "internal"        // transient: a fault of ours
)

// Classes lists all of them, in the order of the documentation.
var Classes = []Class{Network, Timeout, RateLimited, Unavailable, Malformed, CircuitOpen, Encrypted,
	Corrupt, Unsupported, Empty, Limit, NoOCR, MissingModel, Invalid, Internal}

// Transient says whether another try of the same message may succeed.
func (c Class) Transient() bool {
	switch c {
	case Network, Timeout, RateLimited, Unavailable, CircuitOpen, Internal:
		return true
	}
	return false
}

// Failure is an error with a class and a sentence for the user. Services return it
// wherever they know better than "internal"; wrapping keeps it reachable by errors.As.
type Failure struct {
	Class   Class
	Message string // a sentence that says what is wrong and what to do
	Err     error  // the cause, for logs; may be nil
	// Final: another try would end the same, even though the class is a transient one, as
	// when a tool runs into its time limit on this page.
	Final bool
}

// Fail makes a Failure with a formatted message.
func Fail(c Class, format string, args ...any) *Failure {
	return &Failure{Class: c, Message: fmt.Sprintf(format, args...)}
}

// Because returns the failure with its cause set.
func (f *Failure) Because(err error) *Failure {
	f.Err = err
	return f
}

// Finally returns the failure marked final.
func (f *Failure) Finally() *Failure {
	f.Final = true
	return f
}

func (f *Failure) Error() string {
	if f.Err != nil {
		return string(f.Class) + ": " + f.Message + ": " + f.Err.Error()
	}
	return string(f.Class) + ": " + f.Message
}

func (f *Failure) Unwrap() error { return f.Err }

// ClassOf is the class of an error: that of the Failure in its chain, else Internal.
func ClassOf(err error) Class {
	if f, ok := errors.AsType[*Failure](err); ok {
		return f.Class
	}
	return Internal
}

// Retryable says whether another try of the same message may succeed.
func Retryable(err error) bool {
	if f, ok := errors.AsType[*Failure](err); ok {
		return f.Class.Transient() && !f.Final
	}
	return true
}

// Problem is a failure on the wire and in the job view.
type Problem struct {
	Code    string `json:"code"`    // stage.class, such as ocr.encrypted
	Stage   string `json:"stage"`   // ocr, chunk, embed, index, status
	Message string `json:"message"` // a sentence for the user
}

// ProblemOf describes an error of a stage.
func ProblemOf(stage string, err error) Problem {
	p := Problem{Code: stage + "." + string(ClassOf(err)), Stage: stage, Message: err.Error()}
	if f, ok := errors.AsType[*Failure](err); ok {
		p.Message = f.Message
	}
	return p
}
