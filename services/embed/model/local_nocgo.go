//go:build !cgo

package model

import "github.com/leafmill/leafmill/events"

// OpenLocal fails with missing_model: this program was built without cgo, which the ONNX
// Runtime needs.
func OpenLocal(string, int) (Model, error) {
	return nil, events.Fail(events.MissingModel,
		"The local embedding model is not in this build (it was made without cgo); "+
			"build with CGO_ENABLED=1, or set LEAFMILL_EMBED_PROVIDER=openai and an endpoint.")
}
