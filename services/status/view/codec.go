package view

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/leafmill/leafmill/events"
)

// ErrCorrupt says that the bytes are not an encoded State.
var ErrCorrupt = errors.New("view: not an encoded state")

// format is the first byte of an encoded State. Another format is not read: states are
// derived, and rebuilt from the stream.
const format = 1

// MarshalBinary encodes the state: columns of the units as runs of varint differences,
// some 10 bytes a unit of a scan and 3 of a text.
func (s *State) MarshalBinary() ([]byte, error) {
	return s.AppendBinary(make([]byte, 0, 256+12*len(s.run.list)))
}

// AppendBinary is MarshalBinary into a given buffer.
func (s *State) AppendBinary(b []byte) ([]byte, error) {
	c := coder{b: append(b, format)}
	c.state(s)
	return c.b, nil
}

// UnmarshalBinary decodes what MarshalBinary wrote, or returns ErrCorrupt.
func (s *State) UnmarshalBinary(b []byte) error {
	if len(b) == 0 || b[0] != format {
		return fmt.Errorf("%w: another format", ErrCorrupt)
	}
	c := coder{b: b[1:], read: true}
	var out State
	c.state(&out)
	if c.err == nil && len(c.b) > 0 {
		c.fail()
	}
	if c.err != nil {
		return c.err
	}
	*s = out
	return nil
}

// coder goes through a state's fields in one order, writing or reading: what it writes it
// can read.
type coder struct {
	b    []byte
	read bool
	err  error
}

func (c *coder) fail() {
	if c.err == nil {
		c.err = ErrCorrupt
	}
	c.b = nil
}

func (c *coder) u64(v *uint64) {
	if !c.read {
		c.b = binary.AppendUvarint(c.b, *v)
		return
	}
	x, n := binary.Uvarint(c.b)
	if n <= 0 {
		c.fail()
		*v = 0
		return
	}
	*v, c.b = x, c.b[n:]
}

func (c *coder) i64(v *int64) {
	x := zigzag(*v)
	c.u64(&x)
	*v = unzigzag(x)
}

// num is a number that is not negative and fits an int32.
func (c *coder) num(v *int) {
	x := uint64(*v)
	c.u64(&x)
	if x > 1<<31-1 {
		c.fail()
		x = 0
	}
	*v = int(x)
}

// total is a sum, of any size.
func (c *coder) total(v *int) {
	x := int64(*v)
	c.i64(&x)
	*v = int(x)
}

func (c *coder) flag(v *bool) {
	n := 0
	if *v {
		n = 1
	}
	c.num(&n)
	*v = n == 1
}

func (c *coder) str(v *string) {
	n := len(*v)
	c.num(&n)
	if !c.read {
		c.b = append(c.b, *v...)
		return
	}
	if n > len(c.b) {
		c.fail()
		return
	}
	*v, c.b = string(c.b[:n]), c.b[n:]
}

// size is a count of things that take at least a byte each.
func (c *coder) size(n int) int {
	c.num(&n)
	if c.read && n > len(c.b) {
		c.fail()
		n = 0
	}
	return n
}

func (c *coder) problem(p *problem) {
	c.str(&p.code)
	c.str(&p.stage)
	c.str(&p.message)
}

// resize makes a slice of n zero values when reading.
func resize[T any](c *coder, s *[]T) {
	if n := c.size(len(*s)); c.read && n > 0 {
		*s = make([]T, n)
	}
}

func (c *coder) state(s *State) {
	c.str(&s.job)
	c.u64(&s.cancelled)
	c.u64(&s.lastCompleted)
	c.u64(&s.lastHealed)
	c.u64(&s.deleted.seq)
	if f := &s.deleted; f.seq > 0 {
		c.i64(&f.at)
		c.u64(&f.run)
		c.u64(&f.version)
		c.str(&f.collection)
		c.str(&f.document)
		c.str(&f.name)
	}
	c.u64(&s.orphan.seq)
	if s.orphan.seq > 0 {
		c.i64(&s.orphan.at)
		c.problem(&s.orphan.problem)
	}
	c.u64(&s.version.version)
	if s.version.version > 0 {
		c.ofVersion(&s.version)
		c.ofRun(&s.run, s.version.first)
	}
}

func (c *coder) ofVersion(v *ofVersion) {
	c.i64(&v.first)
	c.since(&v.updated, v.first)
	c.since(&v.submitted, v.first)
	c.flag(&v.submission)
	c.flag(&v.bulk)
	c.i64(&v.size)
	c.str(&v.media)
	c.str(&v.name)
	meta := string(v.metadata)
	c.str(&meta)
	if c.read && meta != "" {
		v.metadata = []byte(meta)
	}
	c.u64(&v.sniffed)
	c.str(&v.sniffedMedia)
	c.i64(&v.sniffedSize)
	c.u64(&v.text.run)
	c.u64(&v.text.seq)
	c.num(&v.text.unit)
	c.str(&v.text.text)
	c.u64(&v.chunks.run)
	resize(c, &v.chunks.list)
	for i := range v.chunks.list {
		p := &v.chunks.list[i]
		c.u64(&p.seq)
		c.total(&p.unit)
		c.total(&p.n)
		c.total(&p.page)
		c.str(&p.id)
		c.str(&p.text)
	}
}

// since is a time, written as the difference from another; 0 stays 0.
func (c *coder) since(v *int64, base int64) {
	x := uint64(0)
	if *v != 0 {
		x = zigzag(*v-base) + 1
	}
	c.u64(&x)
	if c.read && x > 0 {
		*v = base + unzigzag(x-1)
	}
}

func (c *coder) ofRun(r *ofRun, base int64) {
	c.u64(&r.run)
	c.u64(&r.passSeq)
	c.str(&r.collection)
	c.str(&r.document)
	c.str(&r.name)
	c.num(&r.units)
	c.since(&r.began, base)
	c.flag(&r.bulk)
	c.flag(&r.working)
	c.num(&r.from)
	if r.from >= stages || r.units > events.MaxUnits {
		c.fail()
	}
	c.u64(&r.active)
	c.u64(&r.wait.seq)
	c.str(&r.wait.reason)
	c.since(&r.wait.until, base)
	for i := range r.time {
		c.since(&r.time[i].first, base)
		c.since(&r.time[i].last, base)
	}
	c.set(&r.retries)
	c.set(&r.calls)
	c.total(&r.usage.Calls)
	c.total(&r.usage.Tokens)
	c.i64(&r.usage.LatencyMS)
	resize(c, &r.codes)
	for i := range r.codes {
		c.u64(&r.codes[i].seq)
		c.flag(&r.codes[i].loose)
		c.problem(&r.codes[i].problem)
	}
	resize(c, &r.open)
	for i := range r.open {
		c.num(&r.open[i].first)
		c.u64(&r.open[i].seq)
		c.num(&r.open[i].code)
		if r.open[i].code < 1 || r.open[i].code > len(r.codes) {
			c.fail()
		}
	}
	c.fact(&r.completed, base)
	c.fact(&r.healed, base)
	c.units(r)
}

func (c *coder) fact(f *fact, base int64) {
	c.u64(&f.seq)
	if f.seq == 0 {
		return
	}
	c.since(&f.at, base)
	c.str(&f.status)
	c.str(&f.mode)
	c.total(&f.chunks)
	c.total(&f.vectors)
	c.num(&f.failed)
	c.problem(&f.problem)
}

// set is written as differences.
func (c *coder) set(s *set) {
	resize(c, (*[]uint64)(s))
	prev := uint64(0)
	for i := range *s {
		d := (*s)[i] - prev
		c.u64(&d)
		(*s)[i] = prev + d
		prev = (*s)[i]
	}
}
