package embedded

import "context"

// Agreement counts what each part has: rows of SQLite, of Bleve, of memory, and vectors of
// SQLite (active space) and of memory.
func (b *Backend) Agreement(ctx context.Context) (sqlite, bleve, memory, sqliteVectors, memoryVectors int, err error) {
	if err = b.reading.QueryRowContext(ctx, "SELECT count(*) FROM chunks").Scan(&sqlite); err != nil {
		return
	}
	if err = b.reading.QueryRowContext(ctx, "SELECT count(*) FROM vectors WHERE space = ?", b.space.Load().id).Scan(&sqliteVectors); err != nil {
		return
	}
	rows, err := b.keywords.rows(ctx)
	b.memory.mu.RLock()
	defer b.memory.mu.RUnlock()
	return sqlite, len(rows), len(b.memory.slots), sqliteVectors, b.memory.vectors.count, err
}
