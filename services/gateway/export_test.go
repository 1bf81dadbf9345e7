package gateway

import "net/http"

// Patterns are the routes of the mux.
func Patterns(g *Gateway) []string { return g.mux.patterns }

// Uploads is how many are in hand.
func Uploads(g *Gateway) int { return len(g.uploads) }

// Forget makes the next readiness probe ask again.
func Forget(g *Gateway) {
	g.fleet.mu.Lock()
	defer g.fleet.mu.Unlock()
	g.fleet.asked = g.fleet.asked.AddDate(-1, 0, 0)
}

// Model judges replicas by their metadata.
func Model(metadata ...map[string]string) (bool, string) {
	var rs []replica
	for _, m := range metadata {
		rs = append(rs, replica{"embed", m})
	}
	return model(rs)
}

// TakeStreams uses up the slots of event streams until the function it returns is called.
func TakeStreams(g *Gateway) (release func()) {
	for g.streams.take() {
	}
	return func() {
		for range cap(g.streams) {
			g.streams.give()
		}
	}
}

// Recovered is the outermost handler around another.
func Recovered(g *Gateway, h http.Handler) http.Handler { return g.recovered(h) }
