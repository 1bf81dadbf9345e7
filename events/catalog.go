package events

import "strconv"

// Body is the decoded content of an event.
type Body interface {
	// Covers are the units that fail when this event cannot be handled.
	Covers() Range
	// Position is the pass the event belongs to; zero for those that begin one.
	Position() Pass
	check() error
}

// Range is a run of units. The zero Range is none; Last 0 means to the end of the document.
type Range struct{ First, Last int }

// String is how a segment is named: 17-20, 4-4, 9-.
func (r Range) String() string {
	if r.First == 0 {
		return ""
	}
	if r.Last == 0 {
		return strconv.Itoa(r.First) + "-"
	}
	return strconv.Itoa(r.First) + "-" + strconv.Itoa(r.Last)
}

// RangeOf is the range of consecutive units.
func RangeOf(units []Unit) Range {
	if len(units) == 0 {
		return Range{}
	}
	return Range{First: units[0].Unit, Last: units[len(units)-1].Unit}
}

// Entry of the catalog.
type Entry struct {
	Name Name
	New  func() Body
	// By and To are who publishes it and who reads it, for the documents made from the catalog.
	By, To []string
	Says   string
}

// Catalog lists every event of the stream DOCS.
var Catalog = []Entry{
	{NameSubmitted, func() Body { return new(Submitted) }, []string{"gateway", "CLI", "anyone"}, []string{"ocr"}, "a document was handed in"},
	{NameReplayed, func() Body { return new(Replayed) }, []string{"gateway", "CLI"}, []string{"ocr-walk"}, "a job goes through again from a stage; its sequence is the new run"},
	{NameContinued, func() Body { return new(Continued) }, []string{"ocr"}, []string{"ocr-walk"}, "the walk through a document goes on at this unit"},
	{NameSubmittedBulk, func() Body { return new(Submitted) }, []string{"gateway", "CLI", "anyone"}, []string{"ocr-bulk"}, "submitted, in no hurry"},
	{NameReplayedBulk, func() Body { return new(Replayed) }, []string{"gateway", "CLI"}, []string{"ocr-bulk"}, "replayed, in no hurry"},
	{NameContinuedBulk, func() Body { return new(Continued) }, []string{"ocr"}, []string{"ocr-bulk"}, "continued, in no hurry"},
	{NameScanFound, func() Body { return new(ScanFound) }, []string{"ocr"}, []string{"ocr-pages"}, "this page is a scan and waits for recognition"},
	{NameExtracted, func() Body { return new(Extracted) }, []string{"ocr"}, []string{"chunk"}, "the text of a segment's units, or the error of a failed one"},
	{NameChunked, func() Body { return new(Chunked) }, []string{"chunk"}, []string{"embed"}, "the segment's chunks"},
	{NameEmbedded, func() Body { return new(Embedded) }, []string{"embed"}, []string{"index"}, "the segment's chunks, each with its vector"},
	{NameDegraded, func() Body { return new(Degraded) }, []string{"embed"}, []string{"index", "embed-heal"}, "the segment's chunks, and why some have no vector"},
	{NameIndexed, func() Body { return new(Indexed) }, []string{"index"}, []string{"status"}, "which units are searchable now"},
	{NameRetried, func() Body { return new(Retried) }, []string{"any stage"}, []string{"status"}, "a message, or a call of it, is tried again"},
	{NamePoisoned, func() Body { return new(Poisoned) }, []string{"any stage"}, []string{"status"}, "a message was given up, with why"},
	{NameHealExhausted, func() Body { return new(HealExhausted) }, []string{"embed"}, []string{"status"}, "the tries to heal a segment are used up"},
	{NameCancelled, func() Body { return new(Cancelled) }, []string{"gateway", "CLI"}, []string{"all"}, "fence: runs of the job up to this sequence stop"},
	{NameDeleted, func() Body { return new(Deleted) }, []string{"gateway", "CLI"}, []string{"all"}, "fence: versions of the document up to this sequence go"},
	{NameCompleted, func() Body { return new(Completed) }, []string{"status"}, []string{"users", "index"}, "the terminal summary of a run"},
	{NameHealed, func() Body { return new(Healed) }, []string{"status"}, []string{"users", "index"}, "a completed run got what it lacked"},
}

// EntryOf finds an event's entry.
func EntryOf(n Name) (Entry, bool) {
	for _, e := range Catalog {
		if e.Name == n {
			return e, true
		}
	}
	return Entry{}, false
}

func checkUnits(segment string, units []Unit, p Pass) error {
	if len(units) == 0 {
		return Fail(Invalid, "The event lists no units.")
	}
	for i, u := range units {
		switch {
		case u.Unit != units[0].Unit+i || u.Unit < 1 || u.Unit > p.Units:
			return Fail(Invalid, "The event's units are not consecutive numbers within the document.")
		case u.Page < 1 || u.Length < 0 || u.Chunks < 0 || u.Vectors < 0 || u.Vectors > u.Chunks:
			return Fail(Invalid, "Unit %d of the event has counts out of range.", u.Unit)
		}
	}
	if segment != RangeOf(units).String() {
		return Fail(Invalid, "The event's segment is not the range of its units.")
	}
	return nil
}

func checkUnit(unit int, p Pass) error {
	if unit < 1 || unit > p.Units {
		return Fail(Invalid, "The event's unit is not within the document.")
	}
	return nil
}

func (s *Submitted) check() error {
	n := 0
	for _, v := range []string{s.Text, s.Data, s.Object} {
		if v != "" {
			n++
		}
	}
	switch {
	case n == 0:
		return Fail(Invalid, "There is nothing to read: give text, data (base64) or object (a name in the bucket originals).")
	case n > 1:
		return Fail(Invalid, "Give only one of text, data and object.")
	case s.DocumentID != "" && !ValidDocument(s.DocumentID):
		return Fail(Invalid, "The document_id must match [A-Za-z0-9._:-]{1,128}.")
	case s.Collection != "" && !ValidCollection(s.Collection):
		return Fail(Invalid, "The collection must match [A-Za-z0-9._:-]{1,128}.")
	case len(s.Name) > 1024 || len(s.MediaType) > 256 || len(s.Language) > 64:
		return Fail(Invalid, "The name, media_type or language is too long.")
	}
	return nil
}

func (r *Replayed) check() error {
	switch r.From {
	case "ocr", "chunk", "embed", "index":
	default:
		return Fail(Invalid, "A replay starts from ocr, chunk, embed or index.")
	}
	return Pass{Run: max(r.Base, r.Version), Version: r.Version, Collection: r.Collection, DocumentID: r.DocumentID, Units: r.Units}.check()
}

// Covers of a document's beginning is all of it.
func (s *Submitted) Covers() Range     { return Range{First: 1} }
func (r *Replayed) Covers() Range      { return Range{First: 1} }
func (c *Continued) Covers() Range     { return Range{First: c.Unit} }
func (s *ScanFound) Covers() Range     { return Range{First: s.Unit, Last: s.Unit} }
func (e *Extracted) Covers() Range     { return RangeOf(e.Units) }
func (c *Chunked) Covers() Range       { return RangeOf(c.Units) }
func (e *Embedded) Covers() Range      { return RangeOf(e.Units) }
func (i *Indexed) Covers() Range       { return RangeOf(i.Units) }
func (r *Retried) Covers() Range       { return Range{} }
func (p *Poisoned) Covers() Range      { return Range{} }
func (h *HealExhausted) Covers() Range { return Range{} }
func (c *Cancelled) Covers() Range     { return Range{} }
func (d *Deleted) Covers() Range       { return Range{} }
func (c *Completed) Covers() Range     { return Range{} }

// Position of a document's beginning is its own sequence: see [Message].
func (s *Submitted) Position() Pass {
	return Pass{Collection: s.Collection, DocumentID: s.DocumentID, Name: s.Name}
}

// Position lacks the run, which is the event's own sequence: see [Message].
func (r *Replayed) Position() Pass {
	return Pass{Version: r.Version, Collection: r.Collection, DocumentID: r.DocumentID, Units: r.Units, Name: r.Name}
}

// Position is the pass itself, for every body that embeds it.
func (p Pass) Position() Pass { return p }

func (c *Continued) check() error {
	if err := c.Pass.check(); err != nil {
		return err
	}
	return checkUnit(c.Unit, c.Pass)
}

func (s *ScanFound) check() error {
	if err := s.Pass.check(); err != nil {
		return err
	}
	return checkUnit(s.Unit, s.Pass)
}

func (e *Extracted) check() error {
	if err := e.Pass.check(); err != nil {
		return err
	}
	return checkUnits(e.Segment, e.Units, e.Pass)
}

func (c *Chunked) check() error {
	if err := c.Pass.check(); err != nil {
		return err
	}
	return checkUnits(c.Segment, c.Units, c.Pass)
}

func (e *Embedded) check() error {
	if err := e.Pass.check(); err != nil {
		return err
	}
	return checkUnits(e.Segment, e.Units, e.Pass)
}

func (i *Indexed) check() error {
	if err := i.Pass.check(); err != nil {
		return err
	}
	return checkUnits(i.Segment, i.Units, i.Pass)
}

// check of a dead letter allows no run: the message it is about may have had none.
func (p *Poisoned) check() error {
	if p.Cause.Sequence == 0 || p.Code == "" {
		return Fail(Invalid, "A poisoned event names its cause and its code.")
	}
	return nil
}

func (c *Completed) check() error {
	switch c.Status {
	case StatusSucceeded, StatusWarnings, StatusFailed, StatusCancelled:
		return c.Pass.check()
	}
	return Fail(Invalid, "A completed event has a terminal status.")
}
