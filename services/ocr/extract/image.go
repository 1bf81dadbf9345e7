package extract

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"image"
	_ "image/jpeg" // DecodeConfig
	_ "image/png"
	"io"
	"os"
	"strconv"

	"github.com/leafmill/leafmill/events"
	"github.com/leafmill/leafmill/internal/sandbox"
)

// size is an image's, in pixels.
type size struct{ width, height int64 }

// openImage reads the dimensions of every page, and no pixel.
func (d *Document) openImage(f *os.File) error {
	var err error
	if d.MediaType == "image/tiff" {
		d.images, err = tiffPages(f, d.e.config.MaxPages)
	} else {
		var c image.Config
		c, _, err = image.DecodeConfig(f)
		d.images = []size{{int64(c.Width), int64(c.Height)}}
	}
	if errors.Is(err, errTooManyPages) {
		return events.Fail(events.Limit, "The image has more than %d pages: split it.", d.e.config.MaxPages)
	}
	if err != nil {
		return events.Fail(events.Corrupt, "The image is damaged or cut off: save it again.").Because(err)
	}
	d.Units, d.Pages = len(d.images), len(d.images)
	if d.Units == 1 {
		return d.tooLarge(1)
	}
	return nil
}

func (d *Document) readImage(from int) ([]Unit, error) {
	var s slice
	for n := from; n <= d.Units; n++ {
		u := Unit{Number: n, Page: n, Method: OCR, Scan: true}
		if err := d.tooLarge(n); err != nil {
			u.Scan, u.Err = false, err
		}
		if !s.add(u) {
			break
		}
	}
	return s.units, nil
}

// tooLarge refuses a page before anything unpacks it.
func (d *Document) tooLarge(number int) error {
	s := d.images[number-1]
	limit := d.e.config.MaxPixels
	if s.width < 1 || s.height < 1 {
		return events.Fail(events.Corrupt, "Page %d of the image has no area.", number)
	}
	if s.width > limit/s.height {
		return events.Fail(events.Limit, "The image has %d x %d pixels, more than the limit of %d megapixels: make it smaller.",
			s.width, s.height, limit/1_000_000)
	}
	return nil
}

func (d *Document) recognizeImage(ctx context.Context, number int) (Unit, error) {
	if err := d.tooLarge(number); err != nil {
		return Unit{}, err
	}
	u := Unit{Number: number, Page: number, Method: OCR}
	var args []string
	if len(d.images) > 1 {
		args = []string{"-c", "tessedit_page_number=" + strconv.Itoa(number-1)}
	}
	err := d.recognize(ctx, &u, func(*sandbox.Work) (string, []string, error) { return d.path, args, nil })
	return u, err
}

var (
	errTooManyPages = errors.New("too many pages")
	errTIFF         = errors.New("not a TIFF file")
)

// tiffPages reads the chain of a TIFF's directories: one a page. A chain that turns back
// ends at the limit.
func tiffPages(r io.ReaderAt, limit int) ([]size, error) {
	var head [8]byte
	if _, err := r.ReadAt(head[:], 0); err != nil {
		return nil, err
	}
	var order binary.ByteOrder = binary.LittleEndian
	if bytes.HasPrefix(head[:], []byte("MM")) {
		order = binary.BigEndian
	}
	if order.Uint16(head[2:]) != 42 {
		return nil, errTIFF
	}
	const (
		entryBytes                       = 12
		tagWidth, tagHeight, short, long = 256, 257, 3, 4
	)
	var pages []size
	for at := int64(order.Uint32(head[4:])); at != 0; {
		if len(pages) == limit {
			return nil, errTooManyPages
		}
		var n [2]byte
		if _, err := r.ReadAt(n[:], at); err != nil {
			return nil, err
		}
		dir := make([]byte, int(order.Uint16(n[:]))*entryBytes+4)
		if _, err := r.ReadAt(dir, at+2); err != nil {
			return nil, err
		}
		var s size
		for e := dir; len(e) > entryBytes; e = e[entryBytes:] {
			var v int64
			switch order.Uint16(e[2:]) {
			case short:
				v = int64(order.Uint16(e[8:]))
			case long:
				v = int64(order.Uint32(e[8:]))
			}
			switch order.Uint16(e) {
			case tagWidth:
				s.width = v
			case tagHeight:
				s.height = v
			}
		}
		pages = append(pages, s)
		at = int64(order.Uint32(dir[len(dir)-4:]))
	}
	if len(pages) == 0 {
		return nil, errTIFF
	}
	return pages, nil
}
