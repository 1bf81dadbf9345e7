// Package deploy holds files for running Leafmill. Its tests hold them against the program:
// roles, settings, commands, packages and the server's configuration are those that exist.
package deploy

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"go.yaml.in/yaml/v3"

	"github.com/leafmill/leafmill/events"
	"github.com/leafmill/leafmill/internal/bus"
	"github.com/leafmill/leafmill/internal/config"
)

// compose is what the tests look at of compose.yaml.
type compose struct {
	Services map[string]struct {
		Command     []string
		Environment map[string]string
		Ports       []string
		Volumes     []string
		Grace       string `yaml:"stop_grace_period"`
		Image       string
		Healthcheck struct{ Test []string }
		Deploy      struct{ Replicas int }
	}
	Volumes map[string]any
}

func readCompose(t *testing.T) compose {
	t.Helper()
	var c compose
	if err := yaml.Unmarshal([]byte(read(t, "compose.yaml")), &c); err != nil {
		t.Fatal(err)
	}
	return c
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// secrets stand for deploy/.env. The password is the worst that `openssl rand -hex` makes:
// the server's parser takes it for a number unless it is quoted.
var secrets = map[string]string{"NATS_PASSWORD": "12345678901234567890", "LEAFMILL_API_KEYS": "0123456789abcdef"}

// interpolate does what compose does with ${NAME}, ${NAME:-default} and ${NAME:?message}.
func interpolate(t *testing.T, s string) string {
	t.Helper()
	return os.Expand(s, func(expr string) string {
		name, def, optional := strings.Cut(expr, ":-")
		name, _, _ = strings.Cut(name, ":?")
		v, ok := secrets[name]
		switch {
		case ok:
			return v
		case !optional:
			t.Errorf("%s has no default and deploy/README.md does not set it", name)
		}
		return def
	})
}

// durables of each role.
func durables() map[string][]string {
	roles := map[string][]string{"gateway": nil, "status": nil}
	for _, s := range events.Pipeline {
		roles[s.Service] = append(roles[s.Service], s.Durable)
	}
	return roles
}

func TestComposeRunsEveryRole(t *testing.T) {
	c := readCompose(t)
	want := append(slices.Collect(maps.Keys(durables())), "nats")
	slices.Sort(want)
	if got := slices.Sorted(maps.Keys(c.Services)); !slices.Equal(got, want) {
		t.Fatalf("services %v, want %v", got, want)
	}
	for name, s := range c.Services {
		if name != "nats" && !slices.Equal(s.Command, []string{"run", name}) {
			t.Errorf("%s: command %v", name, s.Command)
		}
		if len(s.Healthcheck.Test) == 0 {
			t.Errorf("%s: no health check", name)
		}
		for _, p := range s.Ports {
			if !strings.HasPrefix(p, "127.0.0.1:") {
				t.Errorf("%s: port %s is open to the network", name, p)
			}
		}
		for _, v := range s.Volumes {
			if source, _, ok := strings.Cut(v, ":"); ok && !strings.HasPrefix(source, ".") {
				if _, ok := c.Volumes[source]; !ok {
					t.Errorf("%s: there is no volume %s", name, source)
				}
			}
		}
	}
	for _, single := range []string{"gateway", "index"} {
		if n := c.Services[single].Deploy.Replicas; n > 1 {
			t.Errorf("%d replicas of %s, which must be alone", n, single)
		}
	}
	for _, double := range []string{"ocr", "embed"} {
		if n := c.Services[double].Deploy.Replicas; n != 2 {
			t.Errorf("%d replicas of %s, want 2", n, double)
		}
	}
	tools := regexp.MustCompile(`nats-server/v2 v(\S+)`).FindStringSubmatch(read(t, "../go.mod"))
	if want := "nats:" + tools[1] + "-alpine"; c.Services["nats"].Image != want {
		t.Errorf("image %s, want %s, the server that the tests run against", c.Services["nats"].Image, want)
	}
}

// The program itself reads each service's environment.
func TestComposeEnvironment(t *testing.T) {
	for name, s := range readCompose(t).Services {
		if name == "nats" {
			continue
		}
		var environ []string
		for k, v := range s.Environment {
			environ = append(environ, k+"="+interpolate(t, v))
		}
		l, err := config.Load(config.Sources{Environ: environ})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for _, w := range l.Warnings {
			t.Errorf("%s: %s", name, w)
		}
		if !l.Given("http") || !strings.HasSuffix(l.HTTP, ":8080") {
			t.Errorf("%s: listens on %q, its health check asks port 8080", name, l.HTTP)
		}
		if name == "gateway" {
			if err := l.CheckListen(l.HTTP, ""); err != nil {
				t.Error(err)
			}
		}
		grace, err := time.ParseDuration(s.Grace)
		if err != nil || grace < l.Grace+15*time.Second {
			t.Errorf("%s: killed after %s, a stop may take 15 s beyond %s", name, s.Grace, l.Grace)
		}
	}
}

// The settings in the image and in the unit exist.
func TestSettingsExist(t *testing.T) {
	known := []string{"LEAFMILL_CONFIG"}
	l, err := config.Load(config.Sources{})
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range l.Values {
		known = append(known, v.Name)
	}
	for _, file := range []string{"compose.yaml", "Dockerfile", "README.md", "nats.conf", "systemd/leafmill.service"} {
		for _, name := range regexp.MustCompile(`LEAFMILL_[A-Z_]+`).FindAllString(read(t, file), -1) {
			if !slices.Contains(known, name) {
				t.Errorf("%s: there is no setting %s", file, name)
			}
		}
	}
}

// The real server starts with nats.conf, as compose.yaml sets its environment, lets the
// services in as compose.yaml tells them to, and nobody else.
func TestNATSConfiguration(t *testing.T) {
	c := readCompose(t)
	for k, v := range c.Services["nats"].Environment {
		t.Setenv(k, interpolate(t, v))
	}
	o, err := server.ProcessConfigFile("nats.conf")
	if err != nil {
		t.Fatal(err)
	}
	if !o.JetStream || !o.SyncAlways || o.StoreDir != "/data" || o.MaxPayload != 1<<20 {
		t.Errorf("jetstream %v, sync always %v, store %q, max payload %d", o.JetStream, o.SyncAlways, o.StoreDir, o.MaxPayload)
	}
	if !slices.Contains(c.Services["nats"].Volumes, "nats:"+o.StoreDir) {
		t.Error("the store is not on the volume")
	}
	o.StoreDir, o.Host, o.Port, o.HTTPHost, o.HTTPPort = t.TempDir(), "127.0.0.1", server.RANDOM_PORT, "", 0
	o.NoLog, o.NoSigs = true, true
	ns, err := server.NewServer(o)
	if err != nil {
		t.Fatal(err)
	}
	ns.Start()
	t.Cleanup(func() { ns.Shutdown(); ns.WaitForShutdown() })
	if !ns.ReadyForConnections(10 * time.Second) {
		t.Fatal("the server does not start")
	}

	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	url := interpolate(t, c.Services["ocr"].Environment["LEAFMILL_NATS"])
	if !strings.HasSuffix(url, "@nats:4222") {
		t.Fatalf("LEAFMILL_NATS is %s", url)
	}
	here := strings.TrimPrefix(ns.ClientURL(), "nats://")
	conn, err := bus.Connect(ctx, bus.Options{URL: strings.TrimSuffix(url, "nats:4222") + here, Service: "ocr", Instance: "1"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.Ensure(ctx, bus.Layout{}); err != nil {
		t.Error(err)
	}
	if stranger, err := bus.Connect(ctx, bus.Options{URL: "nats://" + here, Service: "stranger", Instance: "1"}); err == nil {
		stranger.Close()
		t.Error("a client without a password is let in")
	}
}

func TestSystemdUnit(t *testing.T) {
	unit := map[string]string{}
	for line := range strings.Lines(read(t, "systemd/leafmill.service")) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), "="); ok && !strings.HasPrefix(k, "#") {
			unit[k] = v
		}
	}
	for k, want := range map[string]string{"NoNewPrivileges": "yes", "ProtectSystem": "strict", "DynamicUser": "yes",
		"CapabilityBoundingSet": "", "StateDirectory": "leafmill", "RestartPreventExitStatus": "2"} {
		if got, ok := unit[k]; !ok || got != want {
			t.Errorf("%s=%s, want %s", k, got, want)
		}
	}
	if !strings.Contains(unit["ExecStart"], "--data /var/lib/"+unit["StateDirectory"]+" ") {
		t.Errorf("ExecStart=%s keeps its data elsewhere than in StateDirectory", unit["ExecStart"])
	}
}

// The program knows every command line and flag of these files.
func TestCommandsExist(t *testing.T) {
	program := filepath.Join(t.TempDir(), "leafmill")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, "../cmd/leafmill").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	unit := regexp.MustCompile(`(?m)^ExecStart=/usr/local/bin/leafmill (.+)$`).FindStringSubmatch(read(t, "systemd/leafmill.service"))
	if unit == nil {
		t.Fatal("the unit does not start leafmill")
	}
	commands := [][]string{strings.Fields(unit[1])}
	for _, line := range regexp.MustCompile(`(?m)^leafmill (.+)$`).FindAllStringSubmatch(read(t, "README.md"), -1) {
		commands = append(commands, strings.Fields(line[1]))
	}
	for name, s := range readCompose(t).Services {
		if name != "nats" {
			commands = append(commands, s.Command)
		}
	}
	for _, args := range commands {
		out, err := exec.CommandContext(t.Context(), program, append(args, "--help")...).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "leafmill "+args[0]) {
			t.Errorf("leafmill %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

// The image has the Debian packages that scripts/setup installs, but for the compiler.
func TestImagePackages(t *testing.T) {
	setup := read(t, "../scripts/setup")
	_, list, ok := strings.Cut(setup, "missing_packages() {")
	list, _, ok2 := strings.Cut(list, "\n}")
	if !ok || !ok2 {
		t.Fatal("scripts/setup has no missing_packages")
	}
	want := []string{"ca-certificates"} // for an embedding endpoint by https
	languages := regexp.MustCompile(`for language in ([a-z ]+); do`).FindStringSubmatch(list)
	if languages == nil {
		t.Fatal("scripts/setup names no languages")
	}
	for _, m := range regexp.MustCompile(`echo "?([a-z-]+)(\$language)?"?`).FindAllStringSubmatch(list, -1) {
		if m[2] == "" {
			want = append(want, m[1])
			continue
		}
		for l := range strings.FieldsSeq(languages[1]) {
			want = append(want, m[1]+l)
		}
	}
	stages := strings.Split(read(t, "Dockerfile"), "\nFROM ")
	last := stages[len(stages)-1]
	_, install, ok := strings.Cut(last, "--no-install-recommends")
	install, _, ok2 = strings.Cut(install, "&&")
	if !ok || !ok2 {
		t.Fatal("the last stage installs nothing")
	}
	got := strings.Fields(strings.ReplaceAll(install, "\\", " "))
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("the image has %v, scripts/setup wants %v", got, want)
	}
	if !regexp.MustCompile(`(?m)^USER leafmill$`).MatchString(last) {
		t.Error("the image runs as root")
	}
	mod := regexp.MustCompile(`(?m)^go (\d+\.\d+)`).FindStringSubmatch(read(t, "../go.mod"))
	if !strings.Contains(stages[1], "golang:"+mod[1]+"-bookworm") {
		t.Errorf("the image is not built with Go %s", mod[1])
	}
}

// The table in README.md is the pipeline.
func TestReadmeNamesDurables(t *testing.T) {
	readme := read(t, "README.md")
	for role, names := range durables() {
		row := regexp.MustCompile("(?m)^\\| `" + role + "` +\\|([^|]*)\\|").FindStringSubmatch(readme)
		if row == nil {
			t.Errorf("no row for %s", role)
			continue
		}
		var want []string
		for _, n := range names {
			want = append(want, fmt.Sprintf("`%s`", n))
		}
		if got := strings.TrimSpace(row[1]); got != strings.Join(want, ", ") {
			t.Errorf("%s: durables %s, want %s", role, got, strings.Join(want, ", "))
		}
	}
}

func TestHealthCheck(t *testing.T) {
	var code atomic.Int64
	code.Store(http.StatusOK)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/readyz" || !strings.HasPrefix(r.Host, "127.0.0.1:") { // else the gateway wants a key
			t.Errorf("asks %s of %s", r.URL.Path, r.Host)
		}
		w.WriteHeader(int(code.Load()))
	}))
	addr := strings.TrimPrefix(srv.URL, "http://")
	ask := func() error { return exec.CommandContext(t.Context(), "./leafmill-health", addr, "/readyz").Run() }
	if err := ask(); err != nil {
		t.Error("200:", err)
	}
	code.Store(http.StatusServiceUnavailable)
	if ask() == nil {
		t.Error("503 is healthy")
	}
	srv.Close()
	if ask() == nil {
		t.Error("nobody there is healthy")
	}
}
