package events

// Stage is one durable consumer of the stream DOCS: who runs it, what it takes and what
// it says next.
type Stage struct {
	Durable   string // name of the JetStream consumer
	Service   string // the service that runs it, services/<service>
	Consumes  []Name
	Publishes []Name
	// Gated marks background work: pulled only while the queues of fresh work are short.
	Gated bool
}

// Pipeline is the whole of Leafmill on one screen. Roles, consumers, deployment files and
// the README's diagram come from this table. Besides, `status` reads every event with an
// ordered consumer and publishes completed and healed; every stage may say retried and
// poisoned; gateway, CLI or anyone say submitted.
var Pipeline = []Stage{
	{Durable: "ocr", Service: "ocr",
		Consumes:  []Name{NameSubmitted},
		Publishes: []Name{NameExtracted, NameScanFound, NameContinued}},
	{Durable: "ocr-walk", Service: "ocr", Gated: true,
		Consumes:  []Name{NameContinued, NameReplayed},
		Publishes: []Name{NameExtracted, NameScanFound, NameContinued}},
	{Durable: "ocr-bulk", Service: "ocr", Gated: true,
		Consumes:  []Name{NameSubmittedBulk, NameContinuedBulk, NameReplayedBulk},
		Publishes: []Name{NameExtracted, NameScanFound, NameContinuedBulk}},
	{Durable: "ocr-pages", Service: "ocr",
		Consumes:  []Name{NameScanFound},
		Publishes: []Name{NameExtracted}},
	{Durable: "chunk", Service: "chunk",
		Consumes:  []Name{NameExtracted},
		Publishes: []Name{NameChunked}},
	{Durable: "embed", Service: "embed",
		Consumes:  []Name{NameChunked},
		Publishes: []Name{NameEmbedded, NameDegraded}},
	{Durable: "embed-heal", Service: "embed", Gated: true,
		Consumes:  []Name{NameDegraded},
		Publishes: []Name{NameEmbedded, NameHealExhausted}},
	{Durable: "index", Service: "index",
		Consumes:  []Name{NameEmbedded, NameDegraded, NameCompleted, NameHealed},
		Publishes: []Name{NameIndexed}},
}

// StageOf finds a stage by its durable.
func StageOf(durable string) (Stage, bool) {
	for _, s := range Pipeline {
		if s.Durable == durable {
			return s, true
		}
	}
	return Stage{}, false
}

// Filters are the subjects the stage's consumer is bound to.
func (s Stage) Filters() []string {
	f := make([]string, len(s.Consumes))
	for i, n := range s.Consumes {
		f[i] = n.All()
	}
	return f
}
