package main

import (
	"fmt"
	"io"
	"path/filepath"
	"sync/atomic"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
)

// progress shows how far an ingestion is: bars on a terminal, or a line for each step.
type progress struct {
	bars  *mpb.Progress
	bytes *mpb.Bar // handed in
	sent  atomic.Int64
	jobs  *mpb.Bar // ended; nil without --wait
	lines *lines
}

func (a *app) newProgress(in ingestion, files []*file) (*progress, error) {
	p := &progress{}
	switch in.reporting {
	case "auto":
		if in.asJSON || !terminal(a.err) {
			return p, nil
		}
	case "lines":
		p.lines = &lines{w: a.err}
		return p, nil
	case "none":
		return p, nil
	default:
		return nil, usage("--progress is auto, lines or none")
	}
	var total int64
	for _, f := range files {
		total += f.size
	}
	p.bars = mpb.New(mpb.WithOutput(a.err), mpb.WithWidth(40))
	p.bytes = p.bars.AddBar(total, mpb.PrependDecorators(decor.Name("handing in ", decor.WCSyncSpaceR)),
		mpb.AppendDecorators(decor.CountersKibiByte("% .1f / % .1f")))
	if in.wait {
		p.jobs = p.bars.AddBar(int64(len(files)), mpb.PrependDecorators(decor.Name("finished ", decor.WCSyncSpaceR)),
			mpb.AppendDecorators(decor.CountersNoUnit("%d / %d")))
	}
	return p, nil
}

// reading counts what is read of a file.
func (p *progress) reading(f *file, r io.ReadCloser) io.ReadCloser {
	if p.bytes == nil {
		return r
	}
	return &counted{ReadCloser: r, p: p, size: f.size}
}

// counted tells the bar of the bytes of a file.
type counted struct {
	io.ReadCloser
	p          *progress
	size, read int64
}

func (c *counted) Read(b []byte) (int, error) {
	n, err := c.ReadCloser.Read(b)
	c.read += int64(n)
	c.p.bytes.SetCurrent(c.p.sent.Add(int64(n)))
	return n, err
}

// Close takes back what was counted when the upload did not come to its end: it is repeated.
func (c *counted) Close() error {
	if c.read < c.size {
		c.p.sent.Add(-c.read)
	}
	return c.ReadCloser.Close()
}

func (p *progress) submitted(f *file) {
	if p.lines == nil {
		return
	}
	if f.err != nil {
		p.lines.say("%s: %s", clean(filepath.Base(f.Path)), clean(f.err.Error()))
		return
	}
	p.lines.say("%s: handed in as job %s", clean(filepath.Base(f.Path)), f.Job)
}

func (p *progress) ended(f *file) {
	if p.jobs != nil {
		p.jobs.Increment()
	}
	if p.lines == nil || f.View == nil {
		return
	}
	p.lines.say("%s: %s, %d pages, %d chunks, %s", clean(filepath.Base(f.Path)), f.View.Status,
		f.View.Artifacts.Pages, f.View.Artifacts.Chunks, mode(*f.View))
}

// pause lets say write between the bars.
func (p *progress) pause(say func()) {
	if p.bars != nil {
		_, _ = fmt.Fprintln(p.bars, "the server is busy, waiting")
		return
	}
	say()
}

// stop leaves the bars as they are.
func (p *progress) stop() {
	if p.bars == nil {
		return
	}
	p.bytes.Abort(false)
	if p.jobs != nil {
		p.jobs.Abort(false)
	}
	p.bars.Wait()
}
