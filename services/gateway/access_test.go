package gateway_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/leafmill/leafmill/services/gateway"
)

func TestValidateBind(t *testing.T) {
	key := []string{"secret"}
	for _, tt := range []struct {
		addr     string
		keys     []string
		insecure bool
		ok       bool
	}{
		{"127.0.0.1:8080", nil, false, true},
		{"127.8.0.1:0", nil, false, true},
		{"[::1]:8080", nil, false, true},
		{"localhost:8080", nil, false, true},
		{"[::ffff:127.0.0.1]:8080", nil, false, true},
		{":8080", nil, false, false},
		{"0.0.0.0:8080", nil, false, false},
		{"[::]:8080", nil, false, false},
		{"192.168.1.2:8080", nil, false, false},
		{"example.com:8080", nil, false, false},
		{"localhost.example.com:8080", nil, false, false},
		{"0.0.0.0:8080", []string{""}, false, false},
		{"0.0.0.0:8080", key, false, true},
		{"0.0.0.0:8080", nil, true, true},
		{"8080", key, true, false},
	} {
		if err := gateway.ValidateBind(tt.addr, tt.keys, tt.insecure); (err == nil) != tt.ok {
			t.Errorf("%s, keys %v, insecure %v: %v", tt.addr, tt.keys, tt.insecure, err)
		}
	}
}

func TestForeignPagesAreRefused(t *testing.T) {
	e := newEnv(t, gateway.Config{Hosts: []string{"leafmill.internal"}})
	insecure := newEnv(t, gateway.Config{Insecure: true})
	for _, tt := range []struct {
		host, origin string
		local, wide  bool // allowed on loopback, and on the network with Insecure
	}{
		{"localhost:8080", "", true, true},
		{"LOCALHOST", "", true, true},
		{"127.0.0.1:1", "", true, true},
		{"[::1]:8080", "", true, true},
		{"leafmill.internal", "", true, false},
		{"localhost:8080", "http://localhost:8080", true, true},
		{"localhost:8080", "http://127.0.0.1:8080", true, true},
		{"evil.example:8080", "", false, false},
		{"localhost.evil.example", "", false, false},
		{"127.0.0.1.evil.example", "", false, false},
		{"192.168.1.2:8080", "", false, true},
		{"[fd00::1]:8080", "", false, true},
		{"gateway:8080", "", false, true},
		{"localhost:8080", "http://evil.example", false, false},
		{"localhost:8080", "https://localhost.evil.example:8080", false, false},
		{"localhost:8080", "null", false, false},
		{"localhost:8080", "file://localhost", false, false},
		{"192.168.1.2:8080", "http://192.168.1.2:8080", false, true},
	} {
		for _, c := range []struct {
			e    *env
			want bool
		}{{e, tt.local}, {insecure, tt.wide}} {
			r := c.e.request("POST", "/documents", "application/json", strings.NewReader(`{"text":"a"}`))
			r.Host = tt.host
			if tt.origin != "" {
				r.Header.Set("Origin", tt.origin)
			}
			a := c.e.do(r)
			if c.want != (a.status == http.StatusAccepted) {
				t.Errorf("Host %s, Origin %q, insecure %v: %d %s", tt.host, tt.origin, c.e == insecure, a.status, a.body)
			}
			if !c.want {
				if code := a.problem(t).Code; code != "gateway.forbidden_host" && code != "gateway.forbidden_origin" {
					t.Error(code)
				}
			}
		}
	}
	r := e.request("GET", "/openapi.json", "", nil)
	r.Host = "evil.example"
	if a := e.do(r); a.status != http.StatusForbidden {
		t.Errorf("the description for a foreign host: %d", a.status)
	}
}

func TestKeys(t *testing.T) {
	e := newEnv(t, gateway.Config{Keys: []string{"first", "", "second"}})
	e.serveJobs()
	try := func(path string, set func(*http.Request)) answer {
		t.Helper()
		r := e.request("GET", path, "", nil)
		if set != nil {
			set(r)
		}
		return e.do(r)
	}
	header := func(k, v string) func(*http.Request) { return func(r *http.Request) { r.Header.Set(k, v) } }
	for _, set := range []func(*http.Request){
		header("Authorization", "Bearer first"), header("authorization", "bearer second"), header("X-API-Key", "second"),
		func(r *http.Request) {
			r.Header.Set("X-API-Key", "first")
			r.Host = "leafmill.example"
			r.Header.Set("Origin", "http://app.example")
		},
	} {
		if a := try("/jobs", set); a.status != http.StatusOK {
			t.Errorf("with a key: %d %s", a.status, a.body)
		}
	}
	for _, set := range []func(*http.Request){
		nil, header("Authorization", "Bearer third"), header("Authorization", "Bearer "), header("Authorization", "first"),
		header("Authorization", "Basic first"), header("X-API-Key", "firs"), header("X-API-Key", ""),
	} {
		for _, path := range []string{"/jobs", "/jobs/x", "/search?q=x", "/events", "/jobs/x/artifacts/text", "/unknown"} {
			a := try(path, set)
			if a.status != http.StatusUnauthorized || a.problem(t).Code != "gateway.unauthorized" || a.header.Get("WWW-Authenticate") == "" {
				t.Errorf("%s without a key: %d %s", path, a.status, a.body)
			}
		}
	}
	if a := e.post("text/plain", "x"); a.status != http.StatusUnauthorized {
		t.Errorf("an upload without a key: %d", a.status)
	}
	for _, path := range []string{"/healthz", "/openapi.json", "/", "/metrics"} {
		if a := try(path, nil); a.status != http.StatusOK {
			t.Errorf("%s: %d", path, a.status)
		}
	}
	if a := try("/readyz", nil); a.status != http.StatusServiceUnavailable {
		t.Errorf("/readyz: %d", a.status)
	}
	for _, path := range []string{"/readyz", "/metrics"} {
		if a := try(path, func(r *http.Request) { r.Host = "leafmill.example" }); a.status != http.StatusUnauthorized {
			t.Errorf("%s by its public name: %d", path, a.status)
		}
		if a := try(path, header("X-Forwarded-For", "1.2.3.4")); a.status != http.StatusUnauthorized {
			t.Errorf("%s through a proxy: %d", path, a.status)
		}
	}
}

func TestSecurityHeaders(t *testing.T) {
	e := newEnv(t, gateway.Config{})
	for _, path := range []string{"/healthz", "/", "/nothing", "/jobs/x"} {
		h := e.get(path).header
		for k, v := range map[string]string{"X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer"} {
			if h.Get(k) != v {
				t.Errorf("%s: %s is %q", path, k, h.Get(k))
			}
		}
		if !strings.Contains(h.Get("Content-Security-Policy"), "default-src 'none'") {
			t.Errorf("%s: %q", path, h.Get("Content-Security-Policy"))
		}
	}
}

func TestAPanicTellsNothing(t *testing.T) {
	e := newEnv(t, gateway.Config{})
	h := gateway.Recovered(e.gw, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("/var/secret") }))
	w := newRecorder()
	h.ServeHTTP(w, serverSide(e.request("GET", "/jobs", "", nil)))
	if a := w.answer(); a.status != 500 || a.problem(t).Code != "gateway.internal" || strings.Contains(a.body, "secret") {
		t.Errorf("%d %s", a.status, a.body)
	}
}
