package view

import (
	"encoding/binary"

	"github.com/leafmill/leafmill/events"
)

// units are written column by column. A sequence is counted from the run's, so that none
// (0) and the first are close; counts are differences from the count before them in the
// pipeline, which are mostly 0.
func (c *coder) units(r *ofRun) {
	n := len(r.list)
	c.num(&n)
	if n > events.MaxUnits {
		c.fail()
		n = 0
	}
	if c.read && c.err == nil && n > 0 {
		r.list = make([]unit, n)
	}
	list := r.list
	seq := func(field func(*unit) *uint64) {
		c.column(len(list), func(i int) int64 {
			if v := *field(&list[i]); v > 0 {
				return int64(v-r.run) + 1
			}
			return 0
		}, func(i int, v int64) {
			if v != 0 {
				*field(&list[i]) = uint64(v-1) + r.run
			}
		})
	}
	number := func(field func(*unit) *int, base func(*unit) int) {
		c.column(len(list), func(i int) int64 {
			return int64(*field(&list[i])) - int64(base(&list[i]))
		}, func(i int, v int64) {
			*field(&list[i]) = int(v) + base(&list[i])
		})
	}
	none := func(*unit) int { return 0 }
	number(func(u *unit) *int { return &u.n }, none)
	number(func(u *unit) *int { return &u.page }, none)
	number(func(u *unit) *int { return &u.length }, none)
	seq(func(u *unit) *uint64 { return &u.found })
	seq(func(u *unit) *uint64 { return &u.extracted })
	seq(func(u *unit) *uint64 { return &u.chunked })
	seq(func(u *unit) *uint64 { return &u.outcome })
	seq(func(u *unit) *uint64 { return &u.indexed })
	seq(func(u *unit) *uint64 { return &u.poisoned })
	c.column(len(list), func(i int) int64 {
		if u := &list[i]; u.degraded > 0 {
			return int64(u.outcome-u.degraded) + 1
		}
		return 0
	}, func(i int, v int64) {
		if v != 0 {
			list[i].degraded = list[i].outcome - uint64(v-1)
		}
	})
	number(func(u *unit) *int { return &u.chunks }, none)
	number(func(u *unit) *int { return &u.vectors }, func(u *unit) int { return u.chunks })
	number(func(u *unit) *int { return &u.inChunks }, func(u *unit) int { return u.chunks })
	number(func(u *unit) *int { return &u.inVectors }, func(u *unit) int { return u.inChunks })
	number(func(u *unit) *int { return &u.failedCode }, none)
	number(func(u *unit) *int { return &u.degradedCode }, none)
	number(func(u *unit) *int { return &u.poisonedCode }, none)
	c.column(len(list), func(i int) int64 {
		v := int64(0)
		if list[i].ocr {
			v = 1
		}
		if list[i].superseded {
			v += 2
		}
		return v
	}, func(i int, v int64) { list[i].ocr, list[i].superseded = v&1 != 0, v&2 != 0 })
	c.checkUnits(r)
}

// checkUnits refuses what no fold can have made and the view would fall over.
func (c *coder) checkUnits(r *ofRun) {
	if !c.read {
		return
	}
	prev := 0
	for i := range r.list {
		u := &r.list[i]
		if u.n <= prev || u.n > events.MaxUnits ||
			!within(u.failedCode, len(r.codes)) || !within(u.degradedCode, len(r.codes)) || !within(u.poisonedCode, len(r.codes)) {
			c.fail()
			r.list = nil
			return
		}
		prev = u.n
	}
}

func within(v, most int) bool { return v >= 0 && v <= most }

// column writes or reads n numbers as the differences between neighbours, in blocks: an odd
// header is a run of equal differences, an even one that many single ones.
func (c *coder) column(n int, get func(int) int64, set func(int, int64)) {
	if c.read {
		c.readColumn(n, set)
		return
	}
	diff := func(i int) int64 {
		if i == 0 {
			return get(0)
		}
		return get(i) - get(i-1)
	}
	for i := 0; i < n; {
		d := diff(i)
		run := 1
		for i+run < n && diff(i+run) == d {
			run++
		}
		if run >= 3 || i+run == n {
			c.b = binary.AppendUvarint(c.b, uint64(run)<<1|1)
			c.b = binary.AppendUvarint(c.b, zigzag(d))
			i += run
			continue
		}
		// Single ones, up to where the next run begins.
		end, same := i+1, 1
		for last := d; end < n; end++ {
			if x := diff(end); x == last {
				same++
			} else {
				same, last = 1, x
			}
			if same == 3 {
				end -= 2
				break
			}
		}
		c.b = binary.AppendUvarint(c.b, uint64(end-i)<<1)
		for ; i < end; i++ {
			c.b = binary.AppendUvarint(c.b, zigzag(diff(i)))
		}
	}
}

func (c *coder) readColumn(n int, set func(int, int64)) {
	prev := int64(0)
	for i := 0; i < n && c.err == nil; {
		var header, d uint64
		c.u64(&header)
		size := header >> 1
		if size == 0 || size > uint64(n-i) {
			c.fail()
			return
		}
		same := header&1 == 1
		if same {
			c.u64(&d)
		}
		for range size {
			if !same {
				c.u64(&d)
			}
			prev += unzigzag(d)
			set(i, prev)
			i++
		}
	}
}

func zigzag(v int64) uint64   { return uint64(v)<<1 ^ uint64(v>>63) }
func unzigzag(v uint64) int64 { return int64(v>>1) ^ -int64(v&1) }
