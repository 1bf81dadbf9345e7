package config

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
)

// Setting is one thing that can be set.
type Setting struct {
	Name    string // as the flag is called, such as embed-timeout
	Usage   string // a few words, with the bounds of a number
	Default string
	Secret  bool
	Flag    string // the flag's name, where it is not Name
	kind    string // of its value, for help
	set     func(string) error
	get     func() string
}

// EnvName is the environment variable of a setting: LEAFMILL_EMBED_TIMEOUT for embed-timeout.
func EnvName(setting string) string {
	return "LEAFMILL_" + strings.ToUpper(strings.ReplaceAll(setting, "-", "_"))
}

// flag is the name of the setting's flag.
func (s Setting) flag() string {
	if s.Flag != "" {
		return s.Flag
	}
	return s.Name
}

// fileKey is the setting's key in the file: embed_timeout for embed-timeout.
func fileKey(setting string) string { return strings.ReplaceAll(setting, "-", "_") }

// define makes a setting of any type from how its values are read and written.
func define[T any](v *T, name, kind string, def T, usage string, parse func(string) (T, error), format func(T) string) Setting {
	*v = def
	return Setting{Name: name, Usage: usage, Default: format(def), kind: kind,
		set: func(s string) error {
			parsed, err := parse(s)
			if err == nil {
				*v = parsed
			}
			return err
		},
		get: func() string { return format(*v) },
	}
}

func secret(s Setting) Setting {
	s.Secret = true
	return s
}

// called gives the setting's flag another name.
func called(name string, s Setting) Setting {
	s.Flag = name
	return s
}

func text(v *string, name, def, usage string) Setting {
	return define(v, name, "text", def, usage,
		func(s string) (string, error) { return s, nil }, func(s string) string { return s })
}

// choice is one of a few words, of which the first is the default.
func choice(v *string, name, usage string, words ...string) Setting {
	return define(v, name, strings.Join(words, "|"), words[0], usage, func(s string) (string, error) {
		if !slices.Contains(words, s) {
			return "", fmt.Errorf("must be one of %s", strings.Join(words, ", "))
		}
		return s, nil
	}, func(s string) string { return s })
}

func list(v *[]string, name, usage string) Setting {
	return define(v, name, "list", nil, usage, func(s string) (out []string, err error) {
		for w := range strings.SplitSeq(s, ",") {
			if w = strings.TrimSpace(w); w != "" {
				out = append(out, w)
			}
		}
		return out, nil
	}, func(l []string) string { return strings.Join(l, ",") })
}

func boolean(v *bool, name, usage string) Setting {
	return define(v, name, "bool", false, usage, func(s string) (bool, error) {
		b, err := strconv.ParseBool(s)
		if err != nil {
			return false, fmt.Errorf("must be true or false")
		}
		return b, nil
	}, strconv.FormatBool)
}

func number(v *int, name string, def, least, most int, usage string) Setting {
	return define(v, name, "number", def, fmt.Sprintf("%s (%d to %d)", usage, least, most), func(s string) (int, error) {
		n, err := strconv.Atoi(s)
		if err != nil || n < least || n > most {
			return 0, fmt.Errorf("must be a whole number, %d to %d", least, most)
		}
		return n, nil
	}, strconv.Itoa)
}

func number64(v *int64, name string, def, least, most int64, usage string) Setting {
	return define(v, name, "number", def, fmt.Sprintf("%s (%d to %d)", usage, least, most), func(s string) (int64, error) {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil || n < least || n > most {
			return 0, fmt.Errorf("must be a whole number, %d to %d", least, most)
		}
		return n, nil
	}, func(n int64) string { return strconv.FormatInt(n, 10) })
}

func decimal(v *float64, name string, def, least, most float64, usage string) Setting {
	return define(v, name, "number", def, fmt.Sprintf("%s (%g to %g)", usage, least, most), func(s string) (float64, error) {
		n, err := strconv.ParseFloat(s, 64)
		if err != nil || !(n >= least && n <= most) { // written so that NaN is refused
			return 0, fmt.Errorf("must be a number, %g to %g", least, most)
		}
		return n, nil
	}, func(n float64) string { return strconv.FormatFloat(n, 'g', -1, 64) })
}

// bytes is a size: a number of bytes, or one with a unit, such as 100MB or 2GiB.
func bytes(v *int64, name string, def, least, most int64, usage string) Setting {
	format := func(n int64) string { return strconv.FormatInt(n, 10) }
	show := func(n int64) string { return strings.ReplaceAll(humanize.IBytes(uint64(n)), " ", "") }
	return define(v, name, "bytes", def, fmt.Sprintf("%s (%s to %s)", usage, show(least), show(most)), func(s string) (int64, error) {
		n, err := humanize.ParseBytes(s)
		if err != nil || n < uint64(least) || n > uint64(most) {
			return 0, fmt.Errorf("must be a size, %s to %s, such as 100MB or 2GiB", show(least), show(most))
		}
		return int64(n), nil
	}, format)
}

func duration(v *time.Duration, name string, def, least, most time.Duration, usage string) Setting {
	bounds := shortDuration(least) + " to " + shortDuration(most)
	return define(v, name, "duration", def, usage+" ("+bounds+")", func(s string) (time.Duration, error) {
		d, err := time.ParseDuration(s)
		if err != nil || d < least || d > most {
			return 0, fmt.Errorf("must be a duration, %s, such as 10s or 5m", bounds)
		}
		return d, nil
	}, shortDuration)
}

// shortDuration writes 5m0s as 5m.
func shortDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}
