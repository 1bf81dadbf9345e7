package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/leafmill/leafmill/internal/bus"
	"github.com/leafmill/leafmill/services/status/view"
)

// Folded says what a batch did.
type Folded struct {
	// Ended are the jobs of the batch whose status is terminal.
	Ended []string
	// Due says whether a job of the batch has something to be published.
	Due bool
}

// entry is a job in memory: its state and what its row says.
type entry struct {
	job                  string
	id                   int64 // of the row; 0 while there is none
	state                *view.State
	created              uint64
	status               int
	collection, document string
	due, dirty           bool
	cost                 int // what the cache counts it as
}

// background: modernc starts a goroutine for every statement with a context that can end,
// and a batch is short.
var background = context.Background()

// Fold folds a batch of events in, in one transaction with the checkpoint. The events must
// be in the stream's order and follow the checkpoint. After an error nothing is changed.
func (s *Store) Fold(batch []bus.Read) (Folded, error) {
	if len(batch) == 0 {
		return Folded{}, nil
	}
	out, err := s.fold(batch)
	if err == nil {
		return out, nil
	}
	_, _ = s.conn.ExecContext(background, `ROLLBACK`) // fails when there is nothing to roll back
	s.hot.clear()
	return Folded{}, errors.Join(explain(err), explain(s.reload(background)))
}

func (s *Store) fold(batch []bus.Read) (out Folded, err error) {
	if _, err := s.conn.ExecContext(background, `BEGIN IMMEDIATE`); err != nil {
		return out, err
	}
	var dirty []*entry
	touched := make(map[string]*entry, len(batch))
	for i := range batch {
		m := &batch[i]
		if m.Job == "" {
			continue // a subject that names no job
		}
		e := touched[m.Job]
		if e == nil {
			if e, err = s.entry(m.Job); err != nil {
				return out, err
			}
			touched[m.Job] = e
		}
		e.state.Apply(m.Message, m.Err)
		if !e.dirty && e.state.Known() {
			e.dirty = true
			dirty = append(dirty, e)
		}
	}
	var delta [6]int64
	for _, e := range dirty {
		if err := s.save(e, &delta, &out); err != nil {
			return out, err
		}
	}
	for i, d := range delta {
		if d != 0 {
			if _, err := s.stmt.counter.ExecContext(background, i, s.counts[i].Load()+d); err != nil {
				return out, err
			}
		}
	}
	last := batch[len(batch)-1].Sequence
	if _, err := s.stmt.checkpoint.ExecContext(background, int64(last)); err != nil {
		return out, err
	}
	if _, err := s.conn.ExecContext(background, `COMMIT`); err != nil {
		return out, err
	}
	for i, d := range delta {
		s.counts[i].Add(d)
	}
	s.checkpoint.Store(last)
	for _, e := range dirty {
		e.dirty = false
		s.hot.put(e)
	}
	return out, nil
}

// entry finds a job in memory, in the table, or begins it.
func (s *Store) entry(job string) (*entry, error) {
	if e := s.hot.get(job); e != nil {
		return e, nil
	}
	e := &entry{job: job, state: new(view.State), status: -1}
	var blob []byte
	var created int64
	err := s.stmt.load.QueryRowContext(background, job).Scan(&e.id, &created, &e.status, &e.collection, &e.document, &e.due, &blob)
	if errors.Is(err, sql.ErrNoRows) {
		return e, nil
	}
	if err != nil {
		return nil, err
	}
	e.created = uint64(created)
	return e, e.state.UnmarshalBinary(blob)
}

// save writes a job's row: all of it, or only view and state when nothing that lists are
// sorted by has changed.
func (s *Store) save(e *entry, delta *[6]int64, out *Folded) error {
	v := e.state.View()
	doc, err := json.Marshal(&v)
	if err != nil {
		return fmt.Errorf("store: view of %s: %w", e.job, err)
	}
	if s.buf, err = e.state.AppendBinary(s.buf[:0]); err != nil {
		return err
	}
	status, created, due := statusNumber(v.Status), e.state.Order(), e.state.Due() != nil
	if status < 0 {
		return fmt.Errorf("store: job %s has the unknown status %q", e.job, v.Status)
	}
	switch {
	case e.id == 0:
		r, err := s.stmt.insert.ExecContext(background, e.job, int64(created), status, v.Collection, v.DocumentID, due, doc, s.buf)
		if err != nil {
			return err
		}
		if e.id, err = r.LastInsertId(); err != nil {
			return err
		}
	case status == e.status && created == e.created && due == e.due && v.Collection == e.collection && v.DocumentID == e.document:
		if _, err := s.stmt.update.ExecContext(background, doc, s.buf, e.id); err != nil {
			return err
		}
	default:
		if _, err := s.stmt.rekey.ExecContext(background, int64(created), status, v.Collection, v.DocumentID, due, doc, s.buf, e.id); err != nil {
			return err
		}
	}
	if e.status != status {
		if e.status >= 0 {
			delta[e.status]--
		}
		delta[status]++
	}
	e.status, e.created, e.due, e.collection, e.document = status, created, due, v.Collection, v.DocumentID
	if v.Terminal() {
		out.Ended = append(out.Ended, e.job)
	}
	out.Due = out.Due || due
	return nil
}

// hot keeps the states of the jobs at work in memory, bounded by their size.
type hot struct {
	lru  *simplelru.LRU[string, *entry]
	cost int
}

const (
	hotJobs = 4096
	hotCost = 400_000 // units, about 100 bytes each
	jobCost = 20      // what a job costs besides its units
)

func newHot() *hot {
	h := new(hot)
	h.lru, _ = simplelru.NewLRU(hotJobs, func(_ string, e *entry) { h.cost -= e.cost }) // errs only on a size of 0
	return h
}

func (h *hot) get(job string) *entry {
	e, _ := h.lru.Get(job)
	return e
}

func (h *hot) put(e *entry) {
	h.lru.Remove(e.job)
	e.cost = jobCost + e.state.Units()
	h.cost += e.cost
	h.lru.Add(e.job, e)
	for h.cost > hotCost && h.lru.Len() > 1 {
		h.lru.RemoveOldest()
	}
}

func (h *hot) clear() {
	h.lru.Purge()
	h.cost = 0
}
