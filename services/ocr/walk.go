package ocr

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"unicode/utf8"

	"github.com/leafmill/leafmill/events"
	"github.com/leafmill/leafmill/internal/artifacts"
	"github.com/leafmill/leafmill/internal/bus"
	"github.com/leafmill/leafmill/services/ocr/extract"
)

// OnSubmitted begins the walk of a document that was just handed in.
func (s *Service) OnSubmitted(ctx context.Context, d *bus.Delivery) error {
	sub := d.Body.(*events.Submitted)
	w := &walk{s: s, d: d, unit: 1, name: events.NameContinued,
		src: events.Source{MediaType: sub.MediaType, Language: sub.Language}}
	if d.Event == events.NameSubmittedBulk {
		w.name = events.NameContinuedBulk
	}
	if done, err := w.passed(ctx); done || err != nil {
		return err
	}
	var err error
	if w.local, w.src.Bucket, w.src.Object, err = s.take(ctx, d.Job, sub); err != nil {
		return err
	}
	w.src.SHA256, w.src.Size = w.local.SHA256, w.local.Size
	return w.slice(ctx)
}

// OnWalk goes on with a walk, in the background.
func (s *Service) OnWalk(ctx context.Context, d *bus.Delivery) error {
	if err := d.AwaitGate(ctx); err != nil {
		return err
	}
	switch b := d.Body.(type) {
	case *events.Submitted:
		return s.OnSubmitted(ctx, d)
	case *events.Continued:
		w := &walk{s: s, d: d, unit: b.Unit, name: d.Event, src: b.Source}
		if done, err := w.passed(ctx); done || err != nil {
			return err
		}
		var err error
		if w.local, err = s.cache.Fetch(ctx, b.Source); err != nil {
			return err
		}
		return w.slice(ctx)
	}
	return events.Fail(events.Unsupported, "This release does not replay; hand the document in again.")
}

// take brings a submission's bytes to the disk. An upload of the gateway lies under the
// job's own name already; anything else may be overwritten by its owner, or is inline,
// and gets a name of the job's own once more than this message needs it.
func (s *Service) take(ctx context.Context, job string, sub *events.Submitted) (l artifacts.Local, bucket, object string, err error) {
	if sub.Object != "" {
		if l, err = s.cache.Original(ctx, sub.Object, s.max); err != nil {
			return l, "", "", err
		}
		if strings.HasPrefix(sub.Object, job+"/") {
			return l, events.BucketOriginals, sub.Object, nil
		}
		return l, "", "", nil
	}
	data, err := sub.Bytes()
	if err != nil {
		return l, "", "", err
	}
	l, err = s.cache.Add(bytes.NewReader(data), s.max)
	return l, "", "", err
}

// walk is one message's part of the way through a document.
type walk struct {
	s     *Service
	d     *bus.Delivery
	unit  int         // the first of the slice
	name  events.Name // how the walk goes on: continued or continued_bulk
	src   events.Source
	local artifacts.Local
	last  uint64 // sequence of the job's last continued event, 0 when there is none
}

// passed reads the job's last continued event: of a later run, or of this run at a later
// unit, somebody has done this slice already.
func (w *walk) passed(ctx context.Context) (bool, error) {
	last, err := w.d.Last(ctx, w.name)
	if errors.Is(err, bus.ErrNotFound) {
		w.last = 0
		return false, nil
	}
	if err != nil {
		return false, err
	}
	w.last = last.Sequence
	c, ok := last.Body.(*events.Continued)
	return ok && (c.Run > w.d.Pass.Run || c.Run == w.d.Pass.Run && c.Unit > w.unit), nil
}

// slice reads the next units, publishes them, and says continued when there are more.
func (w *walk) slice(ctx context.Context) error {
	doc, err := w.s.extract.Open(ctx, w.local.Path, extract.Hint{Name: w.d.Pass.Name, MediaType: w.src.MediaType, Language: w.src.Language})
	if err != nil {
		return final(err)
	}
	units, err := doc.Read(ctx, w.unit)
	if err != nil {
		return final(err)
	}
	pass := w.d.Pass
	pass.Units = doc.Units
	next := units[len(units)-1].Number + 1
	if w.src.Object == "" && (next <= doc.Units || hasScan(units)) {
		kept, err := w.s.store.Keep(ctx, w.d.Job, w.local)
		if err != nil {
			return err
		}
		w.src.Bucket, w.src.Object = kept.Bucket, kept.Object
	}
	for _, seg := range extract.Segments(units) {
		// Before each: what is published now is what a note handed in now waits for.
		if err := w.d.AwaitGate(ctx); err != nil {
			return err
		}
		if err := w.publish(ctx, pass, seg, doc.MediaType); err != nil {
			return err
		}
	}
	if next > doc.Units {
		return nil
	}
	body := events.Continued{Pass: pass, Unit: next, Source: w.src}
	for {
		err := w.d.EmitAfter(ctx, w.name, events.Range{First: next, Last: next}.String(), body, w.last)
		if !errors.Is(err, bus.ErrConflict) {
			return err
		}
		if done, err := w.passed(ctx); done || err != nil {
			return err
		}
	}
}

func hasScan(units []extract.Unit) bool {
	for _, u := range units {
		if u.Scan && u.Err == nil {
			return true
		}
	}
	return false
}

func (w *walk) publish(ctx context.Context, pass events.Pass, seg []extract.Unit, mediaType string) error {
	if u := seg[0]; len(seg) == 1 && u.Scan && u.Err == nil {
		src := w.src
		src.MediaType = mediaType
		return w.d.Emit(ctx, events.NameScanFound, events.Range{First: u.Number, Last: u.Number}.String(),
			events.ScanFound{Pass: pass, Unit: u.Number, Page: u.Page, Source: src})
	}
	return w.s.extracted(ctx, w.d, pass, seg, mediaType, w.src)
}

// extracted publishes the text of a segment.
func (s *Service) extracted(ctx context.Context, d *bus.Delivery, pass events.Pass, seg []extract.Unit, mediaType string, src events.Source) error {
	e := events.Extracted{Pass: pass, MediaType: mediaType, Language: src.Language}
	if src.Object != "" {
		e.Source = &src
	}
	texts := make([]events.UnitText, 0, len(seg))
	for _, u := range seg {
		eu := events.Unit{Unit: u.Number, Page: u.Page, Method: u.Method, Confidence: u.Confidence, Warning: u.Warning}
		if u.Err != nil {
			p := events.ProblemOf("ocr", u.Err)
			eu.Problem, u.Text = &p, ""
		}
		eu.Length = utf8.RuneCountInString(u.Text)
		e.Units = append(e.Units, eu)
		texts = append(texts, events.UnitText{Unit: u.Number, Text: u.Text})
		if e.Preview == "" {
			e.Preview = preview(u.Text)
		}
	}
	e.Segment = events.RangeOf(e.Units).String()
	var err error
	if e.Content, err = s.store.Put(ctx, d.Job, texts); err != nil {
		return err
	}
	return d.Emit(ctx, events.NameExtracted, e.Segment, e)
}

// preview is the beginning of a text, 120 code points of it.
func preview(text string) string {
	text = strings.TrimSpace(text)
	n := 0
	for i := range text {
		if n == 120 {
			return text[:i]
		}
		n++
	}
	return text
}

// final marks what the document itself is to blame for: a tool that ran out of its time
// will again. What the machine is to blame for stays worth another try.
func final(err error) error {
	if f, ok := errors.AsType[*events.Failure](err); ok && f.Class != events.Internal && f.Class != events.Unavailable {
		return f.Finally()
	}
	return err
}
