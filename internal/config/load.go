package config

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
)

// Origins of a value.
const (
	FromDefault = "default"
	FromFile    = "file"
	FromEnv     = "environment"
	FromFlag    = "flag"
)

// Sources are where settings come from, beside their defaults.
type Sources struct {
	Flags   *Flags   // may be nil
	Environ []string // as os.Environ gives it
}

// Value is a setting's effective value, fit to be shown.
type Value struct {
	Name   string `json:"name"` // of the environment variable
	Value  string `json:"value"`
	Origin string `json:"origin"`
	Usage  string `json:"usage"`
}

// Loaded is a valid configuration and what there is to say about it.
type Loaded struct {
	Config
	File     string   // that was read; empty: none
	Values   []Value  // every setting, in the order of the table, without secrets
	Warnings []string // settings that do nothing, and names in the environment that mean nothing
}

// Load puts the sources together. The error names every problem there is, a line each.
func Load(src Sources) (*Loaded, error) {
	var (
		l        = new(Loaded)
		settings = l.settings()
		origins  = map[string]string{}
		problems []error
	)
	apply := func(s Setting, origin, writtenAs, value string) {
		if err := s.set(value); err != nil {
			shown := strconv.Quote(value)
			if s.Secret {
				shown = "its value"
			}
			problems = append(problems, fmt.Errorf("%s: %s %w", writtenAs, shown, err))
			return
		}
		origins[s.Name] = origin
	}

	env, unknown := environment(src.Environ, settings)
	l.Warnings = unknown
	if l.File = env["LEAFMILL_CONFIG"]; src.Flags != nil && src.Flags.file != "" {
		l.File = src.Flags.file
	}
	if l.File != "" {
		values, err := readFile(l.File, settings)
		if err != nil {
			problems = append(problems, err)
		}
		for _, s := range settings {
			if v, ok := values[fileKey(s.Name)]; ok {
				apply(s, FromFile, l.File+": "+fileKey(s.Name), v)
			}
		}
	}
	for _, s := range settings {
		if v := env[EnvName(s.Name)]; v != "" { // empty is as good as unset, as in compose files
			apply(s, FromEnv, EnvName(s.Name), v)
		}
	}
	for _, s := range settings {
		if v, ok := src.Flags.changed(s.flag()); ok {
			apply(s, FromFlag, "--"+s.flag(), v)
		}
	}
	if problems = append(problems, l.check()...); len(problems) > 0 {
		return nil, errors.Join(problems...)
	}
	l.Warnings = append(l.Warnings, l.warnings()...)
	for _, s := range settings {
		v := Value{Name: EnvName(s.Name), Value: s.get(), Origin: FromDefault, Usage: s.Usage}
		if o, ok := origins[s.Name]; ok {
			v.Origin = o
		}
		if s.Secret && v.Value != "" {
			v.Value = "(set)"
		} else {
			v.Value = redact(v.Value)
		}
		l.Values = append(l.Values, v)
	}
	return l, nil
}

// Given says whether a setting comes from elsewhere than its default.
func (l *Loaded) Given(setting string) bool {
	return slices.ContainsFunc(l.Values, func(v Value) bool { return v.Name == EnvName(setting) && v.Origin != FromDefault })
}

// redact hides the passwords in a URL, or in several with commas between.
func redact(value string) string {
	if !strings.Contains(value, "@") {
		return value
	}
	urls := strings.Split(value, ",")
	for i, u := range urls {
		if parsed, err := url.Parse(u); err == nil {
			urls[i] = parsed.Redacted()
		}
	}
	return strings.Join(urls, ",")
}

// environment picks out our variables, and says which mean nothing.
func environment(environ []string, settings []Setting) (values map[string]string, unknown []string) {
	known := []string{"LEAFMILL_CONFIG"}
	for _, s := range settings {
		known = append(known, EnvName(s.Name))
	}
	values = map[string]string{}
	for _, kv := range environ {
		name, value, _ := strings.Cut(kv, "=")
		switch {
		case slices.Contains(known, name):
			values[name] = value
		case strings.HasPrefix(name, "LEAFMILL_") && !strings.HasPrefix(name, "LEAFMILL_TEST_"):
			unknown = append(unknown, name+" in the environment means nothing; did you mean "+nearest(name, known)+"?")
		}
	}
	slices.Sort(unknown)
	return values, unknown
}

// readFile reads a YAML file. Keys may be nested: embed: {timeout: 10s} is embed_timeout.
// Values come back also when some names are wrong, so that those are checked too.
func readFile(path string, settings []Setting) (map[string]string, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("the configuration file cannot be read: %w", err)
	}
	var doc map[string]any
	if err := yaml.Unmarshal(data, &doc); err != nil {
		return nil, fmt.Errorf("%s is not YAML with keys at its top: %w", path, err)
	}
	values := map[string]string{}
	var problems []error
	flatten("", doc, values, func(key string) {
		problems = append(problems, fmt.Errorf("%s: %s has no value that a setting could take", path, key))
	})
	var known []string
	for _, s := range settings {
		known = append(known, fileKey(s.Name))
	}
	var unknown []string
	for key := range values {
		if !slices.Contains(known, key) {
			unknown = append(unknown, key)
		}
	}
	slices.Sort(unknown)
	for _, key := range unknown {
		problems = append(problems, fmt.Errorf("%s: there is no setting %s; did you mean %s?", path, key, nearest(key, known)))
	}
	return values, errors.Join(problems...)
}

// flatten writes the leaves of a document under the joined names of their branches.
func flatten(prefix string, doc map[string]any, into map[string]string, bad func(string)) {
	for k, v := range doc {
		key := strings.ReplaceAll(prefix+k, "-", "_")
		switch v := v.(type) {
		case map[string]any:
			flatten(key+"_", v, into, bad)
		case []any:
			words := make([]string, len(v))
			for i, w := range v {
				words[i] = fmt.Sprint(w)
			}
			into[key] = strings.Join(words, ",")
		case string, bool, int, int64, uint64, float64:
			into[key] = fmt.Sprint(v)
		default:
			bad(key)
		}
	}
}

// nearest is the name that takes the fewest changes of a letter to reach.
func nearest(name string, known []string) string {
	return slices.MinFunc(known, func(a, b string) int { return distance(name, a) - distance(name, b) })
}

// distance is Levenshtein's.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// Flags are the settings as flags of a command. Their values are looked at by [Load],
// which tells all problems of all sources together.
type Flags struct {
	set  *pflag.FlagSet
	file string
}

// AddFlags gives a command the flag --config and flags for the settings named, none of them
// a secret.
func AddFlags(set *pflag.FlagSet, names ...string) *Flags {
	f := &Flags{set: set}
	set.StringVar(&f.file, "config", "", "read settings from this YAML `file`")
	for _, s := range new(Config).settings() {
		if slices.Contains(names, s.Name) {
			f.add(s)
		}
	}
	return f
}

// AddAllFlags gives a command a flag for every setting that is no secret. Help shows those
// named, the others work too.
func AddAllFlags(set *pflag.FlagSet, shown ...string) *Flags {
	f := AddFlags(set, shown...)
	for _, s := range new(Config).settings() {
		if !s.Secret && !slices.Contains(shown, s.Name) {
			f.add(s).Hidden = true
		}
	}
	return f
}

func (f *Flags) add(s Setting) *pflag.Flag {
	fl := f.set.VarPF(&flagValue{kind: s.kind, text: s.Default}, s.flag(), "", s.Usage)
	if s.kind == "bool" {
		fl.NoOptDefVal = "true"
	}
	return fl
}

func (f *Flags) changed(name string) (string, bool) {
	if f == nil {
		return "", false
	}
	fl := f.set.Lookup(name)
	if fl == nil || !fl.Changed {
		return "", false
	}
	return fl.Value.String(), true
}

// flagValue keeps what was written.
type flagValue struct{ kind, text string }

func (v *flagValue) Set(s string) error { v.text = s; return nil }
func (v *flagValue) String() string     { return v.text }
func (v *flagValue) Type() string       { return v.kind }
