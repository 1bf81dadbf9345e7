package telemetry_test

import (
	"bytes"
	"encoding/json"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/leafmill/leafmill/internal/telemetry"
)

func TestLoggerLevelAndFormat(t *testing.T) {
	for _, format := range []string{"text", "json"} {
		var out bytes.Buffer
		log, err := telemetry.Logger(&out, "warn", format)
		if err != nil {
			t.Fatal(err)
		}
		log.Info("too quiet")
		log.Warn("loud", "job", "j1")
		if got := strings.Count(out.String(), "\n"); got != 1 {
			t.Errorf("%s: %d lines, want 1:\n%s", format, got, &out)
		}
		if !strings.Contains(out.String(), "loud") || !strings.Contains(out.String(), "j1") {
			t.Errorf("%s: the message or its attribute is missing: %s", format, &out)
		}
		var line map[string]any
		if isJSON := json.Unmarshal(out.Bytes(), &line) == nil; isJSON != (format == "json") {
			t.Errorf("%s: JSON is %v: %s", format, isJSON, &out)
		}
	}
	if _, err := telemetry.Logger(nil, "loud", "text"); err == nil {
		t.Error("an unknown level was accepted")
	}
	if _, err := telemetry.Logger(nil, "info", "xml"); err == nil {
		t.Error("an unknown format was accepted")
	}
}

func TestMetricsSayTheVersion(t *testing.T) {
	w := httptest.NewRecorder()
	telemetry.Metrics(telemetry.Registry("v9")).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	for _, want := range []string{`leafmill_build_info{version="v9"} 1`, "go_goroutines ", "process_resident_memory_bytes "} {
		if !strings.Contains(w.Body.String(), want) {
			t.Errorf("no %q in the metrics", want)
		}
	}
}
