package extract

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"time"
)

// Tool is a program or its data, and whether it is there.
type Tool struct {
	Name      string
	Path      string // empty when missing
	Version   string
	NeededFor string
	OK        bool
	Fix       string // a command or sentence when not OK
}

// Probe looks for the programs documents need, and for tesseract's data of the languages
// given as in Config.DefaultLanguage; "" is the default. It takes some milliseconds.
func Probe(ctx context.Context, defaultLanguage string) []Tool {
	var tools []Tool
	for _, t := range []struct{ name, flag, use, pkg string }{
		{"pdfinfo", "-v", "PDFs", "poppler-utils"},
		{"pdftotext", "-v", "PDFs", "poppler-utils"},
		{"pdfimages", "-v", "PDFs with scanned pages", "poppler-utils"},
		{"pdftoppm", "-v", "PDFs with scanned pages", "poppler-utils"},
		{"tesseract", "--version", "scans and images", "tesseract-ocr"},
	} {
		tool := Tool{Name: t.name, NeededFor: t.use, Fix: "apt-get install " + t.pkg}
		if path, err := exec.LookPath(t.name); err == nil {
			tool.Path = path
			if tool.Version, err = versionOf(ctx, path, t.flag); err != nil {
				tool.Fix = fmt.Sprintf("it does not run (%v): apt-get install --reinstall %s", err, t.pkg)
			} else {
				tool.OK, tool.Fix = true, ""
			}
		}
		tools = append(tools, tool)
	}
	have, err := installedLanguages(ctx)
	for _, code := range codesOf(or(defaultLanguage, Config{}.withDefaults().DefaultLanguage)) {
		tool := Tool{Name: "tesseract language " + code, NeededFor: "scans in that language", Fix: "apt-get install " + packageOf(code)}
		if _, missing := split([]string{code}, have); err == nil && len(missing) == 0 {
			tool.OK, tool.Fix = true, ""
		}
		tools = append(tools, tool)
	}
	return tools
}

// versionOf is the first word with a digit of what the tool says of itself.
func versionOf(ctx context.Context, path, flag string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, flag)
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", err
	}
	for word := range strings.FieldsSeq(string(out)) {
		if strings.ContainsAny(word, "0123456789") {
			return word, nil
		}
	}
	return "", nil
}
