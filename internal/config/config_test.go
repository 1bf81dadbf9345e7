package config_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"

	"github.com/leafmill/leafmill/internal/config"
)

var update = flag.Bool("update", false, "rewrite golden files")

func load(t *testing.T, args []string, file string, env ...string) (*config.Loaded, error) {
	t.Helper()
	set := pflag.NewFlagSet("test", pflag.ContinueOnError)
	flags := config.AddAllFlags(set, "http")
	if file != "" {
		path := filepath.Join(t.TempDir(), "leafmill.yaml")
		if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, "--config", path)
	}
	if err := set.Parse(args); err != nil {
		t.Fatal(err)
	}
	return config.Load(config.Sources{Flags: flags, Environ: env})
}

func TestPrecedence(t *testing.T) {
	const file = "embed_timeout: 3s\nembed: {retries: 3}\nhttp: 127.0.0.1:3\n"
	for _, tc := range []struct {
		name, file string
		args, env  []string
		timeout    time.Duration
		origin     string
	}{
		{"default", "", nil, nil, 10 * time.Second, config.FromDefault},
		{"file", file, nil, nil, 3 * time.Second, config.FromFile},
		{"environment over file", file, nil, []string{"LEAFMILL_EMBED_TIMEOUT=2s"}, 2 * time.Second, config.FromEnv},
		{"flag over environment", file, []string{"--embed-timeout", "1s"}, []string{"LEAFMILL_EMBED_TIMEOUT=2s"}, time.Second, config.FromFlag},
		{"an empty variable is unset", file, nil, []string{"LEAFMILL_EMBED_TIMEOUT="}, 3 * time.Second, config.FromFile},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l, err := load(t, tc.args, tc.file, tc.env...)
			if err != nil {
				t.Fatal(err)
			}
			if l.Embed.Timeout != tc.timeout {
				t.Errorf("timeout %s, want %s", l.Embed.Timeout, tc.timeout)
			}
			for _, v := range l.Values {
				if v.Name == "LEAFMILL_EMBED_TIMEOUT" && v.Origin != tc.origin {
					t.Errorf("origin %s, want %s", v.Origin, tc.origin)
				}
			}
			if tc.file != "" && (l.Embed.Retries != 3 || l.HTTP != "127.0.0.1:3") {
				t.Errorf("the rest of the file was lost: %d retries, http %s", l.Embed.Retries, l.HTTP)
			}
		})
	}
}

func TestEveryProblemIsNamedAtOnce(t *testing.T) {
	const file = "embed:\n  retries: 99\nembed_mode: x\ngrace: {a: null}\n"
	_, err := load(t, []string{"--sync", "sometimes", "--chunk-tokens=1"}, file,
		"LEAFMILL_EMBED_TIMEOUT=11m", "LEAFMILL_EMBED_PROVIDER=openai", "LEAFMILL_EMBED_BASE_URL=http://127.0.0.1:9/v2",
		"LEAFMILL_API_KEYS=tooshort", "LEAFMILL_MAX_UPLOAD_BYTES=-1", "LEAFMILL_INSECURE=perhaps", "LEAFMILL_NATS_USER=u",
		"LEAFMILL_HTTP=8080", "LEAFMILL_URL=localhost:8080")
	if err == nil {
		t.Fatal("a configuration full of faults was accepted")
	}
	for _, want := range []string{
		`embed_retries: "99" must be a whole number, 0 to 20`,
		"there is no setting embed_mode; did you mean embed_model?",
		"grace_a has no value",
		`--sync: "sometimes" must be one of always, interval`,
		`--chunk-tokens: "1" must be a whole number, 128 to 512`,
		`LEAFMILL_EMBED_TIMEOUT: "11m" must be a duration, 1ms to 10m`,
		"LEAFMILL_EMBED_BASE_URL: it must end in /v1",
		"LEAFMILL_API_KEYS: a key has at least 16 characters",
		`LEAFMILL_MAX_UPLOAD_BYTES: "-1" must be a size, 1B to 16GiB`,
		`LEAFMILL_INSECURE: "perhaps" must be true or false`,
		"LEAFMILL_NATS_USER: a user needs a password",
		`LEAFMILL_HTTP: "8080" is no address`,
		`LEAFMILL_URL: "localhost:8080" is no URL`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("not told: %s", want)
		}
	}
	if n := strings.Count(err.Error(), "\n") + 1; n != 13 {
		t.Errorf("%d problems told, want 13:\n%v", n, err)
	}
	if strings.Contains(err.Error(), "tooshort") {
		t.Error("a secret is in the error")
	}
}

func TestEveryNumberHasBounds(t *testing.T) {
	l, err := load(t, nil, "")
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range l.Values {
		flag := "--" + strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(v.Name, "LEAFMILL_"), "_", "-"))
		if !strings.Contains(v.Usage, " to ") || !strings.HasSuffix(v.Usage, ")") {
			continue // no number
		}
		for _, huge := range []string{"999999999999999999", "9999999h", "-1", "x"} {
			if _, err := load(t, []string{flag + "=" + huge}, ""); err == nil {
				t.Errorf("%s=%s was accepted", flag, huge)
			}
		}
	}
}

func TestUnknownEnvironmentIsWarnedAbout(t *testing.T) {
	l, err := load(t, nil, "", "LEAFMILL_EMBED_TIMOUT=1s", "LEAFMILL_TEST_X=1", "HOME=/root", "LEAFMILL_OCR_WORKERS=2")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"LEAFMILL_EMBED_TIMOUT in the environment means nothing; did you mean LEAFMILL_EMBED_TIMEOUT?"}
	if d := cmp.Diff(want, l.Warnings); d != "" {
		t.Error(d)
	}
}

func TestSettingThatDoesNothing(t *testing.T) {
	l, err := load(t, nil, "", "LEAFMILL_EMBED_BASE_URL=http://h/v1", "LEAFMILL_NATS=nats://u:hidden@h:4222,nats://u:hidden@i:4222")
	if err != nil {
		t.Fatal(err)
	}
	if len(l.Warnings) != 1 || !strings.Contains(l.Warnings[0], "LEAFMILL_EMBED_BASE_URL does nothing") {
		t.Errorf("warnings %q", l.Warnings)
	}
	if s := fmt.Sprint(l.Values); strings.Contains(s, "hidden") || !strings.Contains(s, "nats://u:xxxxx@i:4222") {
		t.Errorf("the password of a URL is shown: %s", s)
	}
}

func TestFileThatIsNotThere(t *testing.T) {
	if _, err := load(t, []string{"--config", filepath.Join(t.TempDir(), "no.yaml")}, ""); err == nil {
		t.Error("a missing file was accepted")
	}
	if _, err := load(t, nil, "- a\n- b\n"); err == nil {
		t.Error("a list was accepted as a configuration")
	}
}

func TestCheckListen(t *testing.T) {
	for _, tc := range []struct {
		http, nats string
		env        []string
		ok         bool
	}{
		{"127.0.0.1:8080", "127.0.0.1:4222", nil, true},
		{"localhost:8080", "[::1]:4222", nil, true},
		{"0.0.0.0:8080", "", nil, false},
		{":8080", "", nil, false},
		{"example.org:8080", "", nil, false},
		{"", "0.0.0.0:4222", nil, false},
		{"0.0.0.0:8080", "", []string{"LEAFMILL_API_KEYS=0123456789abcdef"}, true},
		{"", "0.0.0.0:4222", []string{"LEAFMILL_NATS_USER=u", "LEAFMILL_NATS_PASSWORD=p"}, true},
		{"0.0.0.0:8080", "0.0.0.0:4222", []string{"LEAFMILL_INSECURE=true"}, true},
	} {
		l, err := load(t, nil, "", tc.env...)
		if err != nil {
			t.Fatal(err)
		}
		if err := l.CheckListen(tc.http, tc.nats); (err == nil) != tc.ok {
			t.Errorf("http %q, nats %q, %v: %v", tc.http, tc.nats, tc.env, err)
		}
	}
}

// The golden file is the list of all settings; a change of it is a change of a contract.
func TestSettingsGolden(t *testing.T) {
	l, err := load(t, nil, "", "LEAFMILL_API_KEYS=0123456789abcdef,fedcba9876543210", "LEAFMILL_NATS_USER=u", "LEAFMILL_NATS_PASSWORD=hidden")
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for _, v := range l.Values {
		fmt.Fprintf(&out, "%s=%s (%s): %s\n", v.Name, v.Value, v.Origin, v.Usage)
	}
	for _, s := range []string{"hidden", "0123456789abcdef"} {
		if strings.Contains(out.String(), s) {
			t.Errorf("the secret %s is shown", s)
		}
	}
	const golden = "testdata/settings.golden"
	if *update {
		if err := os.WriteFile(golden, []byte(out.String()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), out.String()); d != "" {
		t.Errorf("settings changed; if that is wanted, run go test -update:\n%s", d)
	}
}
