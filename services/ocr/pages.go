package ocr

import (
	"context"

	"github.com/leafmill/leafmill/events"
	"github.com/leafmill/leafmill/internal/bus"
	"github.com/leafmill/leafmill/services/ocr/extract"
)

// OnScanFound recognises one scanned page. A page that cannot be recognised is a failed
// unit, never a failed document.
func (s *Service) OnScanFound(ctx context.Context, d *bus.Delivery) error {
	b := d.Body.(*events.ScanFound)
	local, err := s.cache.Fetch(ctx, b.Source)
	if err != nil {
		return err
	}
	doc, err := s.extract.Open(ctx, local.Path, extract.Hint{Name: d.Pass.Name, MediaType: b.Source.MediaType, Language: b.Source.Language})
	if err != nil {
		return final(err)
	}
	u, err := doc.Recognize(ctx, b.Unit)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err = final(err); err != nil {
		if events.Retryable(err) {
			return err
		}
		u = extract.Unit{Method: extract.OCR, Err: err}
	}
	u.Number, u.Page = b.Unit, b.Page
	return s.extracted(ctx, d, b.Pass, []extract.Unit{u}, doc.MediaType, b.Source)
}
