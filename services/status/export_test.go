package status

import (
	"context"
	"encoding/json"

	"github.com/leafmill/leafmill/internal/api"
)

// CloseForTest closes a service that never ran.
func (s *Service) CloseForTest() error { return s.store.Close() }

// JobForTest answers for a job without the bus's way.
func (s *Service) JobForTest(ctx context.Context, job string) (j api.Job, err error) {
	doc, _, err := s.lookUp(ctx, job)
	if err == nil {
		err = json.Unmarshal(doc, &j)
	}
	return j, err
}
