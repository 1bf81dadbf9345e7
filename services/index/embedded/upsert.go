package embedded

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"strings"

	"github.com/leafmill/leafmill/events"
	"github.com/leafmill/leafmill/services/index"
)

// Limits of a segment, far above what events carry.
const (
	maxUnit       = 1 << 20 // units of a document
	maxDimensions = 8192
	maxName       = 1024 // bytes of an identifier
)

// message is a segment checked and made ready outside the writer.
type message struct {
	index.Segment
	dimensions int // of its vectors; 0: it has none
	units      []unitMessage

	language *int // of the whole message, once it was asked for
}

// around guesses the language of all chunks together.
func (m *message) around(a *analyzers) int {
	if m.language == nil {
		var all strings.Builder
		for _, c := range m.Chunks {
			if all.Len() > detectAtMost {
				break
			}
			all.WriteString(c.Text)
			all.WriteByte('\n')
		}
		guess := a.guess(all.String())
		m.language = &guess
	}
	return *m.language
}

type unitMessage struct {
	index.Unit
	chunks []index.Chunk
	hash   []byte
}

// prepare checks a segment and does the work that needs no database.
func (b *Backend) prepare(s index.Segment) (message, error) {
	m := message{Segment: s}
	if err := errors.Join(checkNames(s.Job, s.Collection, s.Document), checkSequences(s.Version, s.Run)); err != nil {
		return m, err
	}
	at := map[int]int{}
	for _, u := range s.Units {
		if err := checkUnit(u); err != nil {
			return m, err
		}
		if _, twice := at[u.Number]; twice {
			return m, events.Fail(events.Invalid, "unit %d is there twice", u.Number)
		}
		at[u.Number] = len(m.units)
		m.units = append(m.units, unitMessage{Unit: u})
	}
	for _, c := range s.Chunks {
		i, ok := at[c.Unit]
		if !ok {
			return m, events.Fail(events.Invalid, "chunk %s is of unit %d, which the message does not list", c.ID, c.Unit)
		}
		if c.Start < 0 || c.End < c.Start || len(c.ID) > maxName || c.ID == "" {
			return m, events.Fail(events.Invalid, "chunk %q of unit %d has no usable id or span", c.ID, c.Unit)
		}
		for _, other := range m.units[i].chunks {
			if other.N == c.N {
				return m, events.Fail(events.Invalid, "chunk %d of unit %d is there twice", c.N, c.Unit)
			}
		}
		if c.Vector != nil {
			if m.dimensions == 0 {
				m.dimensions = len(c.Vector)
			}
			if len(c.Vector) == 0 || len(c.Vector) != m.dimensions || len(c.Vector) > maxDimensions {
				return m, events.Fail(events.Invalid, "the vectors of a message must have the same number of dimensions, 1 to %d", maxDimensions)
			}
			var err error
			if c.Vector, err = normalized(c.Vector); err != nil {
				return m, events.Fail(events.Invalid, "the vector of chunk %s cannot be used: %v", c.ID, err)
			}
		}
		m.units[i].chunks = append(m.units[i].chunks, c)
	}
	if m.dimensions > 0 && s.Space == "" {
		return m, events.Fail(events.Invalid, "vectors need the name of their space")
	}
	for i := range m.units {
		m.units[i].hash = hashUnit(&m.Segment, &m.units[i])
	}
	return m, nil
}

func checkNames(names ...string) error {
	for _, n := range names {
		if n == "" || len(n) > maxName {
			return events.Fail(events.Invalid, "job, collection and document need names of 1 to %d bytes", maxName)
		}
	}
	return nil
}

// checkSequences keeps numbers inside what SQLite can compare.
func checkSequences(sequences ...uint64) error {
	for _, s := range sequences {
		if s == 0 || s > 1<<62 {
			return events.Fail(events.Invalid, "%d is no stream sequence", s)
		}
	}
	return nil
}

func checkUnit(u index.Unit) error {
	if u.Number < 1 || u.Number > maxUnit || u.Length < 0 || u.Length > 1<<30 || u.Page < 0 || u.Page > 1<<30 {
		return events.Fail(events.Invalid, "unit %d (page %d, length %d) is out of range", u.Number, u.Page, u.Length)
	}
	return nil
}

// hashUnit is the hash of all that the message says of a unit but its run.
func hashUnit(s *index.Segment, u *unitMessage) []byte {
	h := sha256.New()
	number(h, u.Page, u.Length, len(u.chunks))
	text(h, s.Space, s.Language)
	for _, c := range u.chunks {
		number(h, c.N, c.Page, c.Start, c.End, c.Tokens, len(c.Vector))
		text(h, c.ID, c.Text)
		if c.Vector != nil {
			h.Write(encode(c.Vector))
		}
	}
	return h.Sum(nil)
}

func number(h hash.Hash, numbers ...int) {
	b := make([]byte, 0, 8*len(numbers))
	for _, n := range numbers {
		b = binary.LittleEndian.AppendUint64(b, uint64(n))
	}
	h.Write(b)
}

func text(h hash.Hash, texts ...string) {
	for _, t := range texts {
		number(h, len(t))
		h.Write([]byte(t))
	}
}

// upsert replaces the segment's units.
func (t *transaction) upsert(m *message) (index.Outcome, error) {
	var out index.Outcome
	d, err := t.document(m.Collection, m.Document)
	if err != nil {
		return out, err
	}
	var cancelled uint64
	if _, err := t.one("SELECT fence FROM cancels WHERE job = ?", []any{m.Job}, &cancelled); err != nil {
		return out, err
	}
	switch {
	case m.Version <= d.fence || m.Run <= cancelled:
		out.Fenced = true
	case m.Version < d.completed:
		out.Superseded = true
	}
	if out.Fenced || out.Superseded {
		for _, u := range m.units {
			out.Units = append(out.Units, index.UnitCount{Unit: u.Number})
		}
		return out, nil
	}
	if m.dimensions > 0 {
		if err := t.useVectors(m.Space, m.dimensions); err != nil {
			return out, err
		}
	}
	if d, err = t.created(d, m.Collection, m.Document); err != nil {
		return out, err
	}
	v, err := t.version(d.id, m.Version)
	if err != nil {
		return out, err
	}
	if v, err = t.createdVersion(v, d.id, m.Version, m.Job, m.Name); err != nil {
		return out, err
	}
	for i := range m.units {
		count, err := t.upsertUnit(v, m, &m.units[i])
		if err != nil {
			return out, fmt.Errorf("unit %d: %w", m.units[i].Number, err)
		}
		out.Units = append(out.Units, count)
		out.Chunks += count.Chunks
		out.Vectors += count.Vectors
	}
	return out, nil
}

// upsertUnit replaces one unit, unless a later run has it or has completed without it.
func (t *transaction) upsertUnit(v versionRow, m *message, u *unitMessage) (index.UnitCount, error) {
	var run uint64
	var failed bool
	var known []byte
	found, err := t.one("SELECT run, failed, hash FROM units WHERE version = ? AND number = ?", []any{v.id, u.Number}, &run, &failed, &known)
	if err != nil {
		return index.UnitCount{}, err
	}
	gone := m.Run < v.run && v.total > 0 && u.Number > v.total
	if gone || found && m.Run < run {
		return t.count(v.id, u.Number)
	}
	if found && bytes.Equal(known, u.hash) {
		if m.Run > run {
			if _, err := t.exec("UPDATE units SET run = ? WHERE version = ? AND number = ?", int64(m.Run), v.id, u.Number); err != nil {
				return index.UnitCount{}, err
			}
		}
		return t.count(v.id, u.Number)
	}
	var old []storedChunk
	if found {
		if old, err = t.stored(v.id, u.Number); err != nil {
			return index.UnitCount{}, err
		}
	}
	if err := t.setUnit(v.id, u.Unit, m.Run, false, u.hash); err != nil {
		return index.UnitCount{}, err
	}
	count := index.UnitCount{Unit: u.Number, Chunks: len(u.chunks)}
	for i := range u.chunks {
		c := &u.chunks[i]
		// The row of the same text stays, with its vector, also when its number changed.
		have := take(old, c)
		if have == nil {
			have = &storedChunk{}
			if have.row, err = t.insert(v.id, m, c); err != nil {
				return count, err
			}
		} else if have.differs(c) {
			if _, err := t.exec(`UPDATE chunks SET n = ?, id = ?, page = ?, start = ?, "end" = ?, tokens = ? WHERE row = ?`,
				c.N, c.ID, c.Page, c.Start, c.End, c.Tokens, have.row); err != nil {
				return count, err
			}
		}
		if c.Vector != nil {
			if err := t.setVector(have.row, c.Vector); err != nil {
				return count, err
			}
			have.space = t.space.id
		}
		if have.space != 0 && have.space == t.space.id {
			count.Vectors++
		}
	}
	for i := range old {
		if !old[i].taken {
			if err := t.dropChunk(old[i].row); err != nil {
				return count, err
			}
		}
	}
	return count, nil
}

// storedChunk is a chunk as the database has it.
type storedChunk struct {
	row   int64
	chunk index.Chunk
	space int64 // of its vector; 0: none
	taken bool
}

func (s *storedChunk) differs(c *index.Chunk) bool {
	return s.chunk.N != c.N || s.chunk.ID != c.ID || s.chunk.Page != c.Page ||
		s.chunk.Start != c.Start || s.chunk.End != c.End || s.chunk.Tokens != c.Tokens
}

// take finds the stored chunk of the same text, by preference that of the same number.
func take(old []storedChunk, c *index.Chunk) *storedChunk {
	var found *storedChunk
	for i := range old {
		s := &old[i]
		if s.taken || s.chunk.Text != c.Text {
			continue
		}
		if found == nil || s.chunk.N == c.N {
			found = s
		}
	}
	if found != nil {
		found.taken = true
	}
	return found
}

func (t *transaction) stored(version int64, unit int) ([]storedChunk, error) {
	rows, err := t.tx.QueryContext(background, `SELECT row, n, id, page, start, "end", tokens, text, coalesce(space, 0)
		FROM chunks LEFT JOIN vectors USING (row) WHERE version = ? AND unit = ?`, version, unit)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	var all []storedChunk
	for rows.Next() {
		var s storedChunk
		c := &s.chunk
		if err := rows.Scan(&s.row, &c.N, &c.ID, &c.Page, &c.Start, &c.End, &c.Tokens, &c.Text, &s.space); err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	return all, rows.Err()
}

func (t *transaction) count(version int64, unit int) (index.UnitCount, error) {
	c := index.UnitCount{Unit: unit}
	_, err := t.one("SELECT count(*), count(space) FROM chunks LEFT JOIN vectors ON vectors.row = chunks.row AND space = ? WHERE version = ? AND unit = ?",
		[]any{t.space.id, version, unit}, &c.Chunks, &c.Vectors)
	return c, err
}

// insert stores a chunk as a new row.
func (t *transaction) insert(version int64, m *message, c *index.Chunk) (row int64, err error) {
	language, ok := t.analyzers.byCode(m.Language)
	if m.Language == "" || !ok {
		if language = t.analyzers.guess(c.Text); language == unknown {
			language = m.around(t.analyzers) // a short chunk speaks as its neighbours do
		}
	}
	terms := t.analyzers.terms(language, c.Text)
	result, err := t.exec(`INSERT INTO chunks (version, unit, n, id, page, start, "end", tokens, language, terms, text)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		version, c.Unit, c.N, c.ID, c.Page, c.Start, c.End, c.Tokens, t.analyzers.languages[language].code, len(terms), c.Text)
	if err != nil {
		return 0, err
	}
	if row, err = result.LastInsertId(); err != nil {
		return 0, err
	}
	n, unit := len(terms), c.Unit
	t.add = append(t.add, posting{row, language, m.Collection, m.Document, terms})
	t.effect(func(mem *memory) { mem.addChunk(row, version, unit, language, n) })
	return row, nil
}

func (t *transaction) setVector(row int64, vector []float32) error {
	if _, err := t.exec("INSERT INTO vectors (row, space, vector) VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET space = excluded.space, vector = excluded.vector",
		row, t.space.id, encode(vector)); err != nil {
		return err
	}
	t.effects = append(t.effects, func(m *memory) error {
		slot, ok := m.slots[row]
		if !ok {
			return nil
		}
		return m.vectors.set(slot, vector)
	})
	return nil
}
