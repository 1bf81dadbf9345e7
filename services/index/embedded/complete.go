package embedded

import (
	"github.com/leafmill/leafmill/services/index"
)

// complete ends a run.
func (t *transaction) complete(c index.Completion) error {
	if c.Cancelled {
		if err := t.cancel(c.Job, c.Run); err != nil {
			return err
		}
	}
	d, err := t.document(c.Collection, c.Document)
	if err != nil || c.Version <= d.fence || c.Version < d.completed {
		return err
	}
	if !c.Succeeded {
		return t.unsuccessful(d, c)
	}
	if d, err = t.created(d, c.Collection, c.Document); err != nil {
		return err
	}
	v, err := t.version(d.id, c.Version)
	if err != nil {
		return err
	}
	if v, err = t.createdVersion(v, d.id, c.Version, c.Job, c.Name); err != nil {
		return err
	}
	if c.Run >= v.run {
		v.run = c.Run
		if c.TotalUnits > 0 {
			v.total = c.TotalUnits
		}
		if _, err := t.exec("UPDATE versions SET run = ?, total = ? WHERE id = ?", int64(v.run), v.total, v.id); err != nil {
			return err
		}
	}
	if v.total > 0 {
		if err := t.dropUnits(v.id, "run < ? AND number > ?", int64(v.run), v.total); err != nil {
			return err
		}
	}
	if err := t.failedUnits(v, c); err != nil {
		return err
	}
	if c.Version > d.completed {
		if err := t.setCompleted(d.id, c.Version); err != nil {
			return err
		}
	}
	return t.dropVersions(d.id, c.Version)
}

// unsuccessful ends a failed or cancelled run. A version that completed once loses nothing
// by it. Else the units of a cancelled run go, and what a failed run found stays.
func (t *transaction) unsuccessful(d documentRow, c index.Completion) error {
	v, err := t.version(d.id, c.Version)
	if err != nil || v.id == 0 || v.run != 0 {
		return err
	}
	if !c.Cancelled {
		return t.failedUnits(v, c)
	}
	if err := t.dropUnits(v.id, "run = ?", int64(c.Run)); err != nil {
		return err
	}
	var left int
	if _, err := t.one("SELECT count(*) FROM units WHERE version = ?", []any{v.id}, &left); err != nil || left > 0 {
		return err
	}
	return t.dropVersion(v.id)
}

// failedUnits records the lengths of units that the run has no chunks of, so that what
// follows them has a position. What the same or a later run wrote of a unit stands.
func (t *transaction) failedUnits(v versionRow, c index.Completion) error {
	for _, u := range c.Failed {
		if v.total > 0 && c.Run < v.run && u.Number > v.total {
			continue
		}
		var run uint64
		var failed bool
		found, err := t.one("SELECT run, failed FROM units WHERE version = ? AND number = ?", []any{v.id, u.Number}, &run, &failed)
		if err != nil {
			return err
		}
		if found && (c.Run < run || c.Run == run && !failed) {
			continue
		}
		if err := t.setUnit(v.id, u, c.Run, true, []byte{}); err != nil {
			return err
		}
	}
	return nil
}

func (t *transaction) setCompleted(document int64, version uint64) error {
	if _, err := t.exec("UPDATE documents SET completed = ? WHERE id = ?", int64(version), document); err != nil {
		return err
	}
	t.effect(func(m *memory) { m.setCompleted(document, version) })
	return nil
}

// delete removes the versions of a document up to the fence and keeps the fence.
func (t *transaction) delete(collection, name string, fence uint64) error {
	d, err := t.document(collection, name)
	if err != nil {
		return err
	}
	if d, err = t.created(d, collection, name); err != nil {
		return err
	}
	if fence > d.fence {
		if _, err := t.exec("UPDATE documents SET fence = ? WHERE id = ?", int64(fence), d.id); err != nil {
			return err
		}
	}
	if d.completed != 0 && d.completed <= fence {
		if err := t.setCompleted(d.id, 0); err != nil {
			return err
		}
	}
	return t.dropVersions(d.id, fence+1)
}

// cancel keeps a fence for a job's runs.
func (t *transaction) cancel(job string, fence uint64) error {
	_, err := t.exec("INSERT INTO cancels (job, fence) VALUES (?, ?) ON CONFLICT DO UPDATE SET fence = max(fence, excluded.fence)",
		job, int64(fence))
	return err
}
