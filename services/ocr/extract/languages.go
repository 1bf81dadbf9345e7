package extract

import (
	"context"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/text/language"

	"github.com/leafmill/leafmill/events"
	"github.com/leafmill/leafmill/internal/sandbox"
)

// languages knows which languages tesseract has data for.
type languages struct {
	mu        sync.Mutex
	installed []string
	asked     time.Time
}

// askAgain is how long a list that lacks something is believed: data may be installed
// while the service runs.
const askAgain = time.Minute

// choose returns tesseract's -l for what is wanted, else for the fallback, as far as there
// is data, and a warning when there is not.
func (l *languages) choose(ctx context.Context, wanted, fallback string) (lang, warning string, err error) {
	codes := codesOf(wanted)
	if len(codes) == 0 {
		codes = codesOf(fallback)
	}
	have, err := l.list(ctx, codes)
	if err != nil {
		return "", "", err
	}
	use, missing := split(codes, have)
	if len(use) == 0 {
		use, _ = split(codesOf(fallback), have)
	}
	if len(use) == 0 {
		use = slices.DeleteFunc(slices.Clone(have), func(s string) bool { return s == "osd" || s == "equ" })
		use = use[:min(len(use), 3)] // each makes recognition slower
	}
	if len(use) == 0 {
		return "", "", events.Fail(events.NoOCR, "Scans cannot be read here because tesseract has no language data: apt-get install %s.", packageOf("eng"))
	}
	lang = strings.Join(use, "+")
	if len(missing) > 0 {
		warning = fmt.Sprintf("Read as %s because data for %s is not installed: apt-get install %s.",
			lang, strings.Join(missing, " and "), packagesOf(missing))
	}
	return lang, warning, nil
}

func (l *languages) list(ctx context.Context, want []string) ([]string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, missing := split(want, l.installed)
	if len(missing) == 0 || len(l.installed) > 0 && time.Since(l.asked) < askAgain {
		return l.installed, nil
	}
	have, err := installedLanguages(ctx)
	if err != nil {
		return nil, err
	}
	l.installed, l.asked = have, time.Now()
	return have, nil
}

// installedLanguages asks tesseract. No document is involved, so it needs no sandbox.
func installedLanguages(ctx context.Context) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	path, err := exec.LookPath("tesseract")
	if err != nil {
		return nil, noTesseract(fmt.Errorf("tesseract: %w", sandbox.ErrNoTool))
	}
	cmd := exec.CommandContext(ctx, path, "--list-langs")
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("extract: tesseract --list-langs: %w", err)
	}
	lines := strings.Fields(string(out[strings.IndexByte(string(out), '\n')+1:])) // below a heading
	slices.Sort(lines)
	return lines, nil
}

// codesOf reads "de", "de-AT", "deu", "eng+deu" or "chi_sim" as tesseract's codes.
func codesOf(s string) []string {
	var codes []string
	for _, part := range strings.FieldsFunc(s, func(r rune) bool { return r == '+' || r == ',' || r == ' ' }) {
		code := codeOf(part)
		if code != "" && !slices.Contains(codes, code) && len(codes) < 8 {
			codes = append(codes, code)
		}
	}
	return codes
}

func codeOf(s string) string {
	tag, err := language.Parse(s)
	if err != nil {
		// Tesseract's own, such as deu_latf; nothing else gets on a command line.
		if strings.Trim(s, "abcdefghijklmnopqrstuvwxyz_") == "" && len(s) <= 16 {
			return s
		}
		return ""
	}
	base, _ := tag.Base()
	if base.String() == "zh" {
		if script, _ := tag.Script(); script.String() == "Hant" {
			return "chi_tra"
		}
		return "chi_sim"
	}
	return base.ISO3()
}

func split(codes, have []string) (use, missing []string) {
	for _, c := range codes {
		if slices.Contains(have, c) {
			use = append(use, c)
		} else {
			missing = append(missing, c)
		}
	}
	return use, missing
}

func packageOf(code string) string { return "tesseract-ocr-" + strings.ReplaceAll(code, "_", "-") }

func packagesOf(codes []string) string {
	names := make([]string, len(codes))
	for i, c := range codes {
		names[i] = packageOf(c)
	}
	return strings.Join(names, " ")
}
