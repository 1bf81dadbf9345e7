package extract

import (
	"fmt"
	"os/exec"
	"sync"
	"testing"
	"time"
)

// The benchmarks run the package and the bare tools in turns, so that both see the same
// machine, and report pages per second of each and their ratio.

func report(b *testing.B, pages int, ours, bare time.Duration) {
	b.ReportMetric(float64(pages)/ours.Seconds(), "pages/s")
	b.ReportMetric(float64(pages)/bare.Seconds(), "bare-pages/s")
	b.ReportMetric(bare.Seconds()/ours.Seconds(), "ratio")
}

// BenchmarkOCR recognises the two scanned pages of a PDF at once, as two workers do.
func BenchmarkOCR(b *testing.B) {
	const path = "testdata/mixed.pdf"
	scans := []int{2, 4}
	d := mustOpen(b, Config{DefaultLanguage: "eng", OCRWorkers: 2}, path, Hint{})
	var ours, bare time.Duration
	for b.Loop() {
		ours += together(b, scans, func(page int) error {
			_, err := d.Recognize(b.Context(), page)
			return err
		})
		bare += together(b, scans, func(page int) error {
			return exec.CommandContext(b.Context(), "sh", "-c", fmt.Sprintf(
				"pdftoppm -r 200 -gray -f %[1]d -l %[1]d %[2]s | OMP_THREAD_LIMIT=1 tesseract - - --dpi 200 --psm 3 -l eng", page, path)).Run()
		})
	}
	report(b, b.N*len(scans), ours, bare)
}

func together(b *testing.B, pages []int, f func(int) error) time.Duration {
	start := time.Now()
	var wg sync.WaitGroup
	for _, p := range pages {
		wg.Go(func() {
			if err := f(p); err != nil {
				b.Error(err)
			}
		})
	}
	wg.Wait()
	return time.Since(start)
}

// BenchmarkText walks a PDF of 1,000 pages with a kilobyte of text each, by slices and
// without a cache from before. The bare tool reads it in one run.
func BenchmarkText(b *testing.B) {
	const pages = 1000
	streams := make([]string, pages)
	for i := range streams {
		streams[i] = "BT /F1 10 Tf 50 800 Td 12 TL "
		for line := range 40 {
			streams[i] += fmt.Sprintf("(Line %d of page %d tells of the tide mill.) Tj T* ", line, i+1)
		}
		streams[i] += "ET"
	}
	path := file(b, "a.pdf", pdf(streams...))
	var ours, bare time.Duration
	for b.Loop() {
		start := time.Now()
		d := mustOpen(b, Config{}, path, Hint{})
		for n := 1; n <= d.Units; {
			s, err := d.Read(b.Context(), n)
			if err != nil {
				b.Fatal(err)
			}
			n += len(s)
		}
		ours += time.Since(start)
		start = time.Now()
		if err := exec.CommandContext(b.Context(), "pdftotext", path, "-").Run(); err != nil {
			b.Fatal(err)
		}
		bare += time.Since(start)
	}
	report(b, b.N*pages, ours, bare)
}
