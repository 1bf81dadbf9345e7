package main

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"
)

const module = "github.com/leafmill/leafmill/"

// An importRule says which packages may not import which others, and why.
type importRule struct {
	who    func(pkg string) bool // of ours, without the module's name
	denies func(pkg, imported string) bool
	reason string
}

func under(paths ...string) func(string) bool {
	return func(pkg string) bool {
		for _, p := range paths {
			if pkg == p || strings.HasPrefix(pkg, p+"/") {
				return true
			}
		}
		return false
	}
}

func except(f func(string) bool) func(string) bool {
	return func(pkg string) bool { return !f(pkg) }
}

// service is the service a package belongs to: ocr for services/ocr/extract.
func service(pkg string) string {
	rest, ok := strings.CutPrefix(pkg, "services/")
	if !ok {
		return ""
	}
	name, _, _ := strings.Cut(rest, "/")
	return name
}

var importRules = []importRule{
	{func(pkg string) bool { return pkg == "events" },
		func(_, i string) bool {
			first, _, _ := strings.Cut(i, "/")
			return strings.Contains(first, ".")
		},
		"events is the contract: whoever depends on it shall get nothing else with it"},
	{under("services"),
		func(pkg, i string) bool {
			other := service(strings.TrimPrefix(i, module))
			return strings.HasPrefix(i, module+"services/") && other != service(pkg)
		},
		"services talk over the bus only, so that each runs, scales and fails on its own"},
	{under("internal", "events"),
		func(_, i string) bool {
			return strings.HasPrefix(i, module+"services/") || strings.HasPrefix(i, module+"cmd/")
		},
		"what services share knows none of them"},
	{except(under("cmd")),
		func(_, i string) bool { return strings.HasPrefix(i, module+"cmd/") },
		"only main puts things together"},
	{except(under("internal/bus", "internal/artifacts")),
		func(_, i string) bool { return strings.HasPrefix(i, "github.com/nats-io/nats.go") },
		"acknowledgement, deduplication and naming are decided once; a service that knows JetStream decides again"},
	{except(under("internal/bus")),
		func(_, i string) bool { return strings.HasPrefix(i, "github.com/nats-io/nats-server") },
		"the embedded server is the bus' own affair"},
	{except(under("internal/bus")),
		func(_, i string) bool { return strings.HasPrefix(i, "github.com/ThreeDotsLabs/watermill") },
		"the order of middleware is right in one place only; handlers take a Delivery"},
	{except(under("internal/sandbox", "services/ocr")),
		func(pkg, i string) bool {
			return i == "os/exec" && !strings.HasPrefix(pkg, "cmd/") && !strings.HasPrefix(pkg, "events/")
		},
		"what reads documents runs in internal/sandbox, within limits"},
}

func TestImportRules(t *testing.T) {
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports", "./...")
	cmd.Dir = "../.."
	out, err := cmd.Output()
	if err != nil {
		if e, ok := errors.AsType[*exec.ExitError](err); ok {
			t.Fatalf("go list: %v\n%s", err, e.Stderr)
		}
		t.Fatal(err)
	}
	seen := 0
	dec := json.NewDecoder(strings.NewReader(string(out)))
	for {
		var p struct {
			ImportPath string
			Imports    []string
		}
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		seen++
		pkg := strings.TrimPrefix(p.ImportPath, module)
		for _, r := range importRules {
			if !r.who(pkg) {
				continue
			}
			for _, i := range p.Imports {
				if r.denies(pkg, i) {
					t.Errorf("%s imports %s: %s", pkg, i, r.reason)
				}
			}
		}
	}
	if seen < 10 {
		t.Errorf("only %d packages were looked at", seen)
	}
}

// Each rule must be able to fail.
func TestImportRulesBite(t *testing.T) {
	for _, tc := range []struct{ pkg, imports string }{
		{"events", "github.com/google/uuid"},
		{"services/ocr", module + "services/chunk"},
		{"services/ocr/extract", module + "services/index/embedded"},
		{"internal/guard", module + "services/embed"},
		{"services/ocr", module + "cmd/leafmill"},
		{"services/status", "github.com/nats-io/nats.go/jetstream"},
		{"cmd/leafmill", "github.com/nats-io/nats-server/v2/server"},
		{"services/embed", "github.com/ThreeDotsLabs/watermill/message"},
		{"services/gateway", "os/exec"},
	} {
		bites := false
		for _, r := range importRules {
			bites = bites || r.who(tc.pkg) && r.denies(tc.pkg, tc.imports)
		}
		if !bites {
			t.Errorf("%s may import %s", tc.pkg, tc.imports)
		}
	}
	for _, r := range importRules {
		if r.who("services/ocr/extract") && r.denies("services/ocr/extract", module+"services/ocr/extract") {
			t.Error("a service may not import its own packages: " + r.reason)
		}
	}
}
