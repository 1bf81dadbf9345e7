package embedded

import (
	"math/bits"
	"sync"
)

// memory is what searches need at every chunk, derived from SQLite at start and kept equal
// to it by the writer. It grows by about 230 bytes a chunk of 384 dimensions, 48 of them
// the code of its vector, documents of ten chunks included. Every chunk has a slot; slots
// are used again.
//
// A search holds the read lock while it ranks, the writer the write lock while it applies
// one committed batch: so a search sees a batch whole or not at all.
type memory struct {
	mu sync.RWMutex

	collections map[string]uint32
	documents   map[int64]*document
	byName      map[string][]*document // by document id, in all collections
	versions    map[int64]*version
	slots       map[int64]uint32 // by row

	// By slot.
	row        []int64
	owner      []*version
	collection []uint32
	terms      []uint32
	at         []uint32 // index in owner.slots
	unit       []uint32
	lang       []uint8
	visible    bitset // searches see it
	free       []uint32

	vectors *vectors

	chunks    int
	terms64   int64 // sum of terms
	languages []int // chunks by language

	dead         []int64 // rows gone, not yet gone from the keyword index
	touched      map[*document]bool
	repositioned map[*version]bool
}

type document struct {
	id             int64
	collectionName string
	collection     uint32
	name           string
	completed      uint64
	versions       []*version
	shown          *version // the one searches see
}

type version struct {
	id        int64
	doc       *document
	version   uint64
	job, name string
	slots     []uint32
	units     []unit // unit number u is at u-1
	positions int    // units whose start is right
}

type unit struct {
	known, failed bool
	page, length  int32
	start         int64 // of the unit in the document's text
}

func newMemory(v *vectors, languages int) *memory {
	return &memory{
		collections: map[string]uint32{}, documents: map[int64]*document{}, byName: map[string][]*document{},
		versions: map[int64]*version{}, slots: map[int64]uint32{}, vectors: v, languages: make([]int, languages),
		touched: map[*document]bool{}, repositioned: map[*version]bool{},
	}
}

// settle ends a batch: it decides which versions are visible and where units start.
func (m *memory) settle() {
	for d := range m.touched {
		show := (*version)(nil)
		for _, v := range d.versions {
			if d.completed != 0 && v.version == d.completed ||
				d.completed == 0 && (show == nil || v.version > show.version) {
				show = v
			}
		}
		if show == d.shown {
			continue
		}
		if d.shown != nil {
			for _, s := range d.shown.slots {
				m.visible.clear(s)
			}
		}
		if show != nil {
			for _, s := range show.slots {
				m.visible.set(s)
			}
		}
		d.shown = show
	}
	clear(m.touched)
	for v := range m.repositioned {
		v.position()
	}
	clear(m.repositioned)
}

func (m *memory) addDocument(id int64, collection, name string, completed uint64) {
	c, ok := m.collections[collection]
	if !ok {
		c = uint32(len(m.collections))
		m.collections[collection] = c
	}
	d := &document{id: id, collectionName: collection, collection: c, name: name, completed: completed}
	m.documents[id] = d
	m.byName[name] = append(m.byName[name], d)
}

func (m *memory) setCompleted(document int64, completed uint64) {
	d := m.documents[document]
	d.completed = completed
	m.touched[d] = true
}

func (m *memory) addVersion(id, document int64, number uint64, job, name string) {
	d := m.documents[document]
	v := &version{id: id, doc: d, version: number, job: job, name: name}
	m.versions[id] = v
	d.versions = append(d.versions, v)
	m.touched[d] = true
}

func (m *memory) dropVersion(id int64) {
	v := m.versions[id]
	for len(v.slots) > 0 {
		m.dropChunk(m.row[v.slots[len(v.slots)-1]])
	}
	d := v.doc
	for i := range d.versions {
		if d.versions[i] == v {
			d.versions = append(d.versions[:i], d.versions[i+1:]...)
			break
		}
	}
	delete(m.versions, id)
	delete(m.repositioned, v)
	m.touched[d] = true
}

func (m *memory) setUnit(versionID int64, number, page, length int, failed bool) {
	v := m.versions[versionID]
	for len(v.units) < number {
		v.units = append(v.units, unit{})
	}
	v.units[number-1] = unit{known: true, failed: failed, page: int32(page), length: int32(length)}
	v.positions = min(v.positions, number-1)
	m.repositioned[v] = true
}

func (m *memory) dropUnit(versionID int64, number int) {
	v := m.versions[versionID]
	if number > len(v.units) {
		return
	}
	v.units[number-1] = unit{}
	for n := len(v.units); n > 0 && !v.units[n-1].known; n-- {
		v.units = v.units[:n-1]
	}
	v.positions = min(v.positions, number-1)
	m.repositioned[v] = true
}

// position brings the units' starts up to date: the sum of what comes before, one more (a
// form feed) where the page changes.
func (v *version) position() {
	for i := v.positions; i < len(v.units) && (i == 0 || v.units[i-1].known); i++ {
		if i > 0 {
			before := v.units[i-1]
			v.units[i].start = before.start + int64(before.length)
			if v.units[i].known && v.units[i].page != before.page {
				v.units[i].start++
			}
		}
		v.positions = i + 1
	}
}

// start is where a unit begins in the document's text, if all before it are known and its
// own text is that of its chunks.
func (v *version) start(number int) (int, bool) {
	if number > v.positions || number > len(v.units) || !v.units[number-1].known || v.units[number-1].failed {
		return 0, false
	}
	return int(v.units[number-1].start), true
}

func (m *memory) addChunk(row, versionID int64, unit, language, terms int) {
	v := m.versions[versionID]
	var s uint32
	if n := len(m.free); n > 0 {
		s, m.free = m.free[n-1], m.free[:n-1]
	} else {
		s = uint32(len(m.row))
		m.row, m.owner, m.collection = append(m.row, 0), append(m.owner, nil), append(m.collection, 0)
		m.terms, m.at, m.lang = append(m.terms, 0), append(m.at, 0), append(m.lang, 0)
		m.unit = append(m.unit, 0)
		m.visible.grow(len(m.row))
		m.vectors.grow(len(m.row))
	}
	m.row[s], m.owner[s], m.collection[s] = row, v, v.doc.collection
	m.unit[s], m.terms[s], m.lang[s], m.at[s] = uint32(unit), uint32(terms), uint8(language), uint32(len(v.slots))
	v.slots = append(v.slots, s)
	m.slots[row] = s
	m.chunks++
	m.terms64 += int64(terms)
	m.languages[language]++
	if v.doc.shown == v {
		m.visible.set(s)
	}
}

func (m *memory) dropChunk(row int64) {
	s, ok := m.slots[row]
	if !ok {
		return
	}
	v, i := m.owner[s], m.at[s]
	last := v.slots[len(v.slots)-1]
	v.slots[i], m.at[last] = last, i
	v.slots = v.slots[:len(v.slots)-1]
	delete(m.slots, row)
	m.chunks--
	m.terms64 -= int64(m.terms[s])
	m.languages[m.lang[s]]--
	m.visible.clear(s)
	m.vectors.drop(s)
	m.owner[s] = nil
	m.free = append(m.free, s)
	m.dead = append(m.dead, row)
}

// bitset is a set of slots.
type bitset []uint64

func (b *bitset) grow(n int) {
	for len(*b)*64 < n {
		*b = append(*b, 0)
	}
}
func (b bitset) set(i uint32)      { b[i/64] |= 1 << (i % 64) }
func (b bitset) clear(i uint32)    { b[i/64] &^= 1 << (i % 64) }
func (b bitset) has(i uint32) bool { return b[i/64]&(1<<(i%64)) != 0 }

func (b bitset) count() (n int) {
	for _, w := range b {
		n += bits.OnesCount64(w)
	}
	return n
}

// selection is the slots a search may see.
type selection struct {
	slots bitset
	rare  bool // so few that the keyword leg should look at their postings only
}

// choose is the exact pre-filter: the visible slots that pass. It returns the live bitset
// itself when nothing is filtered, so the read lock must be held as long as it is used.
func (m *memory) choose(collection, documentName string) selection {
	if documentName != "" {
		chosen := make(bitset, len(m.visible))
		n := 0
		for _, d := range m.byName[documentName] {
			if d.shown == nil || collection != "" && d.collectionName != collection {
				continue
			}
			for _, s := range d.shown.slots {
				chosen.set(s)
			}
			n += len(d.shown.slots)
		}
		return m.selected(chosen, n)
	}
	if collection == "" {
		return selection{slots: m.visible}
	}
	chosen := make(bitset, len(m.visible))
	c, ok := m.collections[collection]
	if !ok {
		return m.selected(chosen, 0)
	}
	n := 0
	for i, w := range m.visible {
		for w != 0 {
			b := bits.TrailingZeros64(w)
			w &= w - 1
			if m.collection[i*64+b] == c {
				chosen[i] |= 1 << b
				n++
			}
		}
	}
	return m.selected(chosen, n)
}

func (m *memory) selected(chosen bitset, n int) selection {
	return selection{slots: chosen, rare: 5*n < m.chunks}
}
