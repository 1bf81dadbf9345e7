package bus

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/leafmill/leafmill/events"
)

// Metrics of the stages. A nil *Metrics records nothing.
type Metrics struct {
	events   *prometheus.CounterVec
	duration *prometheus.HistogramVec
	again    *prometheus.CounterVec
}

// NewMetrics registers them.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		events: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "leafmill_events_processed_total",
			Help: "Deliveries by stage, event and outcome: ok, nak, poisoned, interrupted."}, []string{"stage", "event", "outcome"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "leafmill_event_processing_duration_seconds",
			Help: "Time from delivery to outcome.", Buckets: []float64{.001, .005, .02, .1, .5, 1, 2, 5, 15, 60, 300}}, []string{"stage", "event"}),
		again: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "leafmill_events_redelivered_total",
			Help: "Deliveries that were not the message's first."}, []string{"stage"}),
	}
	reg.MustRegister(m.events, m.duration, m.again)
	return m
}

// register makes a stage's series exist before its first event.
func (m *Metrics) register(s events.Stage) {
	if m == nil {
		return
	}
	m.again.WithLabelValues(s.Durable)
	for _, n := range s.Consumes {
		m.duration.WithLabelValues(s.Durable, string(n))
		for _, o := range []string{"ok", "nak", "poisoned", "interrupted"} {
			m.events.WithLabelValues(s.Durable, string(n), o)
		}
	}
}

func (m *Metrics) processed(stage string, event events.Name, outcome string, took time.Duration) {
	if m == nil {
		return
	}
	if _, known := events.EntryOf(event); !known {
		event = "unknown" // never a label of a sender's choice
	}
	m.events.WithLabelValues(stage, string(event), outcome).Inc()
	m.duration.WithLabelValues(stage, string(event)).Observe(took.Seconds())
}

func (m *Metrics) redelivered(stage string) {
	if m != nil {
		m.again.WithLabelValues(stage).Inc()
	}
}
