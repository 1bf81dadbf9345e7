package extract

import (
	"context"
	"errors"
	"math"
	"os"
	"strconv"
	"strings"

	"github.com/leafmill/leafmill/events"
	"github.com/leafmill/leafmill/internal/sandbox"
)

const ocrMemory = 1 << 30

// minDPI is the resolution below which recognition reads nothing.
const minDPI = 72

// recognizePDF draws a page and recognises it.
func (d *Document) recognizePDF(ctx context.Context, number int) (Unit, error) {
	p, err := d.pdfPageOf(ctx, number)
	if err != nil {
		return Unit{}, err
	}
	if p.Class != "" {
		return Unit{}, p.unit(number).Err
	}
	dpi, err := d.resolution(p)
	if err != nil {
		return Unit{}, err
	}
	u := Unit{Number: number, Page: number, Method: OCR}
	err = d.recognize(ctx, &u, func(w *sandbox.Work) (string, []string, error) {
		n := strconv.Itoa(number)
		_, err := w.Run(ctx, sandbox.Command{
			Tool:   "pdftoppm", // to PGM: packing a PNG takes as long as recognition
			Args:   []string{"-q", "-r", strconv.Itoa(dpi), "-gray", "-f", n, "-l", n, "-singlefile", d.path, "page"},
			Limits: sandbox.Limits{Time: d.e.config.OCRTimeout, Memory: ocrMemory, File: d.e.config.MaxPixels + 1<<20},
		})
		if errors.Is(err, sandbox.ErrNoTool) {
			err = noPoppler(err)
		}
		return w.Path("page.pgm"), []string{"--dpi", strconv.Itoa(dpi)}, ofDocument(err, "Page "+n+" of the PDF cannot be drawn.")
	})
	u.Text = withStamp(p.Text, u.Text)
	return u, err
}

// resolution is the configured one, or what keeps a large page within the pixels allowed.
func (d *Document) resolution(p pdfPage) (int, error) {
	dpi := d.e.config.DPI
	squareInches := p.Width / 72 * p.Height / 72
	if squareInches*float64(dpi*dpi) > float64(d.e.config.MaxPixels) {
		dpi = int(math.Sqrt(float64(d.e.config.MaxPixels) / squareInches))
	}
	if dpi < minDPI {
		return 0, events.Fail(events.Limit, "The page is %.0f x %.0f inches large, too much to recognise: make it smaller.", p.Width/72, p.Height/72)
	}
	return dpi, nil
}

// recognize runs tesseract over the image that draw returns, with draw's options, and
// fills in the unit's text, confidence and warning. Both run on one place of the workers.
func (d *Document) recognize(ctx context.Context, u *Unit, draw func(*sandbox.Work) (string, []string, error)) error {
	lang, warning, err := d.e.languages.choose(ctx, d.language, d.e.config.DefaultLanguage)
	if err != nil {
		return err
	}
	u.Warning = warning
	return d.e.withChild(ctx, d.e.ocr, func(w *sandbox.Work) error {
		path, options, err := draw(w)
		if err != nil {
			return err
		}
		env := []string{"OMP_THREAD_LIMIT=1"} // with its own threads it is five times slower under load
		if dir := os.Getenv("TESSDATA_PREFIX"); dir != "" {
			env = append(env, "TESSDATA_PREFIX="+dir)
		}
		// One run writes both: out.txt and, with the confidence of every word, out.tsv.
		_, err = w.Run(ctx, sandbox.Command{
			Tool: "tesseract", Env: env,
			Args: append([]string{path, "out", "-l", lang, "--psm", "3", "-c", "page_separator=",
				"-c", "tessedit_create_txt=1", "-c", "tessedit_create_tsv=1"}, options...),
			Limits: sandbox.Limits{Time: d.e.config.OCRTimeout, Memory: ocrMemory, File: 8 << 20},
		})
		if err != nil {
			return ofDocument(noTesseract(err), "The image of page "+strconv.Itoa(u.Page)+" is damaged: save it again.")
		}
		text, err := os.ReadFile(w.Path("out.txt"))
		if err != nil {
			return err
		}
		words, err := os.ReadFile(w.Path("out.tsv"))
		if err != nil {
			return err
		}
		u.Text, u.Confidence = strings.TrimSpace(clean(text)), confidence(string(words))
		return nil
	})
}

// noTesseract turns the sandbox's word for a missing program into the user's.
func noTesseract(err error) error {
	if errors.Is(err, sandbox.ErrNoTool) {
		return events.Fail(events.NoOCR, "Scans cannot be read here because tesseract is not installed: apt-get install tesseract-ocr.").Because(err)
	}
	return err
}

// confidence is the mean over tesseract's table of words, 0 to 1; 0 when there are none.
func confidence(tsv string) float64 {
	const level, conf, word, columns = 0, 10, "5", 12
	var sum float64
	n := 0
	for line := range strings.Lines(tsv) {
		f := strings.Split(line, "\t")
		if len(f) < columns || f[level] != word {
			continue
		}
		if v, err := strconv.ParseFloat(f[conf], 64); err == nil && v >= 0 && v <= 100 {
			sum += v
			n++
		}
	}
	if n == 0 {
		return 0
	}
	return sum / float64(n) / 100
}

func exited(err error) bool {
	_, ok := errors.AsType[*sandbox.ExitError](err)
	return ok
}
